"""Readings apart from signing: emergency budget, rotation, backups, the fleet, the audit log and the disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

from hsmcore.fleet.machine import State
from hsmcore.manager.describe import Snapshot
from hsmcore.metrics import catalog as names
from hsmcore.metrics.reading import Buckets, Reading
from hsmcore.state.sealed_rows import SEALED

_NS: Final = 1_000_000_000


def read_background(reading: Reading, snapshot: Snapshot) -> None:
    """Read the metrics of everything but signing."""
    if snapshot.open:
        _read_emergency(reading, snapshot)
        _read_rotation(reading, snapshot)
        _read_policy(reading, snapshot)
        _read_batches(reading, snapshot)
        _read_fleet(reading, snapshot)
        _read_public_logs(reading, snapshot)
        if snapshot.store is not None:
            scopes = [] if snapshot.config.state_secret is None else [*SEALED]
            scopes += ["file"] if snapshot.config.key_manager.fleet is None else []
            for scope in scopes:
                reading.add(names.STORE_NOT_GENUINE, int(scope in snapshot.store), scope)
    _read_audit(reading, snapshot)
    if snapshot.state_backups is not None:
        seen = snapshot.state_backups.seen
        reading.add(names.STATE_BACKUP, seen.backup)
        reading.add(names.STATE_BACKUP_DUE, snapshot.state_backups.due)
        reading.add(names.STATE_DRILL, seen.drill)
        reading.add(names.STATE_BACKUP_FAILING, int(seen.failing))
    for use, path in _places(snapshot):
        _read_disk(reading, use, path)


def _read_emergency(reading: Reading, snapshot: Snapshot) -> None:
    budget = None if snapshot.levels is None else snapshot.levels.budget.seen
    if budget is None:
        return
    reading.add(names.EMERGENCY_LEFT, 0 if budget.expired else budget.left)
    reading.add(names.EMERGENCY_LIMIT, budget.max_transactions)
    if budget.expires_ns is not None:
        reading.add(names.EMERGENCY_EXPIRES, budget.expires_ns / _NS)


def _read_rotation(reading: Reading, snapshot: Snapshot) -> None:
    seen = None if snapshot.rotation is None else snapshot.rotation.seen
    if seen is None:
        return
    reading.add(names.KEY_CREATED, seen.created_ns / _NS)
    reading.add(names.ROTATION_DUE, seen.due_ns / _NS)
    reading.add(names.ROTATION_RUNNING, int(seen.running))
    reading.add(names.ROTATION_FAILURES, seen.failures)
    if seen.backups:
        reading.add(names.BACKUP, (seen.backup_ns or 0) / _NS)
        reading.add(names.DRILL, (seen.drill_ns or 0) / _NS)


def _read_policy(reading: Reading, snapshot: Snapshot) -> None:
    guard = snapshot.guard
    if guard is None:
        return
    for kind, count in guard.refused.copy().items():
        if kind != "double-sign":
            reading.add(names.POLICY_REFUSED, count, kind)
    reading.add(names.DOUBLE_SIGN, guard.refused["double-sign"])
    reading.add(names.POSITIONS_BOUND, 0 if guard.watermark is None else guard.watermark.bound)


def _read_batches(reading: Reading, snapshot: Snapshot) -> None:
    figures = snapshot.batches
    if figures is None:
        return
    for reason, count in figures.closed.copy().items():
        reading.add(names.BATCHES, count, reason)
    reading.add(names.BATCH_FAILURES, figures.failed)
    reading.add(names.BATCH_MESSAGES, figures.messages)
    reading.add(names.BATCH_WAITING, figures.waiting)
    reading.add(names.BATCH_SECONDS, Buckets.of(figures.times.octaves(), figures.times.sum))


def _read_fleet(reading: Reading, snapshot: Snapshot) -> None:
    fleet = snapshot.fleet
    if fleet is None:
        return
    present = fleet.state
    for state in get_args(State):
        reading.add(names.FLEET_STATE, int(state == present), fleet.name, state)
    reading.add(names.FLEET_UNORDERED, 1, fleet.name, fleet.unordered)
    reading.add(names.FLEET_EPOCH, fleet.epoch, fleet.name)
    reading.add(names.FLEET_LEASE, fleet.lease_seconds, fleet.name)
    reading.add(names.FLEET_INCIDENT, fleet.incident, fleet.name)
    reading.add(names.FLEET_FAILED, fleet.renewals_failed, fleet.name)
    reading.add(names.FLEET_CLAIMS, fleet.claims, fleet.name)
    for certificate, at in ({} if fleet.duties is None else fleet.duties.certificates).items():
        reading.add(names.FLEET_CERTIFICATE, at, fleet.name, certificate)


def _read_audit(reading: Reading, snapshot: Snapshot) -> None:
    status = snapshot.audit.status
    if status is None:
        return
    reading.add(names.AUDIT_RECORDS, status.last_seq)
    reading.add(names.AUDIT_LAG, status.last_seq - status.kept_seq)
    reading.add(names.AUDIT_LAG_SECONDS, status.oldest_ns / _NS)
    reading.add(names.AUDIT_PENDING, status.pending_bytes)
    reading.add(names.AUDIT_COMMIT, Buckets.of(status.commits, status.commits_ns))
    reading.add(names.AUDIT_FAILING, int(status.failing))
    reading.add(names.AUDIT_UNSEALED, max(status.kept_seq - status.sealed, 0))
    reading.add(names.AUDIT_OVERDUE, status.overdue_s)
    for destination, shipped in snapshot.audit.shipping.items():
        reading.add(names.SHIPPING_LAG, shipped.lag_records, destination)
        reading.add(names.SHIPPING_FAILING, int(shipped.error is not None), destination)
    for witness, asked in snapshot.audit.witnesses.items():
        reading.add(names.WITNESSED, asked.size, witness)
        reading.add(names.WITNESS_FAILING, int(asked.error is not None), witness)
    if snapshot.audit.cosigned_at is not None:
        reading.add(names.QUORUM_TIME, snapshot.audit.cosigned_at)


def _read_public_logs(reading: Reading, snapshot: Snapshot) -> None:
    for domain, log in ({} if snapshot.logs is None else snapshot.logs.status()).items():
        reading.add(names.PUBLISHED, log["published"], domain)
        if log["waiting"] is not None:
            reading.add(names.PUBLISH_WAITING, log["waiting"], domain)
        if log["cosignedAt"] is not None:
            reading.add(names.PUBLISH_QUORUM_TIME, log["cosignedAt"], domain)
            for witness, asked in log["witnesses"].items():
                reading.add(names.PUBLISH_WITNESS_FAILING, int(asked["error"] is not None), domain, witness)


def _places(snapshot: Snapshot) -> Iterator[tuple[str, Path]]:
    """Yield the use and the path of each file that grows."""
    if snapshot.audit.file is not None:
        yield "audit", snapshot.audit.file
    rules = snapshot.config.key_manager
    if rules.keeps_state and rules.fleet is None:
        yield "state", Path(rules.state_path)


def _read_disk(reading: Reading, use: str, path: Path) -> None:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return  # other metrics show that nothing can be written there
    reading.add(names.DISK_FREE, found.f_bavail * found.f_frsize, use)
    reading.add(names.DISK_SIZE, found.f_blocks * found.f_frsize, use)
