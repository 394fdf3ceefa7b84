"""The example sequencer: build, sign, execute, block after block; with the yardstick measured in between.

One block is: build transfers, let the raw C loop run for as long as signing will take, sign with many in flight, hand
the signed transactions to the ledger. The phases take turns on purpose: the signing rate is that of the signing phases
alone, and the raw rate beside it comes from the same seconds of the same machine. The order of the two alternates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from solders.signature import Signature
from solders.transaction import VersionedTransaction

from hsmcore_bench.demo.builder import TransferBuilder, Unsigned
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.rawloop import RawLoop
from hsmcore_bench.demo.signing import Phase, Signer, sign_all

BLOCK: Final = 2_000  # transactions
CHUNK: Final = 32  # built or executed before the event loop gets its turn: about 2 ms
RAW_SECONDS: Final = 0.1  # the least that a slice of the raw loop lasts


@dataclass(slots=True)
class Outcome:
    """What happened to every transaction, and how fast they were signed."""

    built: int = 0
    executed: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """By the ledger's reason."""
    failed: dict[str, int] = field(default_factory=dict)
    """Signing ended in an error, by the error's name: nothing was sent to the ledger."""
    latencies_ns: list[int] = field(default_factory=list)
    signing_ns: int = 0
    raw_rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Ours to raw, one for each block."""
    tampered: str | None = None
    """Why the ledger refused the transaction with the flipped bit; None: it did not, or that was not tried."""
    intact_accepted: bool = False
    """Whether the same transaction with its true signature was accepted afterwards."""
    books_balance: bool = False
    """Whether every lamport is where the executed transactions put it."""

    @property
    def lost(self) -> int:
        """Transactions that ended in no way at all."""
        return self.built - self.executed - sum(self.refused.values()) - sum(self.failed.values())

    @property
    def complete(self) -> bool:
        """Whether every transaction was executed, and nothing else happened to the books."""
        return self.executed == self.built > 0 and self.lost == 0 and self.books_balance

    def counts(self) -> dict[str, Any]:
        """What became of the transactions, for --json."""
        return {
            "built": self.built,
            "executed": self.executed,
            "refused": self.refused,
            "failed": self.failed,
            "lost": self.lost,
            "booksBalance": self.books_balance,
        }

    @property
    def good(self) -> bool:
        return self.complete and self.tampered == "SignatureFailure" and self.intact_accepted


class Sequencer:
    """Runs blocks on one ledger. Belongs to one event loop."""

    def __init__(
        self, signer: Signer, builder: TransferBuilder, ledger: Ledger, raw: RawLoop | None, in_flight: int
    ) -> None:
        self._signer, self.builder, self.ledger, self._raw = signer, builder, ledger, raw
        self._in_flight = in_flight
        self.payers = [builder.payer]
        """The accounts that transfers and fees come from."""
        self._funded = 0
        self._paid: dict[str, int] = {}

    async def run(self, transactions: int, advance: Callable[[int], None]) -> Outcome:
        """Fund the account, run all blocks, flip a bit, check the books. `advance` hears of executed transactions."""
        outcome = Outcome()
        self.fund(transactions)
        for number, size in enumerate(_sizes(transactions)):
            await self._block(number, size, outcome, advance)
        if outcome.executed:
            await self._tamper(outcome)
        outcome.books_balance = self.balanced()
        return outcome

    def fund(self, transactions: int) -> None:
        """Give the account what so many transactions need."""
        self._funded = self.builder.funds_for(transactions)
        self.ledger.fund(self.builder.payer, self._funded)

    async def _block(self, number: int, size: int, outcome: Outcome, advance: Callable[[int], None]) -> None:
        blockhash = self.ledger.blockhash()
        unsigned = [self.builder.build(blockhash) async for _ in _yielding(size)]
        outcome.built += size
        raw_first = number % 2 == 0
        expected = outcome.signing_ns / 1e9 / max(1, len(outcome.latencies_ns)) * size
        before = await self._raw_rate(expected) if raw_first else None
        phase = await sign_all(self._signer, [transfer.payload for transfer in unsigned], self._in_flight)
        raw_rate = before if raw_first else await self._raw_rate(phase.elapsed_ns / 1e9)
        _count(phase, raw_rate, outcome)
        pairs = list(zip(unsigned, phase.signatures, strict=True))
        async for index in _yielding(size):
            transfer, signature = pairs[index]
            if signature is not None:
                self.execute(transfer, transfer.attach(signature), outcome)
                advance(1)
        self.ledger.next_block()

    async def _raw_rate(self, seconds: float) -> float | None:
        return await self._raw.rate(max(seconds, RAW_SECONDS)) if self._raw is not None else None

    def execute(self, transfer: Unsigned, transaction: VersionedTransaction, outcome: Outcome) -> None:
        """Hand a signed transaction to the ledger."""
        reason = self.ledger.execute(transaction)
        if reason is None:
            outcome.executed += 1
            account = str(transfer.recipient)
            self._paid[account] = self._paid.get(account, 0) + transfer.lamports
        else:
            outcome.refused[reason] = outcome.refused.get(reason, 0) + 1

    async def _tamper(self, outcome: Outcome) -> None:
        """One more transaction, first with one bit of its signature flipped, then as it was signed."""
        transfer = self.builder.build(self.ledger.blockhash())
        phase = await sign_all(self._signer, [transfer.payload], 1)
        signature = phase.signatures[0]
        if signature is None:
            return
        flipped = bytes([signature[0] ^ 1]) + signature[1:]
        outcome.tampered = self.ledger.execute(VersionedTransaction.populate(transfer.message, [Signature(flipped)]))
        extra = Outcome()
        self.execute(transfer, transfer.attach(signature), extra)
        outcome.intact_accepted = extra.executed == 1

    def balanced(self) -> bool:
        """Whether every lamport is where the executed transactions put it."""
        recipients = self.builder.recipients
        arrived = {str(account): self.ledger.balance(account) for account in recipients}
        rest = self._funded - sum(self._paid.values()) - self.ledger.fees
        return arrived == {str(account): self._paid.get(str(account), 0) for account in recipients} and (
            sum(map(self.ledger.balance, self.payers)) == rest
        )


def _count(phase: Phase, raw_rate: float | None, outcome: Outcome) -> None:
    outcome.latencies_ns += phase.latencies_ns
    outcome.signing_ns += phase.elapsed_ns
    for error in phase.errors:
        name = type(error).__name__
        outcome.failed[name] = outcome.failed.get(name, 0) + 1
    if raw_rate:
        outcome.raw_rates.append(raw_rate)
        outcome.ratios.append(phase.rate / raw_rate)


def _sizes(transactions: int) -> list[int]:
    """Blocks of one size, or a little more in each, so that the last one is no leftover."""
    blocks = max(1, transactions // BLOCK)
    return [transactions // blocks + (number < transactions % blocks) for number in range(blocks)]


async def _yielding(count: int) -> AsyncIterator[int]:
    """0 .. count - 1, giving the event loop a turn every CHUNK."""
    for index in range(count):
        if index % CHUNK == CHUNK - 1:
            await asyncio.sleep(0)
        yield index
