"""What is wrong with a request for a load test."""

from __future__ import annotations


class UsageProblem(ValueError):
    """An option cannot be meant; the text names it and says what it may be."""
