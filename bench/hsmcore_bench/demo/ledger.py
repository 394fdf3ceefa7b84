"""The judge: LiteSVM, Solana's own runtime in this process, with signature verification on.

It is called on the event loop's thread, a few transactions at a time, between the phases in which signatures are in
flight. A thread of its own would not help: LiteSVM lets the interpreter go and takes it back within one call, so a
thread that executes a batch keeps the event loop out until the batch ends (measured: 340 ms for 4,000 transactions).
A sequencer that has to execute while it signs gives execution a process of its own.
"""

from __future__ import annotations

from typing import Final

from solders.account import Account
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata
from solders.transaction_status import TransactionErrorInstructionError

from hsmcore.errors import SystemFailure

RENT: Final = 10_000_000  # lamports; keeps a small account alive
LEAST_HISTORY: Final = 64  # LiteSVM 0.15 takes a capacity of 32 or less for none at all and then accepts duplicates


class LedgerError(SystemFailure):
    """The ledger could not be set up."""

    default_hint = "Install another version of solders."


class Ledger:
    """Accounts, and the runtime that changes them. One thread."""

    def __init__(self, history: int) -> None:
        """The last `history` transactions are remembered: sending one of them again is refused as a duplicate."""
        self._svm = LiteSVM().with_transaction_history(max(history, LEAST_HISTORY))
        if not self._svm.get_sigverify():
            raise LedgerError("LiteSVM does not verify signatures")
        self.fees = 0

    def fund(self, account: Pubkey, lamports: int) -> None:
        result = self._svm.airdrop(account, lamports)
        if isinstance(result, FailedTransactionMetadata):
            raise LedgerError(f"funding the account failed: {_reason(result)}")

    def balance(self, account: Pubkey) -> int:
        """Lamports."""
        return self._svm.get_balance(account) or 0

    def account(self, address: Pubkey) -> tuple[bytes, bytes] | None:
        """Owner and data."""
        found = self._svm.get_account(address)
        return None if found is None else (bytes(found.owner), bytes(found.data))

    def put(self, address: Pubkey, owner: Pubkey, data: bytes) -> None:
        """Have an account there from the beginning."""
        self._svm.set_account(address, Account(RENT, data, owner))

    def blockhash(self) -> Hash:
        return self._svm.latest_blockhash()

    def next_block(self) -> None:
        """Expire the blockhash; transactions built on it are refused from now on."""
        self._svm.expire_blockhash()

    def execute(self, transaction: VersionedTransaction) -> str | None:
        """Verify the signature, then run the transaction: None, or why it was refused. About 70 microseconds."""
        result = self._svm.send_transaction(transaction)
        if isinstance(result, FailedTransactionMetadata):
            return _reason(result)
        self.fees += result.fee()
        return None


def _reason(result: FailedTransactionMetadata) -> str:
    error = result.err()
    if isinstance(error, TransactionErrorInstructionError):
        return f"InstructionError {str(error.err).rpartition('.')[2].removeprefix('InstructionError')}"
    return str(error).rpartition(".")[2]
