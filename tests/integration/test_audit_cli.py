"""The `audit` commands, on plain copies and without a configuration."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from tests.support.audit_logs import copy_of, keys_of, put_text, text_of, write_log
from tests.support.terminal import PROGRAM

from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.segment import segments

pytestmark = pytest.mark.usefixtures("terminal")


def audit(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code must be `code`."""
    done = subprocess.run(
        [*PROGRAM, "audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Layout:
    folder = tmp_path_factory.mktemp("audit")
    asyncio.run(write_log(folder / "log" / "audit.log", 600))
    (folder / "old.checkpoint").write_bytes((folder / "log" / "audit.log.d" / "checkpoint").read_bytes())
    return asyncio.run(write_log(folder / "log" / "audit.log", 600, begin=600))


@pytest.fixture
def copy(original, tmp_path) -> Layout:
    return copy_of(original, tmp_path / "copy")


def old_checkpoint(original: Layout) -> Path:
    return original.log.parent.parent / "old.checkpoint"


def test_verify(original, copy):
    [key] = keys_of(original)
    for place in (copy.log.parent, copy.log, copy.folder):
        done = audit("verify", place, "--key", key, "--against", old_checkpoint(original), "--json")
        report = json.loads(done.stdout)
        assert (report["ok"], report["records"], report["keysFromFolder"]) == (True, 1200, False)
    assert "OK: nothing was changed" in audit("verify", copy.log).stdout


def test_verify_says_where(original, copy):
    first = segments(copy)[0]
    put_text(copy, first, text_of(first).replace(b'{"seq":50,', b'{"seq":51,', 1))
    report = json.loads(audit("verify", copy.log, "--json", code=1).stdout)
    assert [(f["kind"], f["firstSeq"]) for f in report["findings"]] == [("changed", 50)]
    assert "CHANGED  record 50" in audit("verify", copy.log, code=1).stdout


def full_tile(copy: Layout) -> Path:
    return copy.tile(0, 1)


@pytest.mark.parametrize("damage", ["an empty index", "a wrong index", "no index", "no tile", "a wrong tile"])
def test_what_can_be_made_again_has_an_exit_code_of_its_own_and_is_made_again(original, copy, damage):
    path = full_tile(copy) if damage.endswith("tile") else copy.index(segments(copy)[0].first)
    data = path.read_bytes()
    path.write_bytes(b"" if "empty" in damage else bytes(reversed(data)))
    if damage.startswith("no "):
        path.unlink()
    [key] = keys_of(original)
    report = json.loads(audit("verify", copy.log, "--key", key, "--json", code=3).stdout)
    assert (report["ok"], report["status"], report["next"]) == (False, "derived", f"hsmcore audit mend {copy.log}")
    mended = json.loads(audit("mend", copy.log, "--key", key, "--json").stdout)
    assert (mended["ok"], mended["status"], mended["next"]) == (True, "ok", None)
    assert path.read_bytes() == data


def test_verify_says_what_makes_a_file_again(copy):
    copy.index(segments(copy)[0].first).write_bytes(b"")
    done = audit("verify", copy.log, code=3)
    assert "DERIVED: the records are whole and sealed" in done.stdout
    assert f"next: hsmcore audit mend {copy.log}" in done.stderr


def test_nothing_is_made_again_from_records_that_were_changed(copy):
    first = segments(copy)[0]
    put_text(copy, first, text_of(first).replace(b'"result":"ok"', b'"result":"no"', 1))
    copy.index(first.first).write_bytes(b"")
    full_tile(copy).write_bytes(b"")
    report = json.loads(audit("verify", copy.log, "--json", code=1).stdout)
    assert (report["status"], report["next"]) == ("failed", None)
    before = {path: path.read_bytes() for path in copy.folder.rglob("*") if path.is_file() and path != copy.lock}
    assert json.loads(audit("mend", copy.log, "--json", code=1).stdout)["status"] == "failed"
    assert {path: path.read_bytes() for path in before} == before
    log_lock = FolderLock(copy.lock)
    for command in ("mend", "adopt"):
        told = audit(command, copy.log, code=1).stderr
        assert "is writing it" in told
        assert "Stop that process" in told  # another auditLogFile would be another log
    log_lock.release()


def test_an_older_copy_is_found_with_a_known_checkpoint(original, tmp_path):
    early = asyncio.run(write_log(tmp_path / "early" / "audit.log", 50))
    known = tmp_path / "known"
    asyncio.run(write_log(tmp_path / "late" / "audit.log", 5))
    copy = copy_of(early, tmp_path / "copy")
    asyncio.run(write_log(early.log, 50, begin=50))
    known.write_bytes(early.checkpoint.read_bytes())
    report = json.loads(audit("verify", copy.log, "--against", known, "--json", code=1).stdout)
    assert [(f["kind"], f["firstSeq"], f["lastSeq"]) for f in report["findings"]] == [("older", 51, 100)]
    report = json.loads(audit("verify", copy.log, "--against", old_checkpoint(original), "--json", code=1).stdout)
    assert [f["kind"] for f in report["findings"]] == ["foreign-log"]


def test_a_proof_stands_alone(original, copy, tmp_path):
    proof = tmp_path / "77.tlog-proof"
    audit("prove", 77, "--folder", copy.log, "--output", proof)
    assert proof.read_text().startswith("c2sp.org/tlog-proof@v1\nextra ")
    [key] = keys_of(original)
    shown = json.loads(audit("verify", "--proof", proof, "--key", key, "--json").stdout)
    assert (shown["ok"], shown["seq"], json.loads(shown["record"])["seq"]) == (True, 77, 77)
    audit("verify", "--proof", proof, code=2)
    proof.write_text(proof.read_text().replace("index 76", "index 75"))
    assert "not in the log" in audit("verify", "--proof", proof, "--key", key, code=1).stderr
    audit("prove", 0, "--folder", copy.log, code=1)
    audit("prove", 1201, "--folder", copy.log, code=1)
    audit("prove", "--folder", copy.log, code=2)


def test_growth_is_proven(original, copy):
    done = audit("prove", "--since", old_checkpoint(original), "--folder", copy.log)
    assert done.stdout.startswith("old 600\n")
    assert done.stdout.endswith(copy.checkpoint.read_text())


def test_query_checkpoint_and_show(copy):
    found = audit("query", "--folder", copy.log, "--since", "1h", "--operation", "login", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in found] == [500, 1000]
    assert len(segments(copy)) > 1
    for wanted in ([], ["--key", f"{3:032x}", "--where", "result=ok"]):
        every = audit("query", "--folder", copy.log, *wanted).stdout.splitlines()
        for most in (1, 4, len(every) - 1, len(every), 5000):
            some = audit("query", "--folder", copy.log, *wanted, "--limit", most).stdout.splitlines()
            assert some == every[-most:], "not the latest, oldest first"
    assert audit("query", "--folder", copy.log, "--until", "2001-01-01").stdout == ""
    assert json.loads(audit("checkpoint", "--folder", copy.log, "--json").stdout)["size"] == 1200
    assert audit("checkpoint", "--folder", copy.log).stdout == copy.checkpoint.read_text()
    shown = json.loads(audit("show", "--folder", copy.log, "--json").stdout)
    assert (shown["firstSeq"], shown["lastSeq"], shown["sealed"]) == (1, 1200, 1200)
    assert json.loads(audit("show", 7, "--folder", copy.log).stdout)["seq"] == 7
    audit("show", 1201, "--folder", copy.log, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere"],
        ["verify", "{log}", "--key", "rubbish"],
        ["verify", "{log}", "--against", "nowhere"],
        ["verify", "{log}", "--against", "{log}"],
        ["query", "--folder", "{log}", "--since", "yesterday"],
        ["query", "--folder", "{log}", "--where", "nothing"],
        ["query", "--folder", "{folder}/tile"],
        ["frobnicate"],
    ],
)
def test_bad_usage_is_exit_code_two(copy, arguments):
    done = audit(*(str(item).format(log=copy.log, folder=copy.folder) for item in arguments), code=2)
    assert "next:" in done.stderr
