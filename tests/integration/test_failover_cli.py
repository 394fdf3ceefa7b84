"""`hsmcore failover` and `hsmcore emergency`: on a store by themselves, and on that of a running key manager."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from tests.support.chaos import needs_chaos
from tests.support.commands import commands
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.terminal import PROGRAM

from hsmcore.config import load
from hsmcore.state import Store

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal"), needs_chaos]


@pytest.fixture
def place(tmp_path, fresh_token):
    place = Site(tmp_path, fresh_token, SAME, SAME)
    (tmp_path / "config.json").write_text(json.dumps(place.config(failover={"emergencyModeEnabled": True})))
    (tmp_path / "plain.json").write_text(json.dumps(place.tokens[0].config()))
    return place


@pytest.fixture
def command(place, capfdbinary):
    with commands(place.folder, capfdbinary) as command:
        yield command


@pytest.fixture
def store(place):
    """A start has made it."""

    async def begin():
        rules = load(place.folder / "config.json").key_manager
        await (await Store.open(rules.state_path)).close()

    asyncio.run(begin())


def test_an_unused_store(command, place):
    assert command("failover", "status")[:2] == (0, {"running": [], "wishes": {}, "storeNotGenuine": {}})
    assert command("failover", "history")[:2] == (0, [])
    code, status, _ = command("emergency", "status")
    assert code == 0
    assert (status["usable"], status["left"], status["firstSignature"]) == (True, 1000, None)
    for arguments in (("failover", "status"), ("failover", "history"), ("emergency", "status")):
        code, text, _ = command(*arguments, plain=True)
        assert code == 0
        assert text


def test_operator_commands_are_stored_and_undone(command, place, store):
    name = place.name(1)
    assert command("failover", "drain", name, "--reason", "firmware")[0] == 0
    assert command("failover", "force", "secondary", "--reason", "game day")[0] == 0
    assert command("emergency", "disable", "--reason", "not on chain yet")[0] == 0
    assert command("failover", "status")[1]["wishes"] == {
        f"drain:{name}": {"value": "yes", "reason": "firmware"},
        "force": {"value": "secondary", "reason": "game day"},
        "emergency": {"value": "disabled", "reason": "not on chain yet"},
    }
    assert command("emergency", "status")[1]["enabled"] is False
    assert command("failover", "drain", name, "--undo")[0] == 0
    assert command("failover", "force", "none")[0] == 0
    assert command("emergency", "enable")[0] == 0
    assert list(command("failover", "status")[1]["wishes"]) == ["emergency"]
    assert command("emergency", "status")[1]["enabled"] is True


def test_to_drain_the_last_member_is_said_to_be_that(command, place, store):
    first, second = place.name(0), place.name(1)
    assert "last member" not in command("failover", "drain", first, plain=True)[2]
    said = command("failover", "drain", second, plain=True)[2]
    assert f"{second} is the last member in service: without it requests go to the emergency key" in said
    assert "last member" not in command("failover", "drain", second, "--undo", plain=True)[2]
    assert "signs with another key" in command("failover", "force", "emergency", plain=True)[2]


def test_a_reset_is_recorded_with_its_reason(command, store):
    code, done, _ = command("emergency", "reset", "--reason", "incident 42 is closed")
    assert (code, done["reason"]) == (0, "incident 42 is closed")
    [event] = command("failover", "history", "--kind", "emergency-reset")[1]
    assert event["reason"] == "incident 42 is closed"


@pytest.mark.parametrize(
    ("arguments", "config", "says"),
    [
        (("emergency", "reset"), "config.json", "--reason"),
        (("emergency", "reset", "--reason", " "), "config.json", "--reason"),
        (("failover", "drain", "nobody"), "config.json", "there is no member"),
        (("failover", "readmit", "nobody", "--reason", "x"), "config.json", "there is no member"),
        (("failover", "readmit", "nobody"), "config.json", "--reason"),
        (("failover", "force", "tertiary"), "config.json", "primary, secondary"),
        (("failover", "status"), "plain.json", "keyManager.failover"),
        (("emergency", "enable"), "plain.json", "emergencyModeEnabled"),
        (("failover", "history", "--limit", "0"), "config.json", "--limit"),
    ],
)
def test_bad_usage_says_what_is_wrong(command, arguments, config, says):
    code, _, error = command(*arguments, config=config)
    assert code == 2
    assert says in error


@one_loop
async def test_a_drained_member_signs_nothing_more_while_the_store_takes_its_time(place, command, monkeypatch):
    """The order was obeyed, and requests went to the member until the next reads of the store had ended."""
    config = place.config(failover={"emergencyModeEnabled": True})
    async with opened(config) as manager:
        failover = manager._path
        assert (await manager.sign_with_receipt(b"a")).level == "primary"
        answers = asyncio.Event()
        status = failover.budget.status

        async def slow_status():
            await answers.wait()
            return await status()

        monkeypatch.setattr(failover.budget, "status", slow_status)
        await failover.health._scope.close()  # the next look at the members would mend this
        drained = failover.endpoints[0]
        await failover._desired.set(f"drain:{drained.name}", "yes", "firmware")
        following = asyncio.get_running_loop().create_task(failover.health._follow())
        await until(lambda: drained.drained)
        assert (await manager.sign_with_receipt(b"b")).level == "secondary"
        answers.set()
        await following


@one_loop
@pytest.mark.slow("a command for each wish")
async def test_a_running_key_manager_follows(place, tmp_path):
    async def ask(*arguments, plain=False):
        child = await asyncio.create_subprocess_exec(
            *PROGRAM, *arguments, *([] if plain else ["--json"]), "--config", str(tmp_path / "running.json"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await child.communicate()
        assert child.returncode == 0, err
        return out.decode() if plain else json.loads(out)

    config = place.config(auditLogFile=str(tmp_path / "audit.log"))
    (tmp_path / "running.json").write_text(json.dumps(config))
    async with opened(config) as manager:
        assert (await manager.sign_with_receipt(b"a")).level == "primary"
        await ask("failover", "drain", place.name(0), "--reason", "firmware")
        await until(lambda: manager._path.levels.active == 1)
        assert (await manager.sign_with_receipt(b"b")).level == "secondary"
        found = {}
        while not found or found["active"] != "secondary":
            [found] = (await ask("failover", "status"))["running"]
        assert [m["condition"] for m in found["members"]] == ["drained", "ready"]
        await ask("failover", "drain", place.name(0), "--undo")
        await until(lambda: manager._path.levels.active == 0)
        await ask("failover", "force", "secondary", "--reason", "game day")
        await until(lambda: manager._path.levels.active == 1)
        kinds = [event["kind"] for event in await ask("failover", "history")]
        assert kinds == ["member-drained", "failover", "member-resumed", "failback", "level-forced", "failover"]
        await ask("failover", "force", "none")
        endpoint = manager._path.endpoints[0]
        manager._path.levels.failed(endpoint, "auth", "the login was refused", 1)
        manager._path.router.settle()
        assert (await manager.sign_with_receipt(b"c")).level == "secondary"
        first = endpoint.member
        await ask("failover", "readmit", place.name(0), "--reason", "the PIN is right again")
        await until(lambda: endpoint.trusted)
        assert endpoint.member is not first, "it has logged in again"
        await until(lambda: manager._path.levels.active == 0)
        assert [*(await ask("failover", "status"))["wishes"]] == [f"readmit:{place.name(0)}"]
        assert "asked for" not in await ask("failover", "status", plain=True), "it is done"
        [order] = await ask("failover", "history", "--kind", "member-readmitted")
        assert order["details"]["why"] == "the PIN is right again"
        await ask("emergency", "reset", "--reason", "drill")
        records = []
        while not records:
            records = [record async for record in manager.audit.query(match={"operation": "emergency-reset"})]
        await asyncio.sleep(1.5)
        assert len([r async for r in manager.audit.query(match={"operation": "emergency-reset"})]) == 1
        assert records[0]["reason"] == "drill"
    assert (await ask("failover", "status"))["running"] == []
