"""Whether a key may bind positions as the configuration says, before it signs; and the operator's word that it may.

The state store has a row of each key that has bound (state/domains.py). The audit log is the second witness: each
record of a payload with a position has key and domain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

from sqlalchemy import Connection, update

from hsmcore.audit import AuditLog
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.recovery.own_store import register
from hsmcore.recovery.witness import MOST_BYTES, LoggedRows
from hsmcore.state import Store, StoreBusy, StoreError, domains, positions, presence
from hsmcore.state.domains import KeyDomain
from hsmcore.state.schema import FLEET
from hsmcore.state.sqlite import domain_in
from hsmcore.state.store import now_ns


def wanted_of(rules: KeyManagerConfig) -> KeyDomain:
    """Return what a configuration says of the keys that sign."""
    policy, where = rules.policy, f"{rules.where}.policy"
    return KeyDomain("", (), where) if policy is None else KeyDomain(policy.domain, policy.forms, where)


async def require(config: Config, keys: Iterable[bytes], log: AuditLog | None = None) -> None:
    """Raise DomainMismatch for a key that has bound positions otherwise than the configuration says, as the store says,
    or the `log` of a key that the store does not know. The seal is not looked at: what is bound is under it. Raises
    StoreError, AuditUnavailable."""
    rules, wanted = config.key_manager, wanted_of(config.key_manager)
    if not rules.keeps_state:
        await asyncio.to_thread(_require_of_files, rules, wanted, keys)
        return
    store = await Store.open(rules.state_place, config.state_secret)
    try:
        there = await store.run(domains.everything, shows=True)
        wanted.require(there, keys)
        unknown = {key for key in keys if key not in there}
        if log is not None and wanted.forms and unknown:
            wanted.require(await _logged(store, log, unknown), unknown, "the audit log")
    finally:
        await store.close()


async def _logged(store: Store, log: AuditLog, keys: set[bytes]) -> dict[bytes, KeyDomain]:
    """Return in which domain keys have bound last, as the log says of as many of these as it knows."""
    await log.flush()
    logged = LoggedRows(store, log, "", MOST_BYTES)
    while not logged.ended and not keys <= logged.domains.keys():
        await logged.portion()
    return {key: KeyDomain(domain, ()) for key, domain in logged.domains.items()}


def _require_of_files(rules: KeyManagerConfig, wanted: KeyDomain, keys: Iterable[bytes]) -> None:
    """Look into the stores of this host, where the key manager keeps nothing."""
    for key in keys:
        paths = [rules.state_path]
        with suppress(StoreError):  # a store that keeps a promise says so
            known = register().read(key)
            paths += [] if known is None else [known.store]
        for path in paths:
            wanted.require(domains.read(domain_in(path, key)), [key], f"state store {path}")


async def rebind(config: Config, store: Store, keys: Sequence[bytes], reason: str) -> dict[bytes, KeyDomain | None]:
    """Have keys, of all that the store knows without `keys`, bind as the configuration says from now on. Returns those
    that did not, with what was there. On one host no key manager may run; in a fleet the epoch ends. Raises StoreBusy,
    StoreError."""
    rules, wanted = config.key_manager, wanted_of(config.key_manager)

    def work(connection: Connection) -> dict[bytes, KeyDomain | None]:
        positions.keep_holders_out(connection)
        changed = domains.rebind(connection, wanted, keys, reason, now_ns(connection))
        if rules.fleet is not None and changed:
            # A holder that bound before is one no more, and its lease is waited for; the next one looks at the rows.
            ended = {"epoch": FLEET.c.epoch + 1, "holder": "policy rebind", "host": "", "renewals": 0, "released": 0}
            connection.execute(update(FLEET).where(FLEET.c.name == rules.fleet.name).values(**ended))
        return changed

    with ExitStack() as held:
        if rules.fleet is None and not held.enter_context(presence.unattended(rules.state_path)):
            raise StoreBusy("a key manager runs on the state store", hint="Stop it, and give the command again.")
        return await store.run(work)
