"""`hsmcore failover` and `hsmcore emergency`: on a store by themselves, and on that of a running key manager."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from structlog.testing import capture_logs
from tests.support.commands import commands
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.terminal import PROGRAM

from hsmcore.config import load
from hsmcore.state import Desired, Store

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


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
    last = f"{second} is the last member in service: without it requests go to the emergency key"
    for plain in (True, False):  # a script, which has no terminal to be asked at
        code, _, said = command("failover", "drain", second, plain=plain)
        assert (code, last in said, "give --yes" in said) == (2, True, True)
    assert list(command("failover", "status")[1]["wishes"]) == [f"drain:{first}"]
    code, _, said = command("failover", "drain", second, "--yes", plain=True)
    assert (code, last in said) == (0, True)
    assert "last member" not in command("failover", "drain", second, "--undo", plain=True)[2]
    assert "signs with another key" in command("failover", "force", "emergency", plain=True)[2]


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
async def test_a_running_key_manager_follows(place, tmp_path, monkeypatch):
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
        # A look at a history with nothing new in it asks for its newest event only.
        history, looks, reads = manager._path.history, [], []
        newest, query = history.newest, history.query
        monkeypatch.setattr(history, "newest", lambda: looks.append(1) or newest())
        monkeypatch.setattr(history, "query", lambda *a, **k: reads.append(k) or query(*a, **k))
        await until(lambda: len(looks) == 2)
        reads.clear()
        await until(lambda: len(looks) == 4)
        assert reads == []
        assert len([r async for r in manager.audit.query(match={"operation": "emergency-reset"})]) == 1
        assert records[0]["reason"] == "drill"
    assert (await ask("failover", "status"))["running"] == []


@one_loop
async def test_an_order_follows_the_name_and_not_the_place(place):
    async def conditions(*numbers, **rules):
        first, *others = ({**place.provider(number), **rules.get(f"member_{number}", {})} for number in numbers)
        config = {**place.config()["sequencer"]["keyManager"], **first, "failover": {"primary": others}}
        with capture_logs() as told:
            async with opened({"keyManager": config}) as manager:
                await until(lambda: manager._path.health._obeyed)
                found = {member.name: member.condition for member in manager.members()}
        return found, [line["member"] for line in told if "is to be drained" in line["event"]]

    names = {f"member_{number}": {"name": name} for number, name in enumerate(("rack 1", "rack 2"))}
    store = await Store.open(place.folder / "state.db")
    await Desired(store).set("drain:rack 2", "yes", "it signs wrongly")
    await store.close()
    for order in ((0, 1), (1, 0)):
        assert await conditions(*order, **names) == ({"rack 1": "ready", "rack 2": "drained"}, [])
    found = {place.name(0): "ready", place.name(1): "ready"}
    assert await conditions(0, 1) == (found, ["rack 2"])  # an order for a name that nothing has any more is told
