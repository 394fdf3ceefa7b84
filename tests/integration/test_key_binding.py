"""A message that may have been signed under one key is signed under no other, however the wait for it ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic_ns
from typing import Any

import pytest
from tests.support.audit_logs import files_at_most
from tests.support.kms import KmsServer
from tests.support.kms import config as kms_config
from tests.support.levels import OTHER, QUICK, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import EngineClosed, NotHolder
from hsmcore.failover import router
from hsmcore.failover.errors import AllLevelsFailed

pytestmark = [pytest.mark.integration]

LEVELS = {"acceptOtherKeys": ["secondary"]}
PATIENT = {**LEVELS, "maxPrimaryRetries": 1000}
"""A request that is bound to a key waits for a member that holds it."""
BATCH = 3

Asking = Callable[[hsmcore.KeyManager, list[bytes]], Awaitable[Any]]
GiveUp = Callable[[Awaitable[Any], asyncio.Event], Awaitable[None]]

WAYS: dict[str, Asking] = {
    "sign": lambda manager, messages: manager.sign(messages[0], 20),
    "sign_many": lambda manager, messages: manager.sign_many(messages, 20),
    "sign_with_receipt": lambda manager, messages: manager.sign_with_receipt(messages[0], 20),
    "the long way": lambda manager, messages: manager._path.router.sign(messages[0], 20),
}


async def _timeout(asked: Awaitable[Any], begun: asyncio.Event) -> None:
    task = asyncio.ensure_future(asked)
    await begun.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await task


async def _wait_for(asked: Awaitable[Any], begun: asyncio.Event) -> None:
    task = asyncio.ensure_future(asked)
    await begun.wait()
    with suppress(TimeoutError):
        await asyncio.wait_for(task, 0.01)


async def _task_group(asked: Awaitable[Any], begun: asyncio.Event) -> None:
    async def fail() -> None:
        await begun.wait()
        raise LookupError("another task of the group fails")

    async def ask() -> None:
        await asked

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(fail())


async def _cancel(asked: Awaitable[Any], begun: asyncio.Event) -> None:
    task = asyncio.ensure_future(asked)
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


WAYS_TO_GIVE_UP: dict[str, GiveUp] = {
    "timeout": _timeout,
    "wait_for": _wait_for,
    "TaskGroup": _task_group,
    "cancel": _cancel,
}


@pytest.fixture
def site(tmp_path, fresh_token):
    """Makes a site: one member for each key."""
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


def key_of(place: Site, number: int) -> bytes:
    """The public key of a member."""
    return place.tokens[number].keys["ed25519"].public_key


async def fail_over(manager: hsmcore.KeyManager) -> None:
    """Have the secondary level sign, and the primary members nothing."""
    service = manager._path
    for endpoint in service.endpoints:
        if endpoint.level_name == "primary":
            await service.health._desired.set(f"drain:{endpoint.name}", "yes", "a test")
    await service.health._follow()
    assert service.levels.active == 1


async def fail_back(manager: hsmcore.KeyManager) -> None:
    """Have the primary level sign again."""
    service = manager._path
    for endpoint in service.endpoints:
        await service.health._desired.set(f"drain:{endpoint.name}", None, "a test")
    await service.health._follow()
    await until(lambda: service.levels.active == 0)


async def signers(manager: hsmcore.KeyManager, messages: list[bytes]) -> dict[bytes, bytes | None]:
    """Ask again for each message: the public key that signed it, or None where that was refused for its binding."""
    found: dict[bytes, bytes | None] = {}
    refusals: set[bool] = set()
    for message in messages:
        try:
            found[message] = (await manager.sign_with_receipt(message, 5)).public_key
        except AllLevelsFailed as error:
            found[message] = None
            refusals.add("allow_other_key" in str(error))
    assert refusals <= {True}, "refused for something else"
    return found


async def keys_in_the_log(manager: hsmcore.KeyManager) -> dict[str, set[str]]:
    """By the digest of a message: the keys of all records that have a signature of it."""
    keys = defaultdict(set)
    async for record in manager.audit.query(match={"operation": "sign"}):
        if "signature" in record:
            keys[record["message_sha256"]].add(record["public_key"])
    return keys


async def test_a_request_abandoned_while_being_signed_is_bound(site):
    place = site(SAME, OTHER)
    config = place.config(failover=LEVELS, auditLogFile=str(place.folder / "audit.log"))
    config["sequencer"]["keyManager"]["config"]["sessions"] = 24
    messages = {
        f"{way}, {end}": [f"{way} {end} {n}".encode() for n in range(BATCH if way == "sign_many" else 1)]
        for way in WAYS
        for end in WAYS_TO_GIVE_UP
    }
    every = [message for some in messages.values() for message in some]
    async with opened(config) as manager:
        place.members[0].fault("C_Sign", "hang", forever=True, every=1)
        begun = asyncio.Event()
        asked = [
            start(WAYS_TO_GIVE_UP[end](WAYS[way](manager, messages[f"{way}, {end}"]), begun))
            for way in WAYS
            for end in WAYS_TO_GIVE_UP
        ]
        await until(lambda: place.members[0].stats()["hung"] == len(every))
        begun.set()
        await asyncio.gather(*asked)
        place.members[0].clear()
        place.members[0].release()
        await until(lambda: not manager._path.endpoints[0].engine.in_flight)
        await fail_over(manager)
        assert await signers(manager, every) == dict.fromkeys(every, None)
        assert (await manager.sign_with_receipt(b"another", 5)).public_key == key_of(place, 1)
        await fail_back(manager)
        assert await signers(manager, every) == dict.fromkeys(every, key_of(place, 0))
        await manager.audit.flush()
        keys = await keys_in_the_log(manager)
        assert [keys[hashlib.sha256(m).hexdigest()] for m in every] == [{key_of(place, 0).hex()}] * len(every)


@one_loop
async def test_an_abandoned_batch_is_bound_wherever_its_parts_were(site):
    place = site(SAME, SAME, OTHER)
    async with opened(place.config(primary=2, failover=LEVELS)) as manager:
        place.members[1].fault("C_Sign", "hang", forever=True, every=1)
        messages = [b"message %d" % n for n in range(32)]
        asked = start(manager.sign_many(messages, 20))
        done = manager._path.endpoints[0].signing
        await until(lambda: done.stats()["signatures"] == 16 and place.members[1].stats()["hung"] == 2)
        await asyncio.sleep(0)  # until the half that is done has been taken
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        place.members[1].clear()
        place.members[1].release()
        await fail_over(manager)
        assert await signers(manager, messages) == dict.fromkeys(messages, None)


@one_loop
async def test_signatures_that_are_thrown_away_bind_their_messages(site):
    """One message of a batch fails, and its error is all that the caller gets."""
    place = site(SAME, OTHER)
    config = place.config(failover=LEVELS)
    config["sequencer"]["keyManager"]["config"]["sessions"] = 1
    async with opened(config) as manager:
        messages = [b"message %d" % n for n in range(4)]
        for nth in (4, 5):  # the last one, and once more when it gets a second try
            place.members[0].fault("C_SignInit", "return", ckr="CKR_ARGUMENTS_BAD", nth=nth)
        with pytest.raises(hsmcore.HsmError, match="CKR_ARGUMENTS_BAD"):
            await manager.sign_many(messages, 20)
        await fail_over(manager)
        # The one that was refused has no signature, so any key may sign it.
        assert await signers(manager, messages) == dict.fromkeys(messages[:3]) | {messages[3]: key_of(place, 1)}


@one_loop
async def test_an_abandoned_hedged_request_is_bound(site):
    place = site(SAME, SAME, OTHER)
    async with opened(place.config(primary=2, failover={**LEVELS, "hedging": True})) as manager:
        for number in (0, 1):
            place.members[number].fault("C_Sign", "hang", forever=True, every=1)
        asked = start(manager.sign(b"m", 20))
        await until(lambda: all(place.members[number].stats()["hung"] for number in (0, 1)))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        for number in (0, 1):
            place.members[number].clear()
            place.members[number].release()
        await fail_over(manager)
        assert await signers(manager, [b"m"]) == {b"m": None}


@one_loop
@pytest.mark.parametrize("hedging", [False, True])
async def test_a_receipt_names_the_key_that_was_asked_for_though_another_is_current_by_now(site, hedging):
    place = site(SAME, SAME)
    async with opened(place.config(primary=2, failover={"hedging": hedging})) as manager:
        old, made = await manager.get_current_key_id(), await manager.generate_key()
        for key_id in (made, old):  # so that the switch below makes no signature
            await manager.set_current_key_id(key_id)
        for number in (0, 1):
            place.members[number].fault("C_Sign", "hang", forever=True, every=1)
        asked = start(manager.sign_with_receipt(b"m", 20))
        hung = [0, 1] if hedging else [0]
        await until(lambda: all(place.members[number].stats()["hung"] for number in hung))
        await manager.set_current_key_id(made)
        for number in (0, 1):
            place.members[number].clear()
            place.members[number].release()
        receipt = await asked
        assert receipt.public_key == key_of(place, 0)
        assert is_good("ed25519", receipt.public_key, b"m", receipt.signature)


@one_loop
async def test_an_abandoned_request_is_bound_to_the_key_that_it_asked_for(site):
    place = site(SAME)
    async with opened(place.config()) as manager:
        old, made = await manager.get_current_key_id(), await manager.generate_key()
        for key_id in (made, old):
            await manager.set_current_key_id(key_id)
        place.members[0].fault("C_Sign", "hang", forever=True)
        asked = start(manager.sign(b"m", 20))
        await until(lambda: place.members[0].stats()["hung"] == 1)
        await manager.set_current_key_id(made)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        place.members[0].release()
        assert (await manager.sign_with_receipt(b"another", 5)).key_id == made
        assert await signers(manager, [b"m"]) == {b"m": None}


@one_loop
@pytest.mark.parametrize("way", WAYS)
async def test_what_was_signed_and_could_not_be_recorded_no_other_key_signs(site, way):
    place = site(SAME, OTHER)
    path = place.folder / "audit.log"
    async with opened(place.config(failover=LEVELS, auditLogFile=str(path))) as manager:
        # SoftHSM may fail to start one member while another one starts; a probe brings it back.
        await until(lambda: manager._path.levels.active == 0)
        await manager.sign(b"before")
        messages = [b"message %d" % n for n in range(BATCH if way == "sign_many" else 1)]
        with files_at_most(path.stat().st_size + 10), pytest.raises(hsmcore.AuditUnavailable):
            await WAYS[way](manager, messages)
        await becomes(lambda: recorded(manager))
        await fail_over(manager)
        assert await signers(manager, messages) == dict.fromkeys(messages, None)


@one_loop
@pytest.mark.parametrize("withheld", [hsmcore.AuditUnavailable, EngineClosed, NotHolder])
async def test_what_is_withheld_on_the_long_way_no_other_key_signs(site, monkeypatch, withheld):
    place = site(SAME, OTHER)
    async with opened(place.config(failover=LEVELS)) as manager:
        await until(lambda: manager._path.levels.active == 0)

        attempts = []

        def fails(*args):
            attempts.append(args)
            asked = asyncio.get_running_loop().create_future()
            asked.set_exception(withheld("withheld", maybe_signed=False))
            return asked

        monkeypatch.setattr(manager._path.endpoints[0], "ask", fails)
        with pytest.raises(hsmcore.HsmError):
            await manager._path.router.sign(b"m", 0.3)
        # Of a member that closes, another key version may go on; what the request is refused with ends it.
        assert withheld is EngineClosed or len(attempts) == 1
        await fail_over(manager)
        assert await signers(manager, [b"m"]) == {b"m": None}


async def recorded(manager: hsmcore.KeyManager) -> bool:
    """Whether the audit log is written again."""
    with suppress(hsmcore.AuditUnavailable):
        await manager.sign(b"is it recorded?")
        return True
    return False


@one_loop
@pytest.mark.parametrize("withheld", [hsmcore.AuditUnavailable, EngineClosed, NotHolder])
async def test_what_is_withheld_while_hedging_no_other_key_signs(site, monkeypatch, withheld):
    place = site(SAME, OTHER)
    async with opened(place.config(failover={**LEVELS, "hedging": True})) as manager:
        await until(lambda: manager._path.levels.active == 0)

        async def fails(_router, _endpoint, _version, signed, *_args):
            await signed
            raise withheld("withheld", maybe_signed=False)

        with monkeypatch.context() as patch:
            patch.setattr(router, "hedged", fails)
            with pytest.raises(hsmcore.HsmError):
                await manager._path.router.sign(b"m", 0.3)
        await fail_over(manager)
        assert await signers(manager, [b"m"]) == {b"m": None}


@one_loop
async def test_a_request_that_may_be_signed_stays_with_its_key_beside_other_bindings(site, monkeypatch):
    place = site(SAME, OTHER)
    async with opened(place.config(failover=LEVELS)) as manager:
        first, second = manager._path.endpoints
        await until(lambda: first.trusted and second.trusted)
        manager._path.router.bind([b"another"], first.key)

        def fails(*_args):
            asked = asyncio.get_running_loop().create_future()
            asked.set_exception(hsmcore.MemberDown("its answer is lost", maybe_signed=True))
            return asked

        monkeypatch.setattr(first, "ask", fails)
        asked = start(manager._path.router.sign(b"m", 5))
        await until(lambda: not first.trusted)
        await fail_over(manager)
        with pytest.raises(hsmcore.HsmError) as caught:
            await asked
        assert caught.value.maybe_signed
        assert await signers(manager, [b"m"]) == {b"m": None}


@one_loop
async def test_requests_that_only_queued_are_not_bound_where_that_is_known(kms, tmp_path):
    first, second = kms.store.make(), kms.store.make()
    secondary = kms_config(kms, second)["keyManager"]
    block = {**QUICK, **LEVELS, "secondary": [secondary]}
    rules = {"failover": block, "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0, "singleFlight": False}
    async with opened(kms_config(kms, first, {"concurrency": 1}, **rules)) as manager:
        kms.calls.clear()
        kms.hold()
        begun = start(manager.sign(b"begun", 20))
        in_line = [start(manager.sign(b"in line", 20)), start(manager.sign_many([b"a", b"b"], 20))]
        await until(lambda: kms.calls["Sign"] == 1)
        for task in (begun, *in_line):
            task.cancel()
        await asyncio.gather(begun, *in_line, return_exceptions=True)
        kms.release()
        service = manager._path
        await service.health._desired.set("force", "secondary", "a test")
        await service.health._follow()
        found = await signers(manager, [b"begun", b"in line", b"a", b"b"])
        other = second.raw_public
        assert found == {b"begun": first.raw_public, b"in line": other, b"a": other, b"b": other}


@one_loop
@pytest.mark.parametrize("lost", ["drop", "garbage"])
async def test_a_signature_that_kms_may_have_made_binds_its_message(kms, tmp_path, lost):
    first, second = kms.store.make(), kms.store.make()
    block = {**QUICK, **PATIENT, "secondary": [kms_config(kms, second)["keyManager"]]}
    rules = {"failover": block, "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0}
    async with opened(kms_config(kms, first, **rules)) as manager:
        kms.calls.clear()
        # As often as the client asks: once on each connection that it kept, then on new ones.
        kms.faults.add(lost, times=10**6)
        signing = asyncio.create_task(manager.sign_with_receipt(b"m", 20))
        refused = manager._path.endpoints[0]
        await until(lambda: "down" in refused.breakers)
        kms.faults.queue.clear()
        receipt = await signing
        assert receipt.public_key == first.raw_public
        assert is_good("ed25519", receipt.public_key, b"m", receipt.signature)


@one_loop
async def test_a_request_that_never_reached_kms_is_free(kms, tmp_path):
    with KmsServer() as elsewhere:
        first, second = elsewhere.store.make(), kms.store.make()
        block = {**QUICK, **PATIENT, "secondary": [kms_config(kms, second)["keyManager"]]}
        rules = {"failover": block, "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0}
        async with opened(kms_config(elsewhere, first, **rules)) as manager:
            elsewhere.stop_listening()
            assert (await manager.sign_with_receipt(b"m", 20)).public_key == second.raw_public
            elsewhere.start_listening()


@one_loop
async def test_a_refusal_after_a_lost_answer_binds_all_the_same(kms, tmp_path):
    """KMS took the request, and the answer to its repetition is that the credentials are not good any more."""
    first, second = kms.store.make(), kms.store.make()
    block = {**QUICK, **PATIENT, "secondary": [kms_config(kms, second)["keyManager"]]}
    rules = {"failover": block, "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0}
    async with opened(kms_config(kms, first, **rules)) as manager:
        kms.faults.add("drop")
        kms.faults.error("ExpiredTokenException")
        assert (await manager.sign_with_receipt(b"m", 20)).public_key == first.raw_public
        assert not kms.faults.queue


@one_loop
async def test_a_request_whose_member_was_closed_in_the_middle_is_bound(kms, tmp_path):
    first, second = kms.store.make(), kms.store.make()
    block = {**QUICK, **PATIENT, "secondary": [kms_config(kms, second)["keyManager"]]}
    rules = {"failover": block, "stateFile": str(tmp_path / "state.db"), "maxCacheSize": 0}
    async with opened(kms_config(kms, first, **rules)) as manager:
        levels, endpoint = manager._path.levels, manager._path.endpoints[0]
        kms.hold()
        asked = start(manager.sign_with_receipt(b"m", 20))
        await until(lambda: endpoint.engine.in_flight > 0)
        levels.stopped(endpoint, monotonic_ns())
        await endpoint.stop()
        kms.release()
        assert (await asked).public_key == first.raw_public
