"""Witnesses cosign an audit log that is open, and a verifier finds what they gave; none of them costs a record."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.audit_logs import keys_of, settings, write_log
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.terminal import PROGRAM
from tests.support.witness_server import WitnessServer, line_of, vkey

import hsmcore
from hsmcore.audit import AuditLog, cosigned
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.config import AuditSettings
from hsmcore.config.loading import load
from hsmcore.tlog.note import VerifierKey

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


def knows(witness: WitnessServer, layout: Layout) -> None:
    """Have the witness know a log."""
    [key] = keys_of(layout)
    witness.logs[layout.origin.read_text().strip()] = key.public_key


def asking(*witnesses: WitnessServer, **more: object) -> dict[str, object]:
    """What the configuration says of them."""
    return {"witnesses": [{"url": one.url, "key": one.key} for one in witnesses], "cosignEverySeconds": 1, **more}


def kinds(layout: Layout, *witnesses: WitnessServer, within: float | None = None) -> list[str]:
    trust = Trust(witnesses=[VerifierKey.parse(one.key) for one in witnesses], within=within)
    return [finding.kind for finding in verify(layout, trust).findings]


async def opened(layout: Layout, **more: object) -> AuditLog:
    log = AuditLog(str(layout.log), settings(**more))
    await log.open()
    return log


@one_loop
async def test_an_open_log_is_cosigned_as_it_grows_and_a_verifier_finds_it(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 300)
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        knows(one, layout)
        log = await opened(layout, **asking(one, two, quorum=1))
        await until(lambda: log.witnesses[one.name].size >= 300)
        assert log.cosigned_at
        for n in range(500):
            log.record("sign", message=b"%d" % n, result="ok")
        await log.checkpoint()
        await until(lambda: log.witnesses[one.name].size >= 800)
        assert "origin and the verifier key" in log.witnesses[two.name].error
        assert log.describe()["witnesses"][one.name]["error"] is None
        knows(two, layout)  # its operator mends that
        await until(lambda: log.witnesses[two.name].error is None)
        await log.close()
        await write_log(layout.log, 200)
        assert kinds(layout, one, two, within=60) == []
        assert kinds(layout, one, within=0) == ["witness"]
        with WitnessServer(name="witness.example/w3") as three:
            assert kinds(layout, three) == ["witness"]
        report = run("audit", "verify", layout.log, "--witness", one.key, "--witness-within", "60", "--json")
        assert any(f"{one.name} has cosigned" in note for note in report["notes"])
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hsmcore-witness")]


@one_loop
async def test_a_witness_that_has_seen_another_size_says_so_and_is_told(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 300)
    with WitnessServer() as witness:
        knows(witness, layout)
        for lost in (False, True):  # what was kept is gone: a new host has a copy of the log
            if lost:
                shutil.rmtree(layout.cosigned)
            log = await opened(layout, **asking(witness))
            await until(lambda log=log: log.witnesses[witness.name].at)
            await log.close()
            await write_log(layout.log, 77)
        assert kinds(layout, witness) == []


@one_loop
async def test_the_witness_of_sigsum_cosigns(tmp_path):
    """An independent one, Debian's sigsum-witness: over growth, a restart of each side, and another size."""
    layout = await write_log(tmp_path / "audit.log", 1)
    [key] = keys_of(layout)
    origin = f"sigsum.org/v1/tree/{hashlib.sha256(key.public_key).hexdigest()}"
    shutil.rmtree(layout.folder)
    layout.log.unlink()  # the key's file stays, and it takes no log of another name
    await write_log(layout.log, 300, origin=origin)
    (tmp_path / "log.pub").write_text(sigsum("from-hex", given=key.public_key.hex()))
    sigsum("generate", "-o", str(tmp_path / "w"))
    public_key = bytes.fromhex(sigsum("to-hex", "-k", str(tmp_path / "w.pub")).strip())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = f"sigsum.org/v1/witness/{hashlib.sha256(public_key).hexdigest()}"
    listed = {"witnesses": [{"url": f"http://127.0.0.1:{port}", "key": vkey(name, 4, public_key)}]}
    listed["cosignEverySeconds"] = 1
    for size in (300, 340):
        with started(tmp_path, port):
            log = await opened(layout, origin=origin, **listed)
            await until(lambda log=log, size=size: log.witnesses[name].size >= size)
            await log.close()
            if size == 300:
                await write_log(layout.log, 40, origin=origin)
                shutil.rmtree(layout.cosigned)
    trust = Trust(witnesses=[VerifierKey.parse(listed["witnesses"][0]["key"])])
    assert verify(layout, trust).findings == []


