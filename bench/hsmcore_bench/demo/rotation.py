"""The third act: the key is rotated while a sequencer signs, and the chain is told; no transaction may be lost.

The old key hands its account's lamports and a token mint over to the new one. Each transaction is paid by the key that
signs it, so one that was built for the old key while the new one took over is built again. In the end a transaction
that the old key had signed beforehand must be refused, and the same by the new key accepted.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from nacl.public import PrivateKey
from solders.hash import Hash
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import Transaction, VersionedTransaction

import hsmcore
from hsmcore.handover import HandoverKey, Settled
from hsmcore.handover.client import Account, ChainRefused
from hsmcore.handover.solana import TOKEN, MintAuthority, SolanaHandover
from hsmcore_bench.demo.builder import TransferBuilder, Unsigned
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.runner import Sequencer
from hsmcore_bench.demo.steady import BLOCK, RATE, Played, Tell, steady_block
from hsmcore_bench.demo.twins import Twins

ASKED_AT: Final = 1.0  # seconds from the first transaction
CALM_SECONDS: Final = 1.0  # of load after the rotation
LONGEST_SECONDS: Final = 15.0
MINT: Final = MintAuthority(Pubkey(b"\x4d" * 32))


class LedgerClient:
    """The ledger as what a handover talks to."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def account(self, address: bytes) -> Account | None:
        """As SolanaClient."""
        found = self.ledger.account(Pubkey(address))
        return None if found is None else Account(*found)

    async def blockhash(self) -> bytes:
        """As SolanaClient."""
        return bytes(self.ledger.blockhash())

    async def settle(self) -> None:
        """As SolanaClient: nothing is ever on its way."""

    async def execute(self, transaction: bytes) -> None:
        """As SolanaClient."""
        why = self.ledger.execute(VersionedTransaction.from_bytes(transaction))
        if why is not None:
            raise ChainRefused(why)


