"""Failover on real members: SoftHSM tokens with the same key, behind the chaos module."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress

import pytest
from tests.support.chaos import send_signal
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.errors import ConfigurationError, EngineClosed, MemberDown, RequestRejected
from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate

pytestmark = [pytest.mark.integration]


@pytest.fixture
def site(tmp_path, fresh_token):
    """Makes a site: one member for each key."""
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


class Load:
    """Callers that sign without a pause; every answer is verified, and every request has exactly one."""

    def __init__(self, manager, callers=16, timeout=60.0):
        self.manager, self.callers, self.timeout = manager, callers, timeout
        self.good, self.errors, self.asked, self._going = [], [], 0, True

    async def __aenter__(self):
        self._tasks = [asyncio.ensure_future(self._caller(number)) for number in range(self.callers)]
        await until(lambda: len(self.good) > 50)
        return self

    async def __aexit__(self, *exc_info):
        self._going = False
        await asyncio.wait_for(asyncio.gather(*self._tasks), 2 * self.timeout)
        assert len(self.good) + len(self.errors) == self.asked

    async def _caller(self, number):
        while self._going:
            message = f"caller {number} message {self.asked}".encode()
            self.asked += 1
            try:
                receipt = await self.manager.sign_with_receipt(message, self.timeout)
            except hsmcore.HsmError as error:
                self.errors.append(error)
                await asyncio.sleep(0.005)
            else:
                assert is_good("ed25519", receipt.public_key, message, receipt.signature)
                self.good.append(receipt)

    async def more(self, count):
        wanted = len(self.good) + count
        await until(lambda: len(self.good) >= wanted)


def heard(manager):
    """The levels' moves, as (from, to)."""
    moves = []
    for name in ("failover", "failback"):
        manager.on(name, lambda details: moves.append((details["from_level"], details["to_level"])))
    return moves


def conditions(manager):
    """The members' conditions, in the order of the levels."""
    return [member["condition"] for member in manager._path.health.describe()["members"]]


