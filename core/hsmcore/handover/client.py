"""What a handover needs of a chain: four calls, so that a node, a gateway or LiteSVM can answer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hsmcore.errors import HsmError


class ChainRefused(HsmError):
    """The chain did not accept a transaction of a handover."""

    default_status = "REQUEST_REJECTED"
    default_hint = "Check the authority on chain, and that the fee payer has lamports."


@dataclass(frozen=True, slots=True)
class Account:
    """`owner`: 32 bytes; `data`: as it is on chain."""

    owner: bytes
    data: bytes


class SolanaClient(Protocol):
    """A view of one cluster. Every method raises HsmError when it cannot be answered."""

    async def account(self, address: bytes) -> Account | None:
        """An account as it is now, at the commitment that a handover may rely on ("finalized"); None if there is
        none."""

    async def blockhash(self) -> bytes:
        """A recent blockhash, 32 bytes."""

    async def settle(self) -> None:
        """Wait until every transaction that was sent before now has been executed or has expired for good."""

    async def execute(self, transaction: bytes) -> None:
        """Send a signed transaction and wait until it has been executed at that commitment. Raises ChainRefused."""
