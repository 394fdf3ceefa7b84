"""Every runbook is played: the fault is made where it happens, the alert becomes true on what is scraped, the runbook's
own commands mend it, the alert ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.test_public_log import DOMAIN, ORIGIN, publishing
from tests.integration.test_rotation import rules
from tests.support import wire_site
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.policed import ordered
from tests.support.postgres import cluster
from tests.support.promtool import as_series, begun, check, firing, middle, needs_promtool
from tests.support.runbooks import Operator, blocks
from tests.support.scrapes import Scrape
from tests.support.terminal import Terminal
from tests.support.witness_server import WitnessServer

import hsmcore
from hsmcore.errors import (
    AuditUnavailable,
    DeadlineExceeded,
    DoubleSign,
    FleetBehind,
    HsmError,
    NotHolder,
    PolicyRefused,
)
from hsmcore.serve.checks import checks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow("each alert fires, its runbook is followed, and it ends"),
    needs_promtool,
]
LEVELS = {
    "primaryRetryIntervalMs": 500,
    "secondaryRetryIntervalMs": 500,
    "maxPrimaryRetries": 1,
    "maxSecondaryRetries": 1,
}


class Play:
    """One incident: scrapes before, during and after it."""

    def __init__(self, manager: hsmcore.KeyManager, folder: Path) -> None:
        self.manager, self.folder = manager, folder
        self.scrapes: list[Scrape] = []

    async def scrape(self, condition: Callable[[Scrape], bool] = lambda _scrape: True) -> None:
        """Take the first scrape of which the condition is true."""
        await until(lambda: condition(Scrape.of(self.manager)))
        self.scrapes.append(Scrape.of(self.manager))

    def judge(self, *alerts: str) -> None:
        """The alerts fired while the incident lasted, and nothing did before and after."""
        during = [(middle(1), firing(alert), 1.0) for alert in alerts]
        around = [(middle(0), firing(), None), (middle(len(self.scrapes) - 1), firing(), None)]
        check(self.folder, as_series(self.scrapes), [*during, *around])


class Members(Site):
    """Two members that hold the same key, and an operator. The commands have a configuration of their own, in which the
    modules have the same faults and no control socket."""

    def settle(self, terminal: Terminal, config: dict[str, Any]) -> Operator:
        """Write the commands' configuration, for the first member."""
        text = json.dumps(config)
        for number, member in enumerate(self.members):
            beside = self.folder / f"commands-{number}.json"
            text = text.replace(member.args, f"config={beside}")
        self.tell()
        (self.folder / "config.json").write_text(text)
        return Operator(terminal, self.folder / "config.json", MEMBER=self.name(0))

    def tell(self) -> None:
        """The commands meet the faults that are in the members' files."""
        for number, member in enumerate(self.members):
            found = json.loads(member.path.read_text())
            del found["socket"]
            (self.folder / f"commands-{number}.json").write_text(json.dumps(found))

    def kill(self, number: int, ckr: str = "CKR_DEVICE_REMOVED") -> None:
        super().kill(number, ckr)
        self.tell()

    def revive(self, number: int) -> None:
        super().revive(number)
        self.tell()


@pytest.fixture
def site(tmp_path, fresh_token):
    return Members(tmp_path, fresh_token, SAME, SAME)


async def incident(
    play: Play,
    operator: Operator,
    title: str,
    *,
    happens: Callable[[], Awaitable[object]],
    shows: Callable[[Scrape], bool],
    repair: Callable[[], object] = lambda: None,
    mended: Callable[[Scrape], bool],
) -> None:
    """Before, during, and after it. What is mended outside of any command, a device or a network, is `repair`; it comes
    after the first block of commands, which look."""
    await play.scrape()
    await happens()
    await play.scrape(shows)
    first, *others = blocks(title)
    await operator.run(first)
    repair()
    for commands in others:
        await operator.run(commands)
    await play.scrape(mended)


def up(name: str) -> Callable[[Scrape], bool]:
    """Whether a member is in service."""
    return lambda scrape: scrape("hsmcore_member_up", member=name) == 1


