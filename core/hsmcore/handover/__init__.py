"""Handovers: the application's part of a rotation. `base` has the interface, `solana` ready-made ones."""

from hsmcore.handover.base import Handover, HandoverKey, Settled

__all__ = ["Handover", "HandoverKey", "Settled"]
