"""Solana transactions to be signed, and keys in software that sign as a key manager does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import Message, MessageV0, MessageV1, VersionedMessage
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import HsmError, KeyNotCurrent

VERSIONS = ("legacy", "v0", "v1")
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
TABLES = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")
UNSIGNED = Signature.default()


def message_of(
    version: str,
    payer: Pubkey,
    instructions: Sequence[Instruction],
    blockhash: Hash,
    tables: Sequence[AddressLookupTableAccount] = (),
) -> VersionedMessage:
    """A message of a version."""
    if version == "legacy":
        return Message.new_with_blockhash(instructions, payer, blockhash)
    if version == "v0":
        return MessageV0.try_compile(payer, instructions, tables, blockhash)
    return MessageV1.try_compile(payer, instructions, blockhash)


def unsigned(message: VersionedMessage) -> VersionedTransaction:
    """A transaction in which each slot waits for its signer."""
    return VersionedTransaction.populate(message, [UNSIGNED] * message.header.num_required_signatures)


def memo(text: bytes, *signers: Pubkey) -> Instruction:
    """An instruction that has signers and otherwise only bytes."""
    return Instruction(MEMO, text, [AccountMeta(signer, True, False) for signer in signers])


def memo_transaction(version: str, signers: Sequence[Pubkey], text: bytes = b"memo") -> VersionedTransaction:
    """A transaction that these have to sign; the first one pays."""
    return unsigned(message_of(version, signers[0], [memo(text, *signers)], Hash.new_unique()))


class Svm:
    """LiteSVM as the judge, with signature verification on. One thread."""

    def __init__(self, *funded: Pubkey) -> None:
        self.svm = LiteSVM()
        assert self.svm.get_sigverify()
        for account in funded:
            self.svm.airdrop(account, 10_000_000_000)

    def blockhash(self) -> Hash:
        """One on which nothing was built before."""
        self.svm.expire_blockhash()
        return self.svm.latest_blockhash()

    def table(self, *addresses: Pubkey) -> AddressLookupTableAccount:
        """A lookup table with these addresses, in use."""
        key = Pubkey.new_unique()
        head = (1).to_bytes(4, "little") + b"\xff" * 8 + bytes(8) + bytes(2) + bytes(32) + bytes(2)
        self.svm.set_account(key, Account(10_000_000_000, head + b"".join(map(bytes, addresses)), TABLES))
        self.svm.warp_to_slot(self.svm.get_clock().slot + 2)
        return AddressLookupTableAccount(key, list(addresses))

    def transfers(self, version: str, payer: Pubkey, count: int = 1) -> list[VersionedTransaction]:
        """Different transfers; those of version 0 look up to whom."""
        to, blockhash = Pubkey.new_unique(), self.blockhash()
        tables = [self.table(to)] if version == "v0" else []
        moves = [
            transfer(TransferParams(from_pubkey=payer, to_pubkey=to, lamports=1_000_000 + n)) for n in range(count)
        ]
        return [unsigned(message_of(version, payer, [move], blockhash, tables)) for move in moves]

    def refusal(self, transaction: VersionedTransaction) -> str | None:
        """Execute: None, or why that was refused."""
        result = self.svm.send_transaction(transaction)
        return str(result.err()) if isinstance(result, FailedTransactionMetadata) else None


@dataclass
class Member:
    """What is_available asks."""

    signs: bool
    public_key: bytes | None
    condition: str = "ready"


@dataclass
class SoftwareKeys:
    """Keys in this process with the methods of a key manager that hsmcore.solana calls."""

    current: Keypair = field(default_factory=Keypair)
    others: list[Keypair] = field(default_factory=list)
    asked: int = 0

    @property
    def public_key(self) -> bytes:
        return bytes(self.current.pubkey())

    def keys(self) -> list[KeyVersion]:
        return [
            KeyVersion(f"{number:02}", f"key-{number}", "ed25519", bytes(key.pubkey()), number)
            for number, key in enumerate([self.current, *self.others])
        ]

    def members(self) -> list[Member]:
        return [Member(True, self.public_key), Member(False, None)]

    def _sign(self, message: bytes, key_id: str | None) -> bytes | HsmError:
        if key_id not in (None, self.keys()[0].id):
            return KeyNotCurrent("another key signs")
        self.asked += 1
        return bytes(self.current.sign_message(message))

    async def sign(self, message: bytes, timeout: float | None = None, *, key_id: str | None = None) -> bytes:
        [answer] = await self.sign_many([message], timeout, key_id=key_id)
        assert isinstance(answer, bytes)
        return answer

    async def sign_many(
        self,
        messages: Iterable[bytes],
        timeout: float | None = None,
        return_exceptions: bool = False,
        key_id: str | None = None,
    ) -> list[bytes | HsmError]:
        del timeout
        answers = [self._sign(message, key_id) for message in messages]
        for answer in answers:
            if isinstance(answer, HsmError) and not return_exceptions:
                raise answer
        return answers