def breaker(name: str, kind: str) -> Callable[[Scrape], bool]:
    """Whether a member is out for this kind of failure."""
    return lambda scrape: scrape("hsmcore_breaker_state", member=name, kind=kind) == 2


@one_loop
@pytest.mark.parametrize("isolation", ["process", pytest.param("thread", marks=pytest.mark.deep)])
async def test_pin_refused_or_locked(site, terminal, isolation):
    """The security officer sets another PIN; then the module is initialized again, and the login is refused."""
    config = site.config(failover=LEVELS)
    config["sequencer"]["keyManager"]["config"]["isolation"] = isolation
    token, wrapped = site.tokens[0], site.members[0].wrapped
    operator = site.settle(terminal, config)
    operator.set(MODULE=wrapped.module, TOKEN=token.label, SO_PIN=token.so_pin, PIN=token.pin)
    change = ["pkcs11-tool", "--module", wrapped.module, "--token-label", token.label, "--login", "--login-type", "so",
              "--so-pin", token.so_pin, "--init-pin", "--new-pin", "another-pin"]  # fmt: skip

    async def happens():
        await asyncio.to_thread(subprocess.run, change, check=True, capture_output=True, env=token.environment)
        if isolation == "process":
            site.members[0].fault("C_Sign", "exit")
        else:
            site.members[0].fault("C_Sign", "return", every=1, count=3, ckr="CKR_CRYPTOKI_NOT_INITIALIZED")
        assert await manager.sign(b"somebody signs")

    async with opened(config) as manager:
        play = Play(manager, site.folder)
        await incident(
            play, operator, "PIN refused or locked",
            happens=happens, shows=breaker(site.name(0), "auth"), mended=up(site.name(0)),
        )  # fmt: skip
    play.judge("HsmcorePinRefused", "HsmcoreMemberDown")


@one_loop
async def test_a_member_is_down(site, terminal):
    config = site.config(failover=LEVELS)
    operator = site.settle(terminal, config)

    async def happens():
        site.kill(0)
        assert await manager.sign(b"somebody signs")

    async with opened(config) as manager:
        play = Play(manager, site.folder)
        await incident(
            play, operator, "A member is down",
            happens=happens, shows=breaker(site.name(0), "down"),
            repair=lambda: site.revive(0), mended=up(site.name(0)),
        )  # fmt: skip
    play.judge("HsmcoreMemberDown")


@one_loop
async def test_the_emergency_level_signs(site, terminal):
    limits = {"emergencyModeEnabled": True, "emergencyModeRestrictions": {"maxTransactions": 20}}
    config = site.config(failover={**LEVELS, **limits})
    operator = site.settle(terminal, config)

    async def happens():
        site.kill(0)
        site.kill(1)
        for number in range(16):
            assert await manager.sign(b"somebody signs %d" % number)

    def repair():
        site.revive(0)
        site.revive(1)

    def shows(scrape: Scrape) -> bool:
        return scrape("hsmcore_emergency_signatures_left") < 5

    def mended(scrape: Scrape) -> bool:
        whole = scrape("hsmcore_emergency_signatures_left") == 20
        return whole and scrape("hsmcore_level_active", level="primary") == 1 and up(site.name(1))(scrape)

    async with opened(config) as manager:
        play = Play(manager, site.folder)
        await incident(
            play, operator, "The emergency level signs", happens=happens, shows=shows, repair=repair, mended=mended
        )
    play.judge("HsmcoreEmergencyEntered", "HsmcoreEmergencyBudgetLow")


@one_loop
async def test_two_payloads_for_one_position(world, terminal, tmp_path):
    log = str(tmp_path / "audit" / "audit.log")
    config = world.config(auditLogFile=log, stateFile=str(tmp_path / "state.db"), policy={"kinds": ["block"]})
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json", POSITION="7")

    async def happens():
        await manager.sign(ordered(7, b"first"))
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(7, b"second"))

    async def mended():
        await manager.sign(ordered(8))
        with pytest.raises(PolicyRefused):
            await manager.sign(ordered(7, b"second"))

    async with opened(config) as manager:
        play = Play(manager, tmp_path)
        await incident(
            play, operator, "Two payloads for one position",
            happens=happens, shows=lambda scrape: scrape("hsmcore_double_sign_refused_total") == 1,
            repair=lambda: None, mended=lambda scrape: scrape("hsmcore_double_sign_refused_total") == 1,
        )  # fmt: skip
        await mended()
    assert "position 7" in operator.said["hsmcore audit query --limit 5 --where error=DOUBLE_SIGN --json"]
    play.judge("HsmcoreDoubleSignRefused")


