"""`audit device-log` on a simulated YubiHSM: what was signed, what was not recorded, what was lost."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from tests.support.audit_logs import settings
from tests.support.managers import opened
from tests.support.terminal import PROGRAM
from tests.support.yubihsm.rig import AUDITOR, KEY_ID, PASSWORDS

from hsmcore.audit import AuditLog
from hsmcore.audit.layout import Layout
from hsmcore.config import load
from hsmcore.providers.yubihsm import audit as yubihsm_audit

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


@pytest.fixture
def place(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(yubihsm_audit, "WAIT_SECONDS", 0.3)
    return Place(rig, tmp_path)


class Place:
    """A device, a configuration, and the command."""

    def __init__(self, rig, folder):
        self.rig, self.folder = rig, folder
        audit = {"auditAuthKeyId": AUDITOR, "auditPassword": {"file": rig.password_file(PASSWORDS[AUDITOR])}}
        self.document = rig.config(settings=audit, auditLogFile=str(folder / "audit.log"))
        self.config = folder / "hsm.json"
        self.config.write_text(json.dumps(self.document))

    def sign(self, messages):
        async def sign():
            async with opened(self.document) as manager:
                await manager.sign_many(messages)

        asyncio.run(sign())

    def read(self, code=0):
        """A report, and whether the command would fail."""
        report = self.examine().as_dict()
        assert bool(report["findings"]) == bool(code), report["findings"]
        return report

    def command(self, code=0):
        done = subprocess.run(
            [*PROGRAM, "audit", "device-log", "--config", self.config, "--json"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout, done.stderr
        [report] = json.loads(done.stdout)
        return report

    def examine(self):
        """What the command does, in this process."""
        provider = load(self.document).key_manager
        return asyncio.run(yubihsm_audit.examine(provider, Layout(self.folder / "audit.log")))

    @property
    def kept(self):
        [path] = (self.folder / "audit.log.d" / "devices").glob("*.jsonl")
        return path

    def sign_beside(self, message):
        """Another client's session signs with the same key."""
        from yubihsm.core import YubiHsm
        from yubihsm.objects import AsymmetricKey

        with YubiHsm.connect(self.rig.connector.url) as device:
            session = device.create_session_derived(2, PASSWORDS[2])
            AsymmetricKey(session, KEY_ID).sign_eddsa(message)
            session.close()


def kinds(report):
    return [finding["kind"] for finding in report["findings"]]


def test_all_signatures_are_matched(place):
    place.sign([b"before"])
    first = place.command()
    assert first["firstReading"]
    assert (first["matched"], kinds(first)) == (0, [])
    for turn in range(3):
        place.sign([b"%d %d" % (turn, n) for n in range(10 + turn)])
        report = place.read()
        assert (report["matched"], report["keyTests"], report["waiting"], kinds(report)) == (10 + turn, 1, 0, [])
    numbers = [json.loads(line)["number"] for line in place.kept.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(place.rig.device.log.entries) <= 4  # the device was told to forget them
    words = subprocess.run(
        [*PROGRAM, "audit", "device-log", "--config", place.config], capture_output=True, text=True, check=True
    )
    assert "OK: nothing to explain" in words.stdout


def test_a_signature_by_another_client_is_found(place):
    place.sign([b"1"])
    place.read()
    place.sign([b"2", b"3"])
    place.sign_beside(b"a transaction of an attacker with the password")
    place.sign_beside(b"4" * 100)
    report = place.command(1)
    assert kinds(report)[-1:] == ["unrecorded"]
    assert report["matched"] == 2
    assert kinds(place.read()) == []  # it is said once; the entry is kept


def invent(place):
    """A record of a signature that no device made."""

    async def invent():
        log = AuditLog(str(place.folder / "audit.log"), settings())
        await log.open()
        member = f"yubihsm:{place.rig.connector.url}"
        log.record("sign", message=b"invented", result="ok", key_id=f"{KEY_ID:04x}", member=member)
        await log.close()

    asyncio.run(invent())


def test_a_record_without_a_signature_is_found(place, monkeypatch):
    place.sign([b"1"])
    place.read()
    invent(place)
    assert place.read()["waiting"] == 1  # its entry might come with the next reading
    monkeypatch.setattr(yubihsm_audit, "GRACE_NS", -(10**9))
    assert [finding.kind for finding in place.examine().findings] == ["missing"]


def test_what_was_under_way_at_the_first_reading_is_forgiven_once(place, monkeypatch):
    """Each reading used to forgive as many records as sessions could have had under way at the first one."""
    place.sign([b"1"])
    begin = yubihsm_audit._Joiner._begin

    async def beside(self, report, lines):
        await asyncio.to_thread(invent, place)  # recorded during the first reading
        await begin(self, report, lines)

    with monkeypatch.context() as patch:
        patch.setattr(yubihsm_audit._Joiner, "_begin", beside)
        assert place.read()["firstReading"]
    monkeypatch.setattr(yubihsm_audit, "GRACE_NS", 0)
    assert place.read()["matched"] == 0  # forgiven
    for _ in range(2):
        invent(place)
        assert [finding.kind for finding in place.examine().findings] == ["missing"]


@pytest.mark.parametrize("damage", ["flip", "drop", "cut"])
def test_kept_entries_that_were_changed_are_found(place, damage):
    place.sign([b"1", b"2", b"3"])
    place.read()
    place.sign([b"4"])
    place.read()
    lines = place.kept.read_text().splitlines(keepends=True)
    if damage == "flip":
        lines[4] = json.dumps(json.loads(lines[4]) | {"target_key": 7}) + "\n"
    elif damage == "drop":
        del lines[4]
    else:
        del lines[-2:]
    place.kept.write_text("".join(lines))
    assert {"flip": "tampered", "drop": "gap", "cut": "cut"}[damage] in kinds(place.read(1))


def test_more_than_the_device_keeps_is_a_gap(place):
    place.sign([b"1"])
    place.read()
    place.sign([b"%d" % n for n in range(100)])
    assert "gap" in kinds(place.read(1))


def test_a_crash_between_keeping_and_forgetting_doubles_nothing(place, monkeypatch):
    place.sign([b"1"])
    place.read()
    place.sign([b"2", b"3"])
    state = place.kept.with_suffix(".json")
    before = state.read_bytes()

    def crash(*_arguments):
        raise OSError("crash")

    with monkeypatch.context() as patch:
        patch.setattr("hsmcore.providers.yubihsm.drain._Reader.forget", crash)
        with pytest.raises(OSError, match="crash"):
            place.examine()
    place.kept.write_text(place.kept.read_text() + '{"torn')
    state.write_bytes(before)  # the anchor was not written either
    report = place.read()
    assert kinds(report) == []
    assert report["matched"] == 2  # joined now, as it was not noted before
    numbers = [json.loads(line)["number"] for line in place.kept.read_text().splitlines()]
    assert len(numbers) == len(set(numbers))


def test_without_a_yubihsm(tmp_path):
    config = tmp_path / "hsm.json"
    manager = {"type": "softhsm", "config": {"tokenLabel": "t", "keyLabel": "k", "pin": {"env": "NONE"}}}
    (tmp_path / "audit.log.d").mkdir()
    config.write_text(json.dumps({"keyManager": manager | {"auditLogFile": str(tmp_path / "audit.log")}}))
    done = subprocess.run(
        [*PROGRAM, "audit", "device-log", "--config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no member of type yubihsm" in done.stderr
