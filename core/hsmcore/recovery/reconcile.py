"""Raise an older state store to what its audit log says: positions, emergency budget, bindings of messages to keys.

The key ring cannot be put back from the log: the tokens and the chain say which key signs now. Later changes of the
ring are shown, and an operator confirms that they were compared.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from hsmcore.audit import AuditLog
from hsmcore.config import Config
from hsmcore.errors import BadArgument, ConfigFault, ConfigurationError
from hsmcore.failover.bindings import StoredBindings, lately_unsure
from hsmcore.failover.budget import Emergency
from hsmcore.recovery.marks import Marks, witness_of
from hsmcore.recovery.own_store import register
from hsmcore.state import Store
from hsmcore.state.sqlite import set_number

RING: Final = (
    "rotation-begun", "key-rotated", "rotation-failed", "rotation-aborted", "set-current-key", "generate-key",
    "deactivate-key",
)  # fmt: skip
"""Operations that change the key ring."""
_SHOWN: Final = ("seq", "time_ns", "operation", "key_id", "previous", "rotation_id")


async def reconcile(config: Config, *, ring_compared: bool) -> dict[str, Any]:
    """Raise the store; nothing is lowered. Returns what was done, as data for JSON. Raises BadArgument if the key ring
    changed since and it was not compared, ConfigurationError without audit log and state store, StoreError,
    AuditUnavailable."""
    if not witness_of(config):
        rules = config.key_manager
        fault = ConfigFault(rules.where, "has no audit log, or keeps nothing in a state store")
        raise ConfigurationError.of([fault], hint="A fleet is reconciled by its hosts; see docs/RECOVERY.md.")
    log = AuditLog.of(config.key_manager)
    store = await Store.open(config.key_manager.state_place, config.state_secret)
    try:
        alone = Marks(store, log, config)
        standing = await alone.standing()
        since = standing.since_ns
        ring = [record for name in RING for record in await _records(log, since, operation=name)]
        ring = sorted(({k: r[k] for k in _SHOWN if k in r} for r in ring), key=lambda record: int(record["seq"]))
        if ring and not ring_compared:
            last = ring[-1]
            raise BadArgument(
                f"the key ring changed {len(ring)} times since; last {last['operation']} (record {last['seq']})",
                hint="Compare `hsmcore rotate status` with the log's records and the chain, then: --ring-compared.",
            )
        used, left = list[dict[str, Any]](), None
        # Nothing but a checkpoint vouches for these records; a store without a seal believes any.
        last_seq = log.sealed_before if store.attest() else None
        if config.has_emergency and standing.problem:
            used = await _records(log, max(since, await _last_reset(log)), operation="sign", level="emergency")
            used = [record for record in used if last_seq is None or record["seq"] <= last_seq]
        if used:
            left = await Emergency.of(config, store).count(len(used), used[0]["time_ns"])
        stored = StoredBindings(store)
        await stored.clock.follow()
        unsure = await lately_unsure(log, stored.clock.sure(), last_seq)
        if unsure:
            await stored.keep(unsure)
        added, conflicts, floors = await alone.reconcile(standing)
        number = await asyncio.to_thread(register().number_at, config.key_manager.state_path)
        await store.run(lambda connection: set_number(connection, number))
    finally:
        await store.close()
    return {
        "problem": standing.problem,
        "added": added,
        "conflicts": conflicts,
        "floors": floors,
        "emergencySignatures": len(used),
        "emergencyLeft": left,
        "keyBindings": len(unsure),
        "ring": ring,
    }


async def _records(log: AuditLog, since_ns: int, **match: str) -> list[dict[str, Any]]:
    return [record async for record in log.query(since_ns / 1e9, None, {**match, **log.mark})]


async def _last_reset(log: AuditLog) -> int:
    found = await _records(log, 0, operation="emergency-reset")
    return int(found[-1]["time_ns"]) if found else 0