def in_a_fleet(token: Any, url: str, folder: Path, **fleet: Any) -> dict[str, Any]:
    """A configuration of a fleet's only host, and the commands'."""
    block = {"store": {"url": url}, "name": "tests", "host": "only", "singleNode": True, "ttlMs": 1000, **fleet}
    log = str(folder / "audit" / "audit.log")
    config: dict[str, Any] = token.config(auditLogFile=log, policy={"kinds": ["block", "raw"]}, fleet=block)
    (folder / "config.json").write_text(json.dumps(config))
    return config


def fleet_is(state: str) -> Callable[[Scrape], bool]:
    """Whether the host has this state."""
    return lambda scrape: scrape("hsmcore_fleet_state", state=state) == 1


@one_loop
async def test_no_host_holds_the_epoch(world, terminal, tmp_path, postgres):
    config = in_a_fleet(world, postgres.database(), tmp_path, claim="manual")
    known = {"HOST": "only", "DOMAIN": "default/block", "HEAD": "5"}
    operator = Operator(terminal, tmp_path / "config.json", **known)

    async def happens():
        await manager.fleet.release("maintenance")
        with pytest.raises(NotHolder):
            await manager.sign(b"raw")

    async with opened(config) as manager:
        await manager.fleet.claim()
        await manager.sign(ordered(5))
        play = Play(manager, tmp_path)
        await incident(
            play, operator, "No host holds the epoch",
            happens=happens, shows=fleet_is("follower"), mended=fleet_is("holder"),
        )  # fmt: skip
        assert await manager.sign(b"raw")
        assert play.scrapes[-1]("hsmcore_fleet_epoch") == 2
        assert play.scrapes[-1]("hsmcore_fleet_claims_total") == 2
        assert play.scrapes[-1]("hsmcore_fleet_lease_seconds") > 0
    assert "maintenance" in operator.said["hsmcore audit query --limit 5 --where operation=fleet-release --json"]
    play.judge("HsmcoreFleetNoHolder")


@one_loop
async def test_the_holder_is_in_doubt(world, terminal, tmp_path):
    with cluster() as server:
        config = in_a_fleet(world, server.database(), tmp_path)
        operator = Operator(terminal, tmp_path / "config.json")

        async def happens():
            await asyncio.to_thread(server.stop, how="immediate")
            while True:
                try:
                    await manager.sign(b"raw", 0.2)
                except DeadlineExceeded:
                    return

        async with opened(config) as manager:
            await until(lambda: manager.fleet.state == "holder")
            play = Play(manager, tmp_path)
            await incident(
                play, operator, "The holder is in doubt",
                happens=happens, shows=fleet_is("doubtful"), repair=server.start, mended=fleet_is("holder"),
            )  # fmt: skip
            assert await manager.sign(ordered(1))
            assert play.scrapes[1]("hsmcore_fleet_renewals_failed_total") > 0
            assert play.scrapes[1]("hsmcore_fleet_lease_seconds") == 0
    assert "DEADLINE_EXCEEDED" in operator.said["hsmcore audit query --limit 5 --where error=DEADLINE_EXCEEDED"]
    play.judge("HsmcoreFleetDoubtful")