class Handing:
    """Half of the lamports, which leaves enough for what the old key has signed already; then the mint."""

    def __init__(self, client: LedgerClient, tell: Tell) -> None:
        self._client, self._tell = client, tell
        self._mint = SolanaHandover(client, [MINT])

    async def handover(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any]:
        """As Handover."""
        ledger = self._client.ledger
        source, target = Pubkey(old.public_key), Pubkey(new.public_key)
        if not ledger.balance(target):
            params = TransferParams(from_pubkey=source, to_pubkey=target, lamports=ledger.balance(source) // 2)
            message = Message.new_with_blockhash([transfer(params)], source, ledger.blockhash())
            signature = Signature(await old.sign(bytes(message)))
            await self._client.execute(bytes(Transaction.populate(message, [signature])))
        done = await self._mint.handover(old, new, km)
        self._tell("handed over: lamports and the mint's authority")
        return done

    async def revert(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any]:
        """As Handover. The lamports stay where they are: both keys are the sequencer's."""
        return await self._mint.revert(old, new, km)

    async def settled(self, old: HandoverKey, new: HandoverKey) -> Settled:
        """As Handover."""
        return await self._mint.settled(old, new)


@dataclass(slots=True)
class Rotated(Played):
    """`signed_by` key id."""

    rebuilt: int = 0
    old_key: str | None = None
    """Why the ledger refused what the old key had signed in advance; None: it did not."""
    new_key: str | None = "not tried"
    """Why it refused the same by the new key; None: it did not."""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        judged = self.old_key is not None and self.new_key is None
        return {
            "ok": self.outcome.complete and len(self.signed_by) == 2 and judged,
            **self.summary(),
            "rebuilt": self.rebuilt,
            "oldKeyRefusedAs": self.old_key,
            "newKeyAccepted": self.new_key is None,
        }


async def play_rotation(made: Twins, tell: Tell) -> dict[str, Any]:
    """Play it; `tell` hears of what happens, a line each."""
    config = made.lone_config(
        {
            "enabled": True,
            "backupEnabled": True,
            "backupLocation": str(made.folder.path / "backups"),
            "keyCeremony": {"recoveryPublicKey": bytes(PrivateKey.generate().public_key).hex()},
        }
    )
    act = Rotated()
    manager = hsmcore.create_key_manager(config)
    most = int(RATE * LONGEST_SECONDS)
    ledger = Ledger(history=most + 8)
    player = _Player(manager, ledger, act, tell)
    manager.on_rotation(Handing(LedgerClient(ledger), player.tell))
    async with manager:
        await player.play(most)
    return act.as_dict()


class _Player:
    """Belongs to one event loop."""

    def __init__(self, manager: hsmcore.KeyManager, ledger: Ledger, act: Rotated, tell: Tell) -> None:
        self._manager, self._ledger, self._act, self._say = manager, ledger, act, tell
        self._begun = perf_counter()

    def tell(self, what: str) -> None:
        """Note an event, and say it."""
        at = perf_counter() - self._begun
        self._act.events.append({"atSeconds": round(at, 4), "event": what})
        self._say(f"{at:7.3f} s  {what}")

    async def play(self, most: int) -> None:
        """Transactions come until the new key has signed for a while."""
        manager, ledger, act = self._manager, self._ledger, self._act
        old = Pubkey(manager.public_key)
        self.sequencer = Sequencer(manager, TransferBuilder(old), ledger, None, BLOCK)
        self.sequencer.fund(2 * most)
        ledger.put(MINT.mint, TOKEN, _mint_of(old))
        in_advance = await self._mint_to_itself(old)
        self._begun = due = perf_counter()
        rotation = asyncio.ensure_future(self._rotate())
        ended: float | None = None
        while (now := perf_counter()) - self._begun < LONGEST_SECONDS and (ended is None or now < ended + CALM_SECONDS):
            due += BLOCK / RATE
            blockhash = ledger.blockhash()
            await steady_block(due, blockhash, act.outcome, self._sign, self.sequencer.execute)
            if rotation.done() and ended is None:
                ended = perf_counter()
        rotation.cancel()
        await asyncio.wait([rotation])
        if not rotation.cancelled():
            rotation.result()
        act.seconds = perf_counter() - self._begun
        act.outcome.books_balance = self.sequencer.balanced()
        act.old_key = ledger.execute(in_advance)
        act.new_key = ledger.execute(await self._mint_to_itself(Pubkey(manager.public_key)))

    async def _rotate(self) -> None:
        await asyncio.sleep(ASKED_AT)
        self.tell("rotation asked for")
        await self._manager.rotate_key("the demonstration")
        self.tell("the new key signs")

    async def _sign(self, blockhash: Hash) -> tuple[Unsigned, bytes]:
        while True:
            payer = Pubkey(self._manager.public_key)
            if payer not in self.sequencer.payers:
                self.sequencer.payers.append(payer)
            built = self.sequencer.builder.build(blockhash, payer)
            receipt = await self._manager.sign_with_receipt(built.payload)
            if receipt.public_key == bytes(payer):
                self._act.signed_at.append(perf_counter() - self._begun)
                self._act.signed_by[receipt.key_id] += 1
                return built, receipt.signature
            self._act.rebuilt += 1

    async def _mint_to_itself(self, holder: Pubkey) -> VersionedTransaction:
        """What only the mint's authority may do, and changes nothing: make itself the authority."""
        found = self._ledger.account(MINT.mint)
        assert found is not None
        move = MINT.move(Account(*found), holder, holder)
        message = Message.new_with_blockhash([move], holder, self._ledger.blockhash())
        signature = Signature(await self._manager.sign(bytes(message)))
        return VersionedTransaction.populate(message, [signature])


def _mint_of(authority: Pubkey) -> bytes:
    """An initialized mint of the token program, six decimals: its authority may mint and freeze."""
    return struct.pack("<I32sQBBI32s", 1, bytes(authority), 0, 6, 1, 1, bytes(authority))
