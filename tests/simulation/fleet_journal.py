"""A host's audit log, in memory: as AuditLog, as far as a fleet asks it. What is in it outlives the process.

A record is durable at once: the device's worker writes it before its answer is passed on, as the native engine waits
for the disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from time import time_ns
from typing import Any

import orjson

from hsmcore._native import digest_of
from hsmcore.audit import AuditLog


class Lines:
    """What is on the host's disk."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []


class Log(AuditLog):
    """One process's."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(None)
        self._lines, self._found, self._is_open = lines, 0, False
        self.enabled = True

    async def open(self) -> None:
        self._found, self._is_open = len(self._lines.records), True

    async def close(self) -> None:
        self._is_open = False

    @property
    def journal(self) -> Any:
        return self if self._is_open else None

    @property
    def sealed_before(self) -> int:
        return self._found

    def record(self, operation: str, *, message: Any = None, **fields: Any) -> int | None:
        if not self._is_open:
            return None
        if message is not None:
            fields["message_sha256"] = digest_of(message).hex()
        return self._add(operation, fields)

    def _add(self, operation: str, fields: Mapping[str, Any]) -> int:
        seq = len(self._lines.records) + 1
        self._lines.records.append({"seq": seq, "time_ns": time_ns(), "operation": operation, **fields})
        return seq

    def signed(self, message: Any, extra: bytes | None, answer: Any) -> None:
        """A call of the device has ended."""
        said = {} if extra is None else orjson.loads(b"{" + extra[1:] + b"}")
        done = {"signature": answer.hex()} if isinstance(answer, bytes) else {"result": "error", "error": answer[0]}
        self._add("sign", {"result": "ok", "message_sha256": digest_of(message).hex(), **said, **done})

    def newest_ordered(self, most_bytes: int) -> Iterator[list[dict[str, Any]]]:
        del most_bytes
        if found := [dict(one) for one in reversed(self._lines.records) if "position" in one and "domain" in one]:
            yield found

    async def query(self, start: Any = None, end: Any = None, match: Any = None) -> AsyncIterator[dict[str, Any]]:
        del end
        for one in self._lines.records[:]:
            if one["time_ns"] / 1e9 >= (start or 0) and all(one.get(name) == value for name, value in match.items()):
                yield dict(one)

    async def cut_off(self, seconds: float, most: int) -> list[dict[str, Any]]:
        del seconds, most
        return []
