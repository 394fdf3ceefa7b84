"""The probes of all providers of a configuration, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from itertools import chain
from typing import cast

from hsmcore.base.receipt import LevelName
from hsmcore.base.version import __version__
from hsmcore.config import Config, Provider
from hsmcore.doctor.common import check_emergency, check_notices, check_policy
from hsmcore.doctor.fleet import check_fleet
from hsmcore.doctor.fleet_store import check_fleet_store
from hsmcore.doctor.places import check_listening, check_places, check_tokens
from hsmcore.doctor.report import DoctorReport, Identity, ProviderReport, Step, failed, ok
from hsmcore.doctor.store import check_store
from hsmcore.doctor.subject import CheckBegun, Options, Probe, Subject
from hsmcore.errors import HsmError
from hsmcore.manager.rotation.pinned import as_started, may_have_ring
from hsmcore.state.keys import active_of

_SHARED = (
    check_fleet_store,
    check_fleet,
    check_store,
    check_places,
    check_listening,
    check_tokens,
    check_policy,
    check_emergency,
    check_notices,
)

Watcher = Callable[[LevelName, Provider, Step | CheckBegun | None], None]
"""Called with None for each provider, then with each of its events."""


def diagnose(
    config: Config,
    options: Options | None = None,
    *,
    members: Iterable[tuple[LevelName, Provider]] | None = None,
    watch: Watcher = lambda _level, _provider, _event: None,
) -> DoctorReport:
    """Probe `members` (default: all of them). Blocks; no event loop may run in this thread.

    The key that is examined is the key ring's current one, where there is a ring. An HsmError of a probe becomes a step
    of the report. The shared parts (state store, audit log, backups, policy, fleet) are checked with the first
    provider.
    """
    reports: list[ProviderReport] = []
    current, ring = _ring(config)
    signing = {provider.name: provider for _, provider in current.key_manager.members()}
    for level, given in members if members is not None else config.key_manager.members():
        provider = signing.get(given.name, given)
        watch(level, provider, None)
        steps, identity = _probed(Subject(provider, current, level, options or Options()), watch)
        for step in () if reports else chain(ring, *(check(config) for check in _SHARED)):
            steps.append(step)
            watch(level, provider, step)
        named = {"name": provider.name, "type": provider.type, "where": provider.where}
        reports.append(ProviderReport(**named, level=level, steps=tuple(steps), identity=identity))
    return DoctorReport.of(__version__, tuple(reports))


def probe(subject: Subject) -> Generator[Step | CheckBegun, None, Identity | None]:
    """Yield all steps of one provider, those of its surroundings first."""
    provider = subject.provider
    around = provider.descriptor.surroundings
    if around is not None:
        yield CheckBegun("surroundings")
        try:
            yield from provider.resolve(around)(subject)
        except HsmError as error:
            yield failed("surroundings", error)
    try:
        work: Probe = provider.resolve(provider.descriptor.probe)
    except HsmError as error:
        yield failed("configuration", error)
        return None
    return (yield from work(subject))


def _ring(config: Config) -> tuple[Config, list[Step]]:
    """Return the configuration with the ring's current key, and what is to be said of the key that it names itself."""
    if not may_have_ring(config):
        return config, []
    try:
        current, keys = asyncio.run(as_started(config))
    except HsmError:
        return config, []  # the state store has its own steps
    signs, first = active_of(keys), keys[0] if keys else None
    if signs is None or first is None:
        return config, []
    said = f"version {signs.version}, id {signs.key_id}, signs"
    if signs.version != first.version:
        said += f"; the first key, version {first.version}, is {first.state}: as it should be"
    return current, [ok("key-ring", said, version=signs.version, publicKey=signs.public_key.hex())]


def _probed(subject: Subject, watch: Watcher) -> tuple[list[Step], Identity | None]:
    steps: list[Step] = []
    running = probe(subject)
    while True:
        try:
            event = next(running)
        except StopIteration as end:
            return steps, cast("Identity | None", end.value)
        if isinstance(event, Step):
            steps.append(event)
        watch(subject.level, subject.provider, event)