@one_loop
async def test_the_fleets_database_has_lost_positions(world, terminal, tmp_path, postgres):
    url = postgres.database()
    config = in_a_fleet(world, url, tmp_path)
    lost = {"REASON": "the machine burned", "DOMAIN": "default/block", "HEAD": "5"}
    operator = Operator(terminal, tmp_path / "config.json", **lost)

    def write(statement):
        with psycopg.connect(url, autocommit=True, options="-c search_path=hsmcore_tests") as connection:
            connection.execute(statement)

    async def happens():
        await manager.sign(ordered(1))
        write("INSERT INTO fleet_host VALUES ('gone', '', 0, '', 0, 0, '')")
        write("UPDATE fleet SET incident = 1")
        await until(lambda: manager.fleet.incident == 1)
        with pytest.raises(FleetBehind):
            await manager.sign(ordered(2))
        assert await manager.sign(b"raw")

    async with opened(config) as manager:
        await until(lambda: manager.fleet.state == "holder")
        play = Play(manager, tmp_path)
        await incident(
            play, operator, "The fleet's database has lost positions",
            happens=happens, shows=lambda scrape: scrape("hsmcore_fleet_incident") == 1,
            mended=lambda scrape: scrape("hsmcore_fleet_incident") == 0 and fleet_is("holder")(scrape),
        )  # fmt: skip
        with pytest.raises(PolicyRefused):
            await manager.sign(ordered(5))
        assert await manager.sign(ordered(6))
    play.judge("HsmcoreFleetBehind")


@one_loop
async def test_a_wrong_signature(site, terminal):
    config = site.config(failover=LEVELS, auditLogFile=str(site.folder / "audit.log"))
    operator = site.settle(terminal, config)
    fault = {"function": "C_Sign", "every": 1, "action": "wrong-signature"}

    async def happens():
        site.members[0].write(faults=[fault])
        site.members[0].ask("fault", **fault)
        site.tell()
        assert await manager.verify(b"m", await manager.sign(b"m"))

    async with opened(config) as manager:
        play = Play(manager, site.folder)
        await incident(
            play, operator, "A wrong signature",
            happens=happens, shows=breaker(site.name(0), "wrong"),
            repair=lambda: site.revive(0), mended=up(site.name(0)),
        )  # fmt: skip
    assert "SIGNATURE_INVALID" in operator.said["hsmcore audit query --limit 5 --where error=SIGNATURE_INVALID"]
    play.judge("HsmcoreWrongSignature")


@one_loop
async def test_the_audit_log_cannot_be_written(world, terminal, tmp_path):
    """A program that rotates all logs has moved the file."""
    log, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    config = world.config(maxCacheSize=0, auditLogFile=str(log))
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json", AUDIT_LOG=str(log), MOVED=str(moved))

    async def happens():
        log.rename(moved)
        with pytest.raises(AuditUnavailable):
            await manager.sign(b"nobody signs")

    async with opened(config) as manager:
        play = Play(manager, tmp_path)
        await manager.sign(b"m")
        await incident(
            play, operator, "The audit log cannot be written",
            happens=happens, shows=lambda scrape: scrape("hsmcore_audit_failing") == 1,
            mended=lambda scrape: scrape("hsmcore_audit_failing") == 0,
        )  # fmt: skip
        assert await manager.sign(b"m")
    play.judge("HsmcoreAuditUnavailable")


@one_loop
async def test_a_rotation_failed(fresh_token, terminal, tmp_path):
    """The place of the backups cannot be written."""
    token, backups = fresh_token({"name": "p256", "kind": "ecdsa-p256"}), tmp_path / "backups"
    config = token.config("p256", **rules(tmp_path, backupEnabled=True, backupLocation=str(backups), overlapDays=2))
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json")

    async def happens():
        backups.write_text("no folder")
        with pytest.raises(HsmError):
            await manager.rotate_key("by hand")

    async with opened(config) as manager:
        play = Play(manager, tmp_path)
        await until(lambda: bool(Scrape.of(manager).all("hsmcore_rotation_failures")))
        old = manager.public_key
        await incident(
            play, operator, "A rotation failed",
            happens=happens, shows=lambda scrape: scrape("hsmcore_rotation_failures") == 1, repair=backups.unlink,
            mended=lambda scrape: scrape("hsmcore_rotation_failures") == 0,
        )  # fmt: skip
        assert manager.public_key != old
        after = play.scrapes[-1]
        assert after("hsmcore_backup_timestamp_seconds") >= after("hsmcore_key_created_timestamp_seconds") - 1 > 1e9
        assert after("hsmcore_restore_drill_timestamp_seconds") > 1e9
    play.judge("HsmcoreRotationFailed")


