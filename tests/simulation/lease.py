"""`Lease` of the binding, in Python, by the world's clock."""

from __future__ import annotations

from typing import Any

from hsmcore.base.steady import boottime
from hsmcore.errors import HsmError, NotHolder, error_of


class Lease:
    def __init__(self) -> None:
        self.until = self.epoch = 0
        self.holder = self.reason = ""
        self.wake: Any = None
        self.tables: list[Any] = []
        self.round = self.waiting = 0
        self.told: list[bool] = []

    def confirm_each(self, wake: Any) -> None:
        self.wake = wake

    @property
    def awaited(self) -> int:
        return sum(len(table.awaiting) for table in self.tables)

    def begin_round(self) -> int:
        self.round += 1
        self.waiting, self.told = 0, []
        return self.round

    def end_round(self, number: int) -> None:
        for table in [*self.tables]:
            table.confirm(number)

    def look(self, being_made: int) -> None:
        hurries = being_made <= self.waiting
        if not self.told or (hurries and True not in self.told):
            self.told.append(hurries)
            self.wake(hurries)

    @property
    def is_over(self) -> bool:
        return boottime() >= self.until

    def refusal(self, member: str | None = None) -> HsmError:
        error = error_of("NOT_HOLDER", member=member, detail=self.reason or "its renewal is late")
        assert isinstance(error, NotHolder)
        error.holder, error.epoch = self.holder, self.epoch
        return error