def sigsum(*command: str, given: str = "") -> str:
    done = subprocess.run(["sigsum-key", *command], input=given, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@contextmanager
def started(folder: Path, port: int):
    files = ["-k", folder / "w", "--log-key", folder / "log.pub", "--state-file", folder / "state"]
    line = list(map(str, ["sigsum-witness", *files, f"127.0.0.1:{port}"]))
    # Debian builds it as a program of an older Go, whose patterns of paths are not those that it has.
    with subprocess.Popen(line, env={"PATH": "/usr/bin", "GODEBUG": "httpmuxgo121=0"}) as process:
        try:
            yield
        finally:
            process.kill()


OTHER = "ml.example", 6, bytes(32), bytes(100)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda answer: (200, "text/plain", b""), "no cosignature"),
        (lambda answer: (200, "text/plain", b"\xff\xfe\n" * 3), "no cosignature"),
        (lambda answer: (200, "text/plain", answer[2].replace(b"w1 ", b"w9 ")), "no cosignature"),
        (lambda answer: (200, "text/plain", answer[2][:-12] + b"AAAAAAAAAA=\n"), ""),
        (lambda answer: (200, "text/plain", bytes(1 << 20)), "bytes"),
        (lambda answer: (409, "text/plain", b"many"), "what it has seen"),
        (lambda answer: (409, "text/x.tlog.size", b"999999\n"), "older copy"),
        (lambda answer: (409, "text/x.tlog.size", b"0\n"), "refused (409)"),
        (lambda answer: (403, "text/plain", b""), "does not trust"),
        (lambda answer: (422, "text/plain", b""), "another history"),
        (lambda answer: (500, "text/plain", b"\x1b[2J"), "refused (500)"),
        (lambda answer: None, "no answer"),
    ],
    ids=[
        "empty",
        "garbage",
        "other key",
        "cut",
        "long",
        "409 text",
        "409 ahead",
        "409 again",
        "403",
        "422",
        "500",
        "hangs",
    ],
)
@one_loop
async def test_what_a_witness_may_do_costs_no_record(tmp_path, wrong, said):
    """It is told, and nothing that it sent is kept; a good witness beside it goes on."""
    layout = await write_log(tmp_path / "audit.log", 300)
    with WitnessServer() as bad, WitnessServer(name="witness.example/w2") as good:
        knows(bad, layout)
        knows(good, layout)
        bad.wrong = wrong
        log = await opened(layout, **asking(bad, good))
        await until(lambda: bad.asked and log.witnesses[good.name].at)
        log.record("sign", message=b"m", result="ok")
        await log.flush()
        assert log.cosigned_at == 0, "a quorum is all of them"
        await until(lambda: (log.witnesses[bad.name].error or "no answer") and bad.asked)
        if wrong(good.answer(b"old 0\n\n" + layout.checkpoint.read_bytes())) is not None:
            await until(lambda: said in (log.witnesses[bad.name].error or "-"))
        await log.close()
        assert kinds(layout, good) == []
        assert kinds(layout, bad) == ["witness"]


@one_loop
async def test_signatures_of_other_kinds_stand_beside_it(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 300)
    with WitnessServer() as witness:
        knows(witness, layout)
        witness.wrong = lambda answer: (200, "text/plain", line_of(*OTHER) + answer[2] + line_of(*OTHER))
        log = await opened(layout, **asking(witness))
        await until(lambda: log.witnesses[witness.name].at)
        await log.close()
        assert kinds(layout, witness) == []


