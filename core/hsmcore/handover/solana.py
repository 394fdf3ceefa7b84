"""Handovers on Solana: authorities that move from the old key to the new one, signed by both where the chain asks.

Each looks first at the present authority, so that repeating it after a crash, and reverting a part of it, is the same
code: "make it `to`".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import Transaction

from hsmcore.errors import BadArgument
from hsmcore.handover.base import HandoverKey, Settled
from hsmcore.handover.client import Account, ChainRefused, SolanaClient

LOADER: Final = Pubkey.from_string("BPFLoaderUpgradeab1e11111111111111111111111")
TOKEN: Final = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
TOKEN_2022: Final = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
SYSTEM: Final = Pubkey.default()
_SET_AUTHORITY_CHECKED: Final = struct.pack("<I", 7)  # UpgradeableLoaderInstruction
_TOKEN_SET_AUTHORITY: Final = 6  # TokenInstruction
_AUTHORIZE_NONCE: Final = struct.pack("<I", 7)  # SystemInstruction
_PROGRAM_DATA: Final = 3  # UpgradeableLoaderState


class Authority(Protocol):
    """An account on chain that obeys one key."""

    @property
    def address(self) -> Pubkey:
        """The account that names the key."""

    def holder(self, account: Account) -> Pubkey | None:
        """The present authority; None: it has none, for good."""

    def move(self, account: Account, holder: Pubkey, to: Pubkey) -> Instruction:
        """Return the instruction that makes it obey `to`."""


@dataclass(frozen=True, slots=True)
class ProgramAuthority:
    """The upgrade authority of a program (`program`: its address): SetAuthorityChecked of the upgradeable loader. The
    new key signs too, so that no mistake can lock the program."""

    program: Pubkey

    @property
    def address(self) -> Pubkey:
        return Pubkey.find_program_address([bytes(self.program)], LOADER)[0]

    def holder(self, account: Account) -> Pubkey | None:
        _require(account, (LOADER,), 45, self.address)
        if struct.unpack_from("<I", account.data)[0] != _PROGRAM_DATA:
            raise ChainRefused(f"{self.address} is not the data of an upgradeable program")
        return Pubkey(account.data[13:45]) if account.data[12] == 1 else None

    def move(self, account: Account, holder: Pubkey, to: Pubkey) -> Instruction:
        del account
        metas = [AccountMeta(self.address, False, True), AccountMeta(holder, True, False), AccountMeta(to, True, False)]
        return Instruction(LOADER, _SET_AUTHORITY_CHECKED, metas)


@dataclass(frozen=True, slots=True)
class MintAuthority:
    """The mint authority (or, with `freeze`, the freeze authority) of a token's mint: SetAuthority of the token
    program."""

    mint: Pubkey
    freeze: bool = False

    @property
    def address(self) -> Pubkey:
        return self.mint

    def holder(self, account: Account) -> Pubkey | None:
        _require(account, (TOKEN, TOKEN_2022), 82, self.mint)
        at = 46 if self.freeze else 0
        return Pubkey(account.data[at + 4 : at + 36]) if struct.unpack_from("<I", account.data, at)[0] == 1 else None

    def move(self, account: Account, holder: Pubkey, to: Pubkey) -> Instruction:
        data = bytes([_TOKEN_SET_AUTHORITY, 1 if self.freeze else 0, 1]) + bytes(to)
        metas = [AccountMeta(self.mint, False, True), AccountMeta(holder, True, False)]
        return Instruction(Pubkey(account.owner), data, metas)


@dataclass(frozen=True, slots=True)
class NonceAuthority:
    """The authority of a durable nonce account: AuthorizeNonceAccount. It voids transactions that the old key has
    signed in advance on this nonce."""

    nonce: Pubkey

    @property
    def address(self) -> Pubkey:
        return self.nonce

    def holder(self, account: Account) -> Pubkey | None:
        _require(account, (SYSTEM,), 80, self.nonce)
        if struct.unpack_from("<II", account.data)[1] != 1:
            raise ChainRefused(f"{self.nonce} is no initialized nonce account")
        return Pubkey(account.data[8:40])

    def move(self, account: Account, holder: Pubkey, to: Pubkey) -> Instruction:
        del account
        metas = [AccountMeta(self.nonce, False, True), AccountMeta(holder, True, False)]
        return Instruction(SYSTEM, _AUTHORIZE_NONCE + bytes(to), metas)


class SolanaHandover:
    """Moves authorities one after the other, each in a separate transaction. The key that holds an authority pays the
    fee, so both need some lamports (the new one only for the way back). Raises BadArgument without an authority."""

    def __init__(self, client: SolanaClient, authorities: Sequence[Authority]) -> None:
        if not authorities:
            raise BadArgument("a handover needs at least one authority")
        self._client, self._authorities = client, list(authorities)

    async def handover(self, old: HandoverKey, new: HandoverKey, km: Any) -> dict[str, Any]:
        """Make every authority obey `new`. Raises ChainRefused, also if one obeys a third key."""
        del km
        return {"moved": [str(a.address) for a in self._authorities if await self._make(a, old, new)]}

    async def revert(self, old: HandoverKey, new: HandoverKey, km: Any) -> dict[str, Any]:
        """Make every authority that obeys `new` obey `old`. A transaction in doubt is waited for first: it must not
        make an account obey a key that is destroyed next."""
        del km
        await self._client.settle()
        given = [a for a in self._authorities if await self._holder(a) == Pubkey(new.public_key)]
        return {"moved": [str(authority.address) for authority in given if await self._make(authority, new, old)]}

    async def settled(self, old: HandoverKey, new: HandoverKey) -> Settled:
        """Return "new" if every authority obeys the new key at finality, "old" if none does. Before "old" is said, a
        transaction in doubt is waited for. Raises ChainRefused."""
        del old
        key = Pubkey(new.public_key)
        found = await self._obeyed()
        if key not in found:
            await self._client.settle()
            found = await self._obeyed()
        return "new" if found == {key} else "unknown" if key in found else "old"

    async def _obeyed(self) -> set[Pubkey | None]:
        return {await self._holder(authority) for authority in self._authorities}

    async def _make(self, authority: Authority, holder: HandoverKey, to: HandoverKey) -> bool:
        account = await self._account(authority)
        now = authority.holder(account)
        if now == Pubkey(to.public_key):
            return False  # done by an earlier attempt
        if now != Pubkey(holder.public_key):
            raise ChainRefused(f"{authority.address} obeys {now or 'nobody'}, not the key that is to hand it over")
        instruction = authority.move(account, Pubkey(holder.public_key), Pubkey(to.public_key))
        await self._client.execute(await self._signed(instruction, holder, to))
        if await self._holder(authority) != Pubkey(to.public_key):
            raise ChainRefused(f"{authority.address} does not obey the new key although the transaction was executed")
        return True

    async def _signed(self, instruction: Instruction, *keys: HandoverKey) -> bytes:
        payer = Pubkey(keys[0].public_key)
        blockhash = Hash.from_bytes(await self._client.blockhash())
        message = Message.new_with_blockhash([instruction], payer, blockhash)
        body = bytes(message)
        by_address = {Pubkey(key.public_key): key for key in keys}
        signers = message.account_keys[: message.header.num_required_signatures]
        signatures = [Signature.from_bytes(await by_address[signer].sign(body)) for signer in signers]
        return bytes(Transaction.populate(message, signatures))

    async def _holder(self, authority: Authority) -> Pubkey | None:
        return authority.holder(await self._account(authority))

    async def _account(self, authority: Authority) -> Account:
        account = await self._client.account(bytes(authority.address))
        if account is None:
            raise ChainRefused(f"there is no account {authority.address}")
        return account


def _require(account: Account, owners: tuple[Pubkey, ...], size: int, address: Pubkey) -> None:
    if Pubkey(account.owner) not in owners or len(account.data) < size:
        raise ChainRefused(f"the account {address} is not what it was taken for")


__all__ = ["MintAuthority", "NonceAuthority", "ProgramAuthority", "SolanaHandover"]
