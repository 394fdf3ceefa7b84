"""Handovers: what is told of a new key before it signs. `base` says what one is; `solana` has ready ones."""

from hsmcore.handover.base import Handover, HandoverKey

__all__ = ["Handover", "HandoverKey"]