@one_loop
async def test_a_log_that_was_written_again_is_refused_by_the_witness_and_found(tmp_path):
    """By somebody who has the key, the folder, and all that is kept in it."""
    layout = await write_log(tmp_path / "audit.log", 300)
    shutil.copytree(tmp_path, tmp_path.with_name("other"))
    with WitnessServer() as witness:
        knows(witness, layout)
        report = json_of(tmp_path, layout, witness, code=0)
        assert report["witnesses"][witness.name]["size"] == 300
        await write_log(layout.log, 50)
        json_of(tmp_path, layout, witness, code=0)
        other = await write_log(tmp_path.with_name("other") / "audit.log", 40, begin=7000)
        refused = json_of(other.log.parent, other, witness, code=1)["witnesses"][witness.name]
        assert "older copy" in refused["error"]  # 340 records, where it has seen 350
        await write_log(other.log, 40)
        assert (
            "another history" in json_of(other.log.parent, other, witness, code=1)["witnesses"][witness.name]["error"]
        )
        shutil.copytree(layout.cosigned, other.cosigned, dirs_exist_ok=True)
        assert "rewritten" in kinds(other, witness)


@one_loop
async def test_what_is_kept_is_bounded_and_each_witness_s_newest_stays(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 1)
    with WitnessServer() as often, WitnessServer(name="witness.example/w2") as once:
        log = await opened(layout)
        keys = [VerifierKey.parse(one.key) for one in (often, once)]
        sizes = []
        for n in range(cosigned.KEPT + 10):
            log.record("sign", message=b"%d" % n, result="ok")
            await log.flush()
            await log.checkpoint()
            checkpoint = log._open.checkpoint
            sizes.append(checkpoint.size)
            for key, witness in zip(keys, (often, once), strict=True):
                if witness is often or n == 3:
                    line = witness.cosigned(checkpoint.text)
                    cosigned.keep(layout, checkpoint, key, cosigned.signature_of(line.strip())[1][4:])
        await log.close()
        found = cosigned.newest(cosigned.notes(layout), keys)
        assert [found[key].size for key in keys] == [sizes[-1], sizes[3]]
        assert len(cosigned.notes(layout)) == cosigned.KEPT + 1
        assert kinds(layout, often, once) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda witness: {"url": witness.url, "key": witness.key.replace("+B", "+A")}, "a log's key has another type"),
        (lambda witness: {"url": "ftp://witness", "key": witness.key}, "https://"),
        (lambda witness: {"url": witness.url + "?x=1", "key": witness.key}, "no query"),
    ],
    ids=["log's key", "scheme", "query"],
)
def test_a_witness_that_can_never_be_asked_is_refused(body, said):
    with WitnessServer() as witness, pytest.raises(hsmcore.ConfigurationError, match=said):
        configured({"witnesses": [body(witness)]})


def test_a_quorum_that_can_never_be_met_is_refused():
    with WitnessServer() as witness:
        one = {"url": witness.url, "key": witness.key}
        with pytest.raises(hsmcore.ConfigurationError, match="can never meet"):
            configured({"witnesses": [one], "quorum": 2})
        with pytest.raises(hsmcore.ConfigurationError, match="each counts once"):
            configured({"witnesses": [one, one]})
        name, _, rest = one["key"].partition("+")
        audit = configured({"witnesses": [{**one, "key": f"{name}+00000000{rest[8:]}"}]})
        with pytest.raises(hsmcore.ConfigurationError, match="does not belong to its key") as caught:
            asyncio.run(AuditLog("/nowhere/audit.log", audit).open())
        assert caught.value.path == "$.sequencer.keyManager.audit.witnesses[0].key"


def configured(audit: dict[str, object]) -> AuditSettings:
    token = {"tokenLabel": "t", "pin": {"env": "HSM_PIN"}, "keyLabel": "k"}
    manager = {"type": "softhsm", "config": token, "auditLogFile": "/nowhere/audit.log", "audit": audit}
    return load({"sequencer": {"keyManager": manager}}).key_manager.audit


def json_of(folder: Path, layout: Layout, witness: WitnessServer, code: int) -> dict:
    """What `audit cosign` says."""
    config = folder / "config.json"
    token = {"tokenLabel": "t", "pin": {"env": "HSM_PIN"}, "keyLabel": "k"}
    audit = {"witnesses": [{"url": witness.url, "key": witness.key}]}
    manager = {"type": "softhsm", "config": token, "auditLogFile": str(layout.log), "audit": audit}
    config.write_text(json.dumps({"sequencer": {"keyManager": manager}}))
    return run("audit", "cosign", "--config", config, "--json", code=code)


def run(*command: object, code: int = 0) -> dict:
    line = [*PROGRAM, *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)
