"""The four calls of a chain that a handover needs; a node, a gateway or LiteSVM can answer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hsmcore.errors import HsmError


class ChainRefused(HsmError, status="REQUEST_REJECTED"):
    """The chain refused a transaction of a handover."""

    default_hint = "Check the authority on chain, and that the fee payer has lamports."


@dataclass(frozen=True, slots=True)
class Account:
    """`owner`: 32 bytes; `data`: as on chain."""

    owner: bytes
    data: bytes


class SolanaClient(Protocol):
    """A view of one cluster. Every method raises HsmError if the call fails."""

    async def account(self, address: bytes) -> Account | None:
        """Return an account at the commitment that a handover may rely on ("finalized"); None if it does not exist."""

    async def blockhash(self) -> bytes:
        """Return a recent blockhash, 32 bytes."""

    async def settle(self) -> None:
        """Return when every transaction sent before this call has been executed or has expired."""

    async def execute(self, transaction: bytes) -> None:
        """Send a signed transaction and wait until it is executed at that commitment. Raises ChainRefused."""
