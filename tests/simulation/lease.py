"""`Lease` of the binding, in Python, by the world's clock."""

from __future__ import annotations

from hsmcore.base.steady import boottime
from hsmcore.errors import HsmError, NotHolder, error_of


class Lease:
    def __init__(self) -> None:
        self.until = self.epoch = 0
        self.holder = self.reason = ""

    @property
    def is_over(self) -> bool:
        return boottime() >= self.until

    def refusal(self, member: str | None = None) -> HsmError:
        error = error_of("NOT_HOLDER", member=member, detail=self.reason or "its renewal is late")
        assert isinstance(error, NotHolder)
        error.holder, error.epoch = self.holder, self.epoch
        return error