@one_loop
async def test_the_state_store_is_not_genuine(fresh_token, terminal, tmp_path):
    """A row of the key ring was changed beside the running key manager."""
    log = str(tmp_path / "audit" / "audit.log")
    config = fresh_token().config(**rules(tmp_path, overlapDays=2), auditLogFile=log)
    config["sequencer"]["stateSecret"] = "s" * 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json")

    async def happens():
        with closing(sqlite3.connect(tmp_path / "state.db", timeout=10)) as connection, connection:
            connection.execute("UPDATE key_version SET base_ns = 0")

    def compared():
        [shown] = [text for command, text in operator.said.items() if command.startswith("hsmcore state seal")]
        assert "NOT GENUINE: ring" in shown
        operator.set(DIGEST=re.search(r"digest +([0-9a-f]{64})", shown)[1])

    async with opened(config) as manager:
        play = Play(manager, tmp_path)
        await until(lambda: bool(Scrape.of(manager).all("hsmcore_store_not_genuine")))
        await incident(
            play, operator, "The state store is not genuine",
            happens=happens, shows=lambda scrape: scrape("hsmcore_store_not_genuine", scope="ring") == 1,
            repair=compared, mended=lambda scrape: scrape("hsmcore_store_not_genuine", scope="ring") == 0,
        )  # fmt: skip
        assert await manager.sign(b"m")
    play.judge("HsmcoreStoreNotGenuine")


@one_loop
async def test_the_state_store_is_not_backed_up(world, terminal, tmp_path):
    """A file lies where the folder of the backups was."""
    place, log = tmp_path / "backups", str(tmp_path / "audit.log")
    policy = {"kinds": ["block"]}
    backups = {"location": str(place), "everyHours": 1}
    config = world.config(stateFile=str(tmp_path / "state.db"), policy=policy, auditLogFile=log, stateBackup=backups)
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json", PLACE=str(place))

    async def happens():
        place.rename(tmp_path / "elsewhere")
        place.write_text("no folder")
        look = manager._background.state_backups
        with pytest.raises(HsmError):
            await look.look()
        await look.close()
        look.start()

    async with opened(config) as manager:
        await until(lambda: Scrape.of(manager)("hsmcore_state_drill_timestamp_seconds") > 0)
        play = Play(manager, tmp_path)
        await incident(
            play, operator, "The state store is not backed up",
            happens=happens, shows=lambda scrape: scrape("hsmcore_state_backup_failing") == 1, repair=place.unlink,
            mended=lambda scrape: scrape("hsmcore_state_backup_failing") == 0,
        )  # fmt: skip
    play.judge("HsmcoreStateNotBackedUp")


@pytest.fixture
def volume(tmp_path):
    """A small file system of its own."""
    place = tmp_path / "volume"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=16m", "hsmcore-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@one_loop
async def test_the_disk_fills(world, volume, terminal, tmp_path):
    log, useless = volume / "audit.log", volume / "core.4711"
    config = world.config(maxCacheSize=0, auditLogFile=str(log))
    (tmp_path / "config.json").write_text(json.dumps(config))
    operator = Operator(terminal, tmp_path / "config.json", AUDIT_LOG=str(log), USELESS=str(useless))

    async def happens():
        await asyncio.to_thread(useless.write_bytes, bytes(15 << 20))

    async with opened(config) as manager:
        play = Play(manager, tmp_path)
        await manager.sign(b"m")
        await incident(
            play, operator, "The disk fills",
            happens=happens, shows=lambda scrape: scrape("hsmcore_disk_free_bytes", use="audit") < 1 << 20,
            mended=lambda scrape: scrape("hsmcore_disk_free_bytes", use="audit") > 8 << 20,
        )  # fmt: skip
        assert str(useless) in "".join(operator.said.values())
    play.judge("HsmcoreDiskFilling")


def judge_steps(play: Play, alert: str) -> None:
    """The alert fired after what happened, nothing else did, and all ended by itself."""
    scraped = as_series(play.scrapes)
    during = [(begun(1, 120), firing(alert), 1.0), (begun(1, 120), firing(), 1.0)]
    check(play.folder, scraped, [(middle(0), firing(), None), *during, (middle(2), firing(), None)])


