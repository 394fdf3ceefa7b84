"""Which members have started once as they are configured now. What keeps one of these from a later start is a fault of
this one member, and costs this one; before, it may be a mistake in the configuration, and the start fails."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import orjson

from hsmcore.config import Config, Provider
from hsmcore.state import Desired

_REPORT: Final = "started"


class Started:
    """In the state store, as digests of each member's configuration, which hold no secret. It is not sealed: its writer
    can make a first start as tolerant as a later one. Belongs to the event loop."""

    def __init__(self, desired: Desired, configured: Config) -> None:
        self._desired = desired
        self._now = {member.name: _digest(member) for _, member in configured.key_manager.members()}
        self._known: dict[str, str] = {}

    async def read(self) -> None:
        """Read what is known. Raises StoreError."""
        reports = [report[_REPORT] for report in await self._desired.reports() if _REPORT in report]
        self._known = next((one for one in reports if isinstance(one, dict)), {})

    def has(self, member: str) -> bool:
        """Whether the member has started before as it is configured."""
        return member in self._now and self._known.get(member) == self._now[member]

    async def note(self, running: Iterable[str]) -> None:
        """Remember that these members run. Raises StoreError."""
        new = [name for name in running if name in self._now and not self.has(name)]
        if new:
            await self.read()  # other hosts of a fleet write it, too
            known = {**self._known, **{name: self._now[name] for name in new}}
            await self._desired.report(_REPORT, {_REPORT: known})
            self._known = known


def _digest(member: Provider) -> str:
    given = member.config.model_dump(mode="json", by_alias=True, exclude_unset=True)  # defaults may be this machine's
    return hashlib.sha256(orjson.dumps([member.type, given], option=orjson.OPT_SORT_KEYS)).hexdigest()
