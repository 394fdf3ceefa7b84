"""What a key may sign: kinds of payload, one digest for a position, callers, rules for transactions.

Reading order: guard, callers, wants, watermark, explain.

What a message is, native/src/payload.c says.
"""

from hsmcore.manager.policy.guard import Guard, Permit

__all__ = ["Guard", "Permit"]