@one_loop
async def test_the_gateway_refuses_connections(world, terminal, tmp_path):
    clients = {"app": {"uid": [os.getuid() + 1], "keys": ["default"]}}
    config = world.config(auditLogFile=str(tmp_path / "audit.log"))
    operator = Operator(terminal, tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(wire_site.document(config, tmp_path, clients)))
    async with wire_site.site(config, tmp_path, clients) as gateway:

        async def happens():
            for _ in range(25):
                async with gateway.connection() as stranger:
                    stranger.send(b"x")
                    await stranger.ends()

        play = Play(gateway.manager, tmp_path)
        await incident(
            play, operator, "The gateway refuses connections",
            happens=happens, shows=lambda scrape: scrape("hsmcore_gateway_refused_total") == 25, mended=lambda _: True,
        )  # fmt: skip
    assert f"uid {os.getuid()}, gid {os.getgid()}" in "".join(operator.said.values())
    judge_steps(play, "HsmcoreGatewayRefuses")


@one_loop
async def test_a_client_of_the_gateway_waits(world, terminal, tmp_path):
    clients = {"app": {**wire_site.ME["app"], "perSecond": 1}}
    config = world.config(auditLogFile=str(tmp_path / "audit.log"))
    operator = Operator(terminal, tmp_path / "config.json", CLIENT="app")
    (tmp_path / "config.json").write_text(json.dumps(wire_site.document(config, tmp_path, clients)))
    async with wire_site.site(config, tmp_path, clients) as gateway, gateway.peer() as peer:

        async def happens():
            for number in range(3, 63):
                await peer.ask(wire_site.sign(number, b"m"))

        play = Play(gateway.manager, tmp_path)
        await peer.ask(wire_site.many(1, *[b"m"] * 60))  # owed, so that the machine may be slow
        await peer.refused(wire_site.sign(2, b"m"))
        await incident(
            play, operator, "A client of the gateway waits", happens=happens, mended=lambda _: True,
            shows=lambda scrape: scrape("hsmcore_gateway_requests_total", client="app", outcome="QUEUE_FULL") > 30,
        )  # fmt: skip
    assert '"caller": "app"' in "".join(operator.said.values()).replace('":"', '": "')
    judge_steps(play, "HsmcoreGatewayClientWaits")


@one_loop
async def test_the_public_log_stands(world, terminal, tmp_path):
    """Its witness gives nothing for a while: positions are signed, wait, and are published at once when it is back."""
    with WitnessServer() as witness:
        config = publishing(world, tmp_path, witness, cosignEverySeconds=1)
        (tmp_path / "config.json").write_text(json.dumps(config))
        operator = Operator(terminal, tmp_path / "config.json")
        async with opened(config) as manager:
            witness.logs[ORIGIN] = manager.public_key
            await manager.sign(ordered(0))
            await manager.position_proof(DOMAIN, 0)

            async def happens():
                witness.wrong = lambda _answer: (500, "text/plain", b"")
                for position in (1, 2):
                    await manager.sign(ordered(position))

            def repair():
                [said] = [check for check in checks(manager.describe(), {}, "", "", 0) if check.name == "publish"]
                assert (said.outcome, said.detail) == ("warn", f"{DOMAIN}: witness {witness.name}: refused (500)")
                witness.wrong = lambda answer: answer

            play = Play(manager, tmp_path)
            await incident(
                play, operator, "The public log stands", happens=happens, repair=repair,
                shows=lambda scrape: (
                    scrape("hsmcore_public_log_waiting_positions", domain=DOMAIN) == 2
                    and scrape("hsmcore_public_log_witness_failing", domain=DOMAIN, witness=witness.name) == 1
                ),
                mended=lambda scrape: scrape("hsmcore_public_log_waiting_positions", domain=DOMAIN) == 0,
            )  # fmt: skip
            assert play.scrapes[-1]("hsmcore_public_log_published_positions", domain=DOMAIN) == 3
            assert play.scrapes[-1]("hsmcore_public_log_quorum_timestamp_seconds", domain=DOMAIN) > 0
    play.judge("HsmcorePublicLogStands")
