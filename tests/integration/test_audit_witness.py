"""A witness cosigns a checkpoint (C2SP tlog-cosignature): its signature line stands beside the log's, wherever it is
kept, and counts for a log that has grown since."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.support.audit_logs import write_log
from tests.support.loops import one_loop
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.tlog.note import COSIGNATURE, ED25519, Note, VerifierKey, signature_line

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


class Witness:
    """A witness of its own key."""

    def __init__(self, name: str = "witness.example/w1") -> None:
        self._key = SigningKey.generate()
        self.key = VerifierKey(name, COSIGNATURE, bytes(self._key.verify_key))

    def cosigned(self, note: bytes, *, wrong: bool = False) -> bytes:
        """The note with the witness's signature line."""
        moment = int(time.time())
        text = b"cosignature/v1\ntime %d\n" % moment + (b"other\n" if wrong else Note.parse(note).text)
        return note + signature_line(self.key, moment.to_bytes(8, "big") + self._key.sign(text).signature)


def kinds(layout: Layout, witnesses: Sequence[Witness], against: Sequence[bytes] = ()) -> list[str]:
    report = verify(layout, Trust(witnesses=[witness.key for witness in witnesses], against=against))
    return [finding.kind for finding in report.findings]


@one_loop
async def test_a_start_takes_a_cosigned_checkpoint(tmp_path):
    layout, witness = await write_log(tmp_path / "audit.log", 300), Witness()
    for in_history in (False, True):
        note = layout.checkpoint.read_bytes()
        layout.checkpoint.write_bytes(witness.cosigned(note))
        if in_history:
            whole = layout.history.read_bytes()
            layout.history.write_bytes(whole.replace(note + b"\n", witness.cosigned(note) + b"\n"))
        assert kinds(layout, [witness]) == []
        await write_log(layout.log, 10)
        assert kinds(layout, []) == []


@one_loop
async def test_a_cosignature_counts_for_the_log_that_goes_on(tmp_path):
    layout, witness, other = await write_log(tmp_path / "audit.log", 300), Witness(), Witness("witness.example/w2")
    kept = witness.cosigned(layout.checkpoint.read_bytes())
    await write_log(layout.log, 500)
    assert kinds(layout, [witness]) == ["witness"]
    assert kinds(layout, [witness], [kept]) == []
    assert kinds(layout, [witness, other], [kept]) == ["witness"]
    (tmp_path / "kept").write_bytes(kept)
    command = [*PROGRAM, "audit", "verify", layout.log, "--witness", str(witness.key), "--json"]
    report = json.loads(run(*command, "--against", tmp_path / "kept", code=0))
    assert any(f"{witness.key.name} has cosigned the first 300 records" in note for note in report["notes"])
    run(*command, code=1)


@one_loop
async def test_a_cosignature_of_another_history_counts_for_nothing(tmp_path):
    layout, witness = await write_log(tmp_path / "one" / "audit.log", 300), Witness()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    await write_log(layout.log, 20)
    kept = witness.cosigned(layout.checkpoint.read_bytes())
    forked = await write_log(tmp_path / "two" / "audit.log", 20, begin=900)
    assert kinds(layout, [witness], [kept]) == []
    assert "rewritten" in kinds(forked, [witness], [kept])
    note = forked.checkpoint.read_bytes()
    forked.checkpoint.write_bytes(witness.cosigned(note, wrong=True))
    assert "witness" in kinds(forked, [witness])


@one_loop
async def test_a_cosignature_stands_beside_the_log_s_own_signature_not_for_it(tmp_path):
    layout, witness = await write_log(tmp_path / "audit.log", 300), Witness()
    text, _, own = layout.checkpoint.read_bytes().rpartition(b"\n\n")
    for lines in (b"", own.replace(own[-20:-10], own[-30:-20])):
        cosigned = witness.cosigned(text + b"\n\n" + own).removeprefix(text + b"\n\n" + own)
        layout.checkpoint.write_bytes(text + b"\n\n" + lines + cosigned)
        assert kinds(layout, [])
        with pytest.raises(hsmcore.AuditUnavailable):
            await write_log(layout.log, 1)


@one_loop
async def test_a_key_that_is_no_witness_s_is_named(tmp_path):
    layout, witness = await write_log(tmp_path / "audit.log", 30), Witness()
    layout.checkpoint.write_bytes(witness.cosigned(layout.checkpoint.read_bytes()))
    plain = VerifierKey(witness.key.name, ED25519, witness.key.public_key)
    [finding] = verify(layout, Trust(witnesses=[plain])).findings
    assert finding.kind == "witness"
    assert "is the key of a log" in finding.text


def run(*command: str | Path, code: int) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
