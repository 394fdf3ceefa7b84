"""The checks of the state store: whether its rows are those that hsmcore wrote, and whether it is older than the audit
log. They read, and change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from hsmcore.audit import AuditLog
from hsmcore.config import Config
from hsmcore.doctor.report import Step, fail, failed, ok, warn
from hsmcore.errors import HsmError
from hsmcore.recovery.key_domains import wanted_of
from hsmcore.recovery.marks import LogStanding, Marks, witness_of
from hsmcore.recovery.own_store import behind_hint
from hsmcore.state import Store, StoreNotGenuine
from hsmcore.state.domains import KeyDomain, everything
from hsmcore.state.seal import SealStatus

NAME: Final = "state-store"
BEHIND: Final = "state-behind"
DOMAIN: Final = "key-domain"
_MAKE: Final = (
    'Make a secret (openssl rand -hex 32), name it, such as "stateSecret": {"file": "…"}, and adopt the rows: '
    "hsmcore state seal"
)


def check_store(config: Config) -> Iterator[Step]:
    """Check the seal, if the configuration keeps anything in the store that leads to an act, and whether the audit log
    goes on after it."""
    found = list(_seal(config))
    yield from found
    yield from _domains(config)
    if witness_of(config) and config.key_manager.state_path.is_file():
        try:
            problem = asyncio.run(_standing(config)).problem
        except HsmError as error:
            step = failed(BEHIND, error)
            if step.found not in {one.found for one in found}:  # a store that cannot be read is said to be that once
                yield step
            return
        if problem:
            yield fail(BEHIND, problem, behind_hint(config.key_manager))
        else:
            yield ok(BEHIND, "the store is the one that the audit log goes on from")


def _domains(config: Config) -> Iterator[Step]:
    """Whether the keys of the store may bind as the policy says. One that does not sign any more may be among them."""
    if config.key_manager.fleet is None and not config.key_manager.state_path.is_file():
        return
    try:
        there = asyncio.run(_bound(config))
    except HsmError:
        return  # `_seal` and the start say so
    wanted = wanted_of(config.key_manager)
    if (refusal := wanted.refusal(there, there)) is not None:
        yield warn(DOMAIN, str(refusal.args[0]), f"{refusal.hint} If it signs no more, there is nothing to do.")
    elif there:
        yield ok(DOMAIN, f"its keys are bound to {wanted}")


async def _bound(config: Config) -> dict[bytes, KeyDomain]:
    store = await Store.open_to_read(config.key_manager.state_place)
    try:
        return await store.run(everything)
    finally:
        await store.close()


async def _standing(config: Config) -> LogStanding:
    store = await Store.open_to_read(config.key_manager.state_place, config.state_secret)
    try:
        await store.seal_status()  # what the rows' MACs are made with
        return await Marks(store, AuditLog.of(config.key_manager), config).standing()
    finally:
        await store.close()


def _seal(config: Config) -> Iterator[Step]:
    rules = config.key_manager
    counts = rules.policy is not None and rules.policy.needs_store
    if rules.active_rotation is None and not config.has_emergency and not counts and config.state_secret is None:
        return
    if config.state_secret is None:
        yield warn(NAME, "it has no seal: whoever can write its file is believed", _MAKE)
        return
    if rules.fleet is None and not rules.state_path.is_file():
        yield ok(NAME, "there is none yet; the first start makes and seals it")
        return
    try:
        status = asyncio.run(_status(config))
    except HsmError as error:
        if rules.fleet is not None and error.call == "open":
            yield ok(NAME, "there is none yet; the first start makes and seals it")
        else:
            yield failed(NAME, error)
        return
    data = {"digest": status.digest, "problems": dict(status.problems)}
    if status.problems:
        said = "; ".join(f"{scope}: {problem}" for scope, problem in status.problems.items())
        yield fail(NAME, f"it is not genuine: {said}", StoreNotGenuine.default_hint, **data)
    else:
        yield ok(NAME, f"{rules.state_name} is sealed, and the seal holds", **data)


async def _status(config: Config) -> SealStatus:
    store = await Store.open_to_read(config.key_manager.state_place, config.state_secret)
    try:
        status = await store.seal_status()
    finally:
        await store.close()
    assert status is not None  # noqa: S101  # for the type checker: there is a secret
    return status
