"""Compares a YubiHSM's own log with ours: drains it, keeps it, verifies its chain and matches signatures with records.

Entries and records are matched by key, length and order; the device logs no message and no time. A record is written
after its signature, so while a key manager signs, the newest entries and records may not match yet: they wait for the
next reading. A reading while nothing is signed finds every entry and record without a counterpart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.config import Provider
from hsmcore.providers.yubihsm.chain import ChainFinding, Joined, LogEntry, join
from hsmcore.providers.yubihsm.drain import drain
from hsmcore.providers.yubihsm.settings import YubiHsmSettings
from hsmcore.providers.yubihsm.store import EntryStore, opened

KEY_TEST_BYTES: Final = 48
"""Bytes that the engine signs to prove a key (`prove` in engine.c); that signature is not recorded."""
WAIT_SECONDS: Final = 2.0
"""Seconds that a reading waits for the records of its signatures."""
GRACE_NS: Final = 10 * 10**9
"""Most nanoseconds by which the clocks of record and reading may differ."""
_KEPT: Final = ("seq", "time_ns", "operation", "result", "key_id", "message_bytes")


@dataclass
class DeviceReport:
    """The result of one reading."""

    member: str
    serial: int | None = None
    first_reading: bool = False
    new_entries: int = 0
    matched: int = 0
    key_tests: int = 0
    """Signatures that have the form of the engine's proof of a key."""
    waiting: int = 0
    """Records whose entry is expected by the next reading."""
    commands: Counter[str] = field(default_factory=Counter)
    findings: list[ChainFinding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "member": self.member,
            "serial": self.serial,
            "firstReading": self.first_reading,
            "newEntries": self.new_entries,
            "matched": self.matched,
            "keyTests": self.key_tests,
            "waiting": self.waiting,
            "commands": dict(sorted(self.commands.items())),
            "findings": [{"kind": f.kind, "number": f.number, "detail": f.detail} for f in self.findings],
        }


async def examine(provider: Provider, layout: Layout) -> DeviceReport:
    """Drain and examine the log of a member with one device. Raises HsmError, SegmentError, OSError."""
    settings = provider.config
    if not isinstance(settings, YubiHsmSettings):
        raise TypeError(provider.type)
    report = DeviceReport(provider.name)
    with opened(layout, provider.name) as store:
        begun_ns = time.time_ns()
        report.findings += store.findings
        result = await drain(settings, store.anchor, store.keep)
        report.serial = None if result.anchor is None else result.anchor.serial
        report.new_entries = len(result.entries)
        report.commands.update(entry.name for entry in result.entries)
        # `verify` checks all kept entries, so it repeats the findings about the new ones.
        lines, known = store.verify()
        report.findings += known + [found for found in result.findings if found not in known]
        examiner = _Joiner(store, layout, provider.name, settings, begun_ns)
        await examiner.run(report, lines)
    return report


class _Joiner:
    def __init__(
        self, store: EntryStore, layout: Layout, member: str, settings: YubiHsmSettings, begun_ns: int
    ) -> None:
        self._store, self._layout, self._member, self._settings = store, layout, member, settings
        self._begun_ns = begun_ns

    async def run(self, report: DeviceReport, lines: int) -> None:
        store = self._store
        if store.progress.begun_ns == 0:
            await self._begin(report, lines)
            return
        entries = list(store.entries(store.progress.joined))
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            records = await asyncio.to_thread(self._records)
            joined = join(entries, records, auth_key_id=self._settings.auth_key_id)
            unexplained = [entry for entry in joined.only_device if not self._explained(entry)]
            if not unexplained or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        report.matched = len(joined.pairs)
        report.key_tests = len(joined.only_device) - len(unexplained)
        report.findings += map(self._unrecorded, unexplained)
        forgiven, late = self._missing(joined, report)
        store.advance(
            slack=store.progress.slack - forgiven,
            joined=lines,
            seq=max([store.progress.seq, *(record["seq"] for record in records)]),
            since_ns=self._begun_ns - GRACE_NS,
            left=tuple({name: record.get(name) for name in _KEPT} for record in late),
        )

    async def _begin(self, report: DeviceReport, lines: int) -> None:
        """Begin with the first reading, which trusts all entries so far."""
        report.first_reading = True
        self._store.advance(begun_ns=self._begun_ns, since_ns=self._begun_ns)
        await asyncio.sleep(WAIT_SECONDS)
        under_way = await asyncio.to_thread(self._records)
        last = max((record["seq"] for record in under_way), default=0)
        self._store.advance(joined=lines, slack=min(len(under_way), int(self._settings.sessions)), slack_seq=last)

    def _records(self) -> list[dict[str, Any]]:
        """Return our records that were not joined yet, oldest first."""
        progress = self._store.progress
        query = Query(
            self._layout, progress.since_ns / 1e9, None, {"operation": "sign", "result": "ok", "member": self._member}
        )
        found = [record for block in query.blocks() for record in block]
        begun = progress.begun_ns
        return [
            *map(dict, progress.left),
            *(record for record in found if record["seq"] > progress.seq and record["time_ns"] >= begun),
        ]

    def _explained(self, entry: LogEntry) -> bool:
        """Return whether an entry may be the engine's proof of a key."""
        own = entry.session_key == self._settings.auth_key_id
        return own and entry.message_bytes in (None, KEY_TEST_BYTES)

    def _unrecorded(self, entry: LogEntry) -> ChainFinding:
        who = f"user {entry.session_key:#06x} signed with key {entry.target_key:#06x}"
        if entry.session_key != self._settings.auth_key_id:
            return ChainFinding("foreign", entry.number, f"{who}, which is not the user of the configuration")
        return ChainFinding("unrecorded", entry.number, f"{who}, and there is no record of it")

    def _missing(self, joined: Joined, report: DeviceReport) -> tuple[int, list[Any]]:
        """Report records that should have an entry by now. Return how many are forgiven, because they were written
        during the first reading, and those whose entry may still come."""
        settled = [r for r in joined.only_ours if r["time_ns"] <= self._begun_ns - GRACE_NS]
        late = [r for r in joined.only_ours if r["time_ns"] > self._begun_ns - GRACE_NS]
        progress = self._store.progress
        forgiven = [r for r in settled if r["seq"] <= progress.slack_seq][: progress.slack]
        for record in [record for record in settled if record not in forgiven]:
            detail = f"record {record['seq']} speaks of a signature that the device's log does not have"
            report.findings.append(ChainFinding("missing", 0, detail))
        report.waiting = len(late)
        return len(forgiven), late