async def test_no_request_fails_when_the_primary_dies_under_load(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        moves = heard(manager)
        async with Load(manager) as load:
            place.kill(0)
            await until(lambda: moves)
            await load.more(200)
            assert load.good[-1].member == place.name(1)
            assert load.good[-1].level == "secondary"
            place.revive(0)
            await until(lambda: len(moves) == 2)
            await until(lambda: conditions(manager) == ["ready", "ready"])
            await load.more(50)
        assert load.errors == []
        assert moves == [("primary", "secondary"), ("secondary", "primary")]
        assert load.good[-1].member == place.name(0)
        kinds = [row["kind"] for row in await manager._path.history.query()]
        assert [kind for kind in kinds if kind.startswith("fail")] == ["failover", "failback"]


@one_loop
async def test_all_levels_dead_is_one_error_that_names_each_cause(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        assert await manager.sign(b"before")
        place.kill(0)
        place.kill(1, "CKR_TOKEN_NOT_PRESENT")
        with pytest.raises(AllLevelsFailed) as caught:
            await manager.sign(b"nobody", 10.0)
        error = caught.value
        assert error.retryable
        assert list(error.causes) == ["primary", "secondary"]
        assert all(isinstance(cause, MemberDown) for cause in error.causes.values()), error.causes
        for text in ("primary: ", "secondary: ", place.name(0), place.name(1)):
            assert text in str(error)
        # Known to be down, it is said at once; with a batch, for each message.
        with suppress(AllLevelsFailed):
            await manager.sign(b"still nobody", 60.0)
        results = await manager.sign_many([b"a", b"b"], 60.0, return_exceptions=True)
        assert all(isinstance(result, AllLevelsFailed) for result in results)
        place.revive(1)
        await until(lambda: manager._path.levels.ready)
        assert (await manager.sign_with_receipt(b"again")).level == "secondary"


@one_loop
async def test_a_request_waits_for_a_member_to_come_back_as_long_as_its_deadline_allows(site):
    place = site(SAME)
    patient = {"primaryRetryIntervalMs": 2000, "maxPrimaryRetries": 100}
    async with opened(place.config(failover=patient)) as manager:
        place.kill(0)
        with pytest.raises(AllLevelsLate) as caught:
            await manager.sign(b"in a hurry", 0.5)
        assert isinstance(caught.value, TimeoutError)
        waiting = asyncio.ensure_future(manager.sign(b"patient", 30.0))
        cancelled = asyncio.ensure_future(manager.sign(b"not so patient", 30.0))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        place.revive(0)
        assert is_good("ed25519", manager.public_key, b"patient", await waiting)


async def test_closing_ends_waiting_requests(site):
    place = site(SAME)
    async with opened(place.config(failover={"primaryRetryIntervalMs": 60_000})) as manager:
        place.kill(0)
        with pytest.raises(AllLevelsLate):
            await manager.sign(b"x", 0.3)
        waiting = [asyncio.ensure_future(manager.sign(f"{n}".encode(), 30.0)) for n in range(20)]
        await asyncio.sleep(0.05)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, EngineClosed), error
    with pytest.raises(EngineClosed):
        await manager.sign(b"closed")


@one_loop
async def test_requests_of_a_member_that_hangs_move_to_another(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        async with Load(manager) as load:
            place.members[0].fault("C_Sign", "hang", forever=True, every=1, count=2)
            await load.more(500)
            await until(lambda: conditions(manager)[0] != "ready")
            await load.more(500)
            place.members[0].clear()
            place.members[0].release()
            await load.more(100)
        assert load.errors == []


@one_loop
async def test_wrong_signatures_reach_no_caller_and_open_the_breaker(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        async with Load(manager, callers=4) as load:
            place.members[0].ask("fault", function="C_Sign", every=1, action="wrong-signature")
            await until(lambda: conditions(manager)[0] == "open")
            await load.more(100)
            assert load.good[-1].member == place.name(1)
            place.revive(0)
            await until(lambda: conditions(manager)[0] == "ready")
        assert load.errors == []


@one_loop
async def test_another_key_needs_consent(site):
    place = site(SAME, OTHER)
    with pytest.raises(ConfigurationError) as caught:
        await hsmcore.create_key_manager(place.config()).initialize()
    assert caught.value.path == "$.sequencer.keyManager.failover.secondary[0]"
    assert "acceptOtherKeys" in str(caught.value)
    changes = []
    async with opened(place.config(failover={"acceptOtherKeys": ["secondary"]})) as manager:
        manager.on("failover", changes.append)
        first = manager.public_key
        assert first == place.tokens[0].keys["ed25519"].public_key
        place.kill(0)
        receipt = await manager.sign_with_receipt(b"who?", 10.0)
        other = place.tokens[1].keys["ed25519"].public_key
        assert (receipt.level, receipt.public_key, manager.public_key) == ("secondary", other, other)
        assert is_good("ed25519", other, b"who?", receipt.signature)
        assert await manager.verify(b"who?", receipt.signature)
        assert receipt.key_id == await manager.get_current_key_id()
        [change] = changes
        assert (change["public_key"], change["previous_public_key"]) == (other.hex(), first.hex())


@one_loop
async def test_what_one_key_may_have_signed_no_other_one_signs_unless_allowed(site):
    place = site(SAME, OTHER)
    config = place.config(failover={"acceptOtherKeys": ["secondary"], "maxPrimaryRetries": 1})
    async with opened(config) as manager:
        place.members[0].fault("C_Sign", "hang", forever=True, every=1, count=2)
        # Both workers hang inside C_Sign: whether there are signatures is unknown.
        hung = [asyncio.ensure_future(manager.sign(b"%d" % n, 1.0)) for n in range(2)]
        for error in await asyncio.gather(*hung, return_exceptions=True):
            assert isinstance(error, AllLevelsFailed), error
        await until(lambda: manager._path.levels.active == 1)
        with pytest.raises(AllLevelsFailed, match="allow_other_key"):
            await manager.sign(b"1", 1.0)
        receipt = await manager.sign_with_receipt(b"1", 5.0, allow_other_key=True)
        assert receipt.level == "secondary"
        assert (await manager.sign_with_receipt(b"another", 5.0)).level == "secondary"
        place.members[0].clear()
        place.members[0].release()


@one_loop
async def test_while_no_member_signs_a_batch_names_a_message_and_the_application_is_told(site):
    place, told = site(SAME, SAME), []
    async with opened(place.config()) as manager:
        for kind in ("outage", "recovered"):
            manager.on(kind, lambda details, kind=kind: told.append((kind, details)))
        await manager.sign(b"m")
        place.kill(0)
        place.kill(1)
        for crossing in ("one", "one for each message"):
            with pytest.raises(hsmcore.HsmError) as failed:
                await manager.sign_many([b"a", b"b"], 0.2)
            assert failed.value.index in (0, 1), crossing
            assert failed.value.__notes__ == [f"message {failed.value.index} of the batch"]
        assert [kind for kind, _ in told] == ["outage"]
        place.revive(1)
        await until(lambda: len(told) > 1)
        assert [kind for kind, _ in told] == ["outage", "recovered"]
        assert (told[0][1]["from_level"], told[1][1]["to_level"]) == ("secondary", "secondary")


@one_loop
async def test_a_batch_is_shared_out_over_the_level(site):
    place = site(SAME, SAME)
    async with opened(place.config(primary=2)) as manager:
        messages = [f"message {n}".encode() for n in range(400)]
        signatures = await manager.sign_many(messages, 20.0)
        for message, signature in zip(messages, signatures, strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        signed = [stats["signatures"] for stats in manager.get_stats().values()]
        assert min(signed) > 150
        before = sum(signed)
        for wrong, error in ((b"x" * 99_999, hsmcore.MessageTooLarge), (b"", hsmcore.EmptyMessage)):
            with pytest.raises(error) as refused:
                await manager.sign_many([*messages, wrong, b"m"], 20.0)
            assert refused.value.index == 400
        assert sum(stats["signatures"] for stats in manager.get_stats().values()) == before, "nothing was signed"
        # One of them dies in the middle of it.
        batch = asyncio.ensure_future(manager.sign_many([f"more {n}".encode() for n in range(3000)], 20.0))
        await asyncio.sleep(0.02)
        place.kill(1)
        for number, signature in enumerate(await batch):
            assert is_good("ed25519", manager.public_key, f"more {number}".encode(), signature)


@one_loop
async def test_a_refusal_by_one_module_gets_a_second_opinion(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        refusal = {"function": "C_SignInit", "every": 1, "action": "return", "ckr": "CKR_ARGUMENTS_BAD"}
        place.members[0].ask("fault", **refusal)
        assert [(await manager.sign_with_receipt(f"{n}".encode(), 5.0)).level for n in range(3)] == ["secondary"] * 3
        # Three good requests refused in a row, and it is asked no more.
        assert conditions(manager)[0] == "open"
        # A request that all members refuse is at fault itself; no breaker opens.
        place.members[1].ask("fault", **refusal, count=4)
        with pytest.raises(RequestRejected):
            await manager.sign(b"refused", 5.0)
        assert conditions(manager)[1] == "ready"


@one_loop
async def test_requests_of_a_dead_host_process_move_to_others_at_once(site):
    place = site(SAME, SAME)
    config = place.config()
    config["sequencer"]["keyManager"]["config"]["isolation"] = "process"
    async with opened(config) as manager:
        moves = heard(manager)
        endpoint = manager._path.endpoints[0]
        async with Load(manager) as load:
            restarts = endpoint.member.supervisor.restarts
            send_signal(endpoint.member.engine.host_pid, signal.SIGKILL)
            await until(lambda: moves)
            assert endpoint.member.supervisor.restarts == restarts, "others did not wait for it"
            await load.more(100)
            await until(lambda: len(moves) == 2)
        assert load.errors == []
        assert moves == [("primary", "secondary"), ("secondary", "primary")]


@one_loop
async def test_a_member_that_is_down_at_the_start_joins_later(site):
    place = site(SAME, SAME)
    place.members[0].write(
        faults=[{"function": "C_OpenSession", "every": 1, "action": "return", "ckr": "CKR_DEVICE_REMOVED"}]
    )
    async with opened(place.config()) as manager:
        assert (await manager.sign_with_receipt(b"who?")).level == "secondary"
        assert conditions(manager)[0] == "open"
        place.members[0].write()
        await until(lambda: conditions(manager)[0] in ("ready", "ramping"))
        await until(lambda: conditions(manager)[0] == "ready")
        assert (await manager.sign_with_receipt(b"who?")).level == "primary"


@one_loop
async def test_hedged_requests_do_not_wait_for_a_straggler(site):
    place = site(SAME, SAME)
    async with opened(place.config(failover={"hedging": True})) as manager:
        for n in range(50):
            await manager.sign(f"warm {n}".encode())
        place.members[0].fault("C_Sign", "hang", milliseconds=5000)
        begun = time.monotonic()
        receipt = await manager.sign_with_receipt(b"straggler", 30.0)
        assert time.monotonic() - begun < 5.0
        assert receipt.member == place.name(1)
        assert manager._path.router.hedges >= 1
        assert is_good("ed25519", receipt.public_key, b"straggler", receipt.signature)


@one_loop
async def test_the_keys_of_all_members_change_together(site):
    place = site(SAME, SAME)
    async with opened(place.config(maxCacheSize=100)) as manager:
        assert not (await manager.sign_with_receipt(b"m")).cached
        assert (await manager.sign_with_receipt(b"m")).cached
        made = await manager.generate_key()
        await manager.set_current_key_id(made)
        receipt = await manager.sign_with_receipt(b"m")
        assert (receipt.key_id, receipt.level) == (made, "primary")
        assert not receipt.cached
        # The secondary does not hold it, so it is no help.
        place.kill(0)
        with pytest.raises(AllLevelsFailed):
            await manager.sign(b"n", 5.0)
        await manager.set_current_key_id(place.tokens[0].keys["ed25519"].id)
        assert (await manager.sign_with_receipt(b"m", 5.0)).level == "secondary"
        # Also on the member that is down: it starts to answer when it must not sign any more.
        await manager.deactivate_key(place.tokens[0].keys["ed25519"].id)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign(b"m")


@one_loop
async def test_a_key_whose_id_is_another_key_s_elsewhere_is_deactivated_on_its_token(site):
    place = site({**SAME, "id": "0a"}, {**OTHER, "id": "0a"})
    async with opened(place.config(failover={"acceptOtherKeys": ["secondary"]})) as manager:
        first, second = (key.id for key in list(manager.keys()))
        assert (first, second.partition("@")[0]) == ("0a", "0a")
        await manager.deactivate_key(second)
        records = [await endpoint.member.control.list_keys() for endpoint in manager._path.endpoints]
        assert [[key.can_sign for key in keys] for keys in records] == [[True], [False]]


@one_loop
async def test_bad_requests_are_refused_at_once_and_harm_no_member(site):
    place = site(SAME, SAME)
    async with opened(place.config()) as manager:
        for bad, error in (
            (b"", hsmcore.InvalidMessage),
            ("text", hsmcore.InvalidMessage),
            (b"x" * 99_999, hsmcore.MessageTooLarge),
        ):
            with pytest.raises(error):
                await manager.sign(bad)
            with pytest.raises(error) as refused:
                await manager.sign_many([b"good", bad])
            assert refused.value.index == 1
        for timeout in (0, -1, float("nan"), "1", True):
            with pytest.raises(hsmcore.InvalidTimeout):
                await manager.sign(b"m", timeout)
        changing = bytearray(b"as it was")
        signing = asyncio.ensure_future(manager.sign(changing))
        await asyncio.sleep(0)
        changing[:] = b"otherwise"
        assert is_good("ed25519", manager.public_key, b"as it was", await signing)
        assert conditions(manager) == ["ready", "ready"]


async def test_checkpoints_are_signed_by_any_running_member_that_holds_the_key(site, tmp_path):
    place = site(SAME, SAME)
    for token in place.tokens:
        token.add_keys([SAME | {"name": "audit", "id": "a0d17000"}])
    path = tmp_path / "audit.log"
    config = place.config(auditLogFile=str(path), audit={"signingKey": {"hsmKeyId": "a0d17000"}})
    async with opened(config) as manager:
        health, (first, second) = manager._path.health, manager._path.endpoints

        async def sealed(message: bytes) -> None:
            receipt = await manager.sign_with_receipt(message)
            await manager.audit.checkpoint()
            assert manager.audit.describe()["sealed"] >= receipt.audit_seq

        await sealed(b"both")
        place.kill(0)
        await sealed(b"the first one is down")
        assert not first.trusted
        place.revive(0)
        await until(lambda: first.trusted)
        for number, endpoint in enumerate((first, second)):
            before = endpoint.member
            manager._path.levels.failed(endpoint, "auth", "the login was refused", 1)
            await health.readmit(endpoint, "the PIN is right again")
            await until(lambda endpoint=endpoint: endpoint.trusted)
            assert endpoint.member is not before, "it has started again"
            await sealed(b"%d has started again" % number)
    report = verify(Layout(path))
    assert report.ok, report.findings
    assert report.unsealed == 0
