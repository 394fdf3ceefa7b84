"""Real Solana transactions: transfers from the sequencer's account, each one different from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from solders.hash import Hash
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

RECIPIENTS: Final = 64
FIRST_AMOUNT: Final = 1_000_000  # lamports; above the rent-exempt minimum of an empty account


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A transaction that waits for its signature."""

    message: MessageV0
    payload: bytes
    """What is signed: the message behind its version byte. bytes(message) lacks that byte, and a signature over it is
    refused."""
    recipient: Pubkey
    lamports: int

    def attach(self, signature: bytes) -> VersionedTransaction:
        """The transaction with a signature that came from somewhere else than a solders keypair."""
        return VersionedTransaction.populate(self.message, [Signature(signature)])


class TransferBuilder:
    """Builds transfers whose amounts rise by one lamport each, so that no two are the same under one blockhash."""

    def __init__(self, payer: Pubkey, recipients: int = RECIPIENTS) -> None:
        self.payer = payer
        self.built = 0
        self.recipients = [Pubkey.new_unique() for _ in range(recipients)]

    def build(self, blockhash: Hash, payer: Pubkey | None = None) -> Unsigned:
        """The next transfer, from another account if one is given. About 60 microseconds."""
        payer = payer or self.payer
        recipient = self.recipients[self.built % len(self.recipients)]
        lamports = FIRST_AMOUNT + self.built
        self.built += 1
        instruction = transfer(TransferParams(from_pubkey=payer, to_pubkey=recipient, lamports=lamports))
        message = MessageV0.try_compile(payer, [instruction], [], blockhash)
        return Unsigned(message, to_bytes_versioned(message), recipient, lamports)

    def funds_for(self, transactions: int) -> int:
        """Lamports that so many transfers take at most, fees and a rest that keeps the account alive included."""
        return transactions * (FIRST_AMOUNT + transactions + 10_000) + 1_000_000_000
