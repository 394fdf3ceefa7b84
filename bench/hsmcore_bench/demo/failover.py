"""The second act: the primary token is pulled while a sequencer signs, and put back; no transaction may be lost.

Transactions come at a steady rate, however long earlier ones take, and LiteSVM judges them as in the first act.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any, Final

from solders.hash import Hash
from solders.pubkey import Pubkey

import hsmcore
from hsmcore_bench.demo.builder import TransferBuilder, Unsigned
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.runner import Sequencer
from hsmcore_bench.demo.steady import BLOCK, RATE, Played, Tell, steady_block
from hsmcore_bench.demo.twins import Twins

PULLED_AT: Final = 1.0  # seconds from the first transaction
BACK_AT: Final = 3.0
CALM_SECONDS: Final = 0.5  # of load after the failback
LONGEST_SECONDS: Final = 15.0


class Act(Played):
    """`signed_by` member."""

    __slots__ = ()

    def when(self, what: str) -> float | None:
        return next((event["atSeconds"] for event in self.events if event["event"] == what), None)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        moved = self.when("failover") is not None and self.when("failback") is not None
        return {"ok": moved and self.outcome.complete and len(self.signed_by) == 2, **self.summary()}


async def play_failover(made: Twins, tell: Tell) -> dict[str, Any]:
    """Play it; `tell` hears of what happens, a line each."""
    act = Act()
    async with hsmcore.create_key_manager(made.config()) as manager:
        payer = Pubkey.from_bytes(manager.public_key)
        most = int(RATE * LONGEST_SECONDS)
        ledger = Ledger(history=most + 2)
        player = _Player(manager, Sequencer(manager, TransferBuilder(payer), ledger, None, BLOCK), made, act, tell)
        player.sequencer.fund(most)
        await player.play()
        act.outcome.books_balance = player.sequencer.balanced()
    return act.as_dict()


class _Player:
    """Belongs to one event loop."""

    def __init__(self, manager: hsmcore.KeyManager, sequencer: Sequencer, made: Twins, act: Act, tell: Tell) -> None:
        self.sequencer = sequencer
        self._manager, self._twins, self._act, self._tell = manager, made, act, tell
        self._begun = perf_counter()
        manager.on("failover", lambda details: self._event("failover", details))
        manager.on("failback", lambda details: self._event("failback", details))

    async def play(self) -> None:
        """Transactions come until the primary level has been back for a while."""
        act, self._begun = self._act, perf_counter()
        director = asyncio.ensure_future(self._direct())
        due = self._begun
        try:
            while (now := perf_counter() - self._begun) < LONGEST_SECONDS:
                back = act.when("failback")
                if back is not None and now > back + CALM_SECONDS:
                    break
                due += BLOCK / RATE
                await self._block(due)
        finally:
            director.cancel()
            await asyncio.gather(director, return_exceptions=True)
            self._twins.put_back()
        act.seconds = perf_counter() - self._begun

    async def _direct(self) -> None:
        await asyncio.sleep(PULLED_AT)
        self._event("pulled", {"member": self._primary.name})
        self._twins.pull(self._primary)
        await asyncio.sleep(BACK_AT - PULLED_AT)
        self._twins.put_back()
        self._event("put-back", {"member": self._primary.name})

    @property
    def _primary(self) -> hsmcore.MemberSnapshot:
        return self._manager.members()[0]

    async def _block(self, until: float) -> None:
        sequencer = self.sequencer
        await steady_block(until, sequencer.ledger.blockhash(), self._act.outcome, self._sign, sequencer.execute)

    async def _sign(self, blockhash: Hash) -> tuple[Unsigned, bytes]:
        transfer = self.sequencer.builder.build(blockhash)
        receipt = await self._manager.sign_with_receipt(transfer.payload)
        self._act.signed_at.append(perf_counter() - self._begun)
        self._act.signed_by[receipt.member] += 1
        return transfer, receipt.signature

    def _event(self, what: str, details: Any) -> None:
        at = perf_counter() - self._begun
        event = {"atSeconds": round(at, 4), "event": what}
        event |= {
            new: details[old]
            for old, new in (("member", "member"), ("from_level", "from"), ("to_level", "to"))
            if details.get(old)
        }
        self._act.events.append(event)
        self._tell(line_of(event))


def line_of(event: dict[str, Any]) -> str:
    """An event for a person."""
    words = {
        "pulled": "token pulled, its process killed: {member}",
        "put-back": "token put back: {member}",
        "failover": "failover: {from} → {to}, {member} signs",
        "failback": "failback: {from} → {to}, {member} signs",
    }
    return f"{event['atSeconds']:7.3f} s  {words[event['event']].format(**event)}"
