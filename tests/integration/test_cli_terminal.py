"""What others wrote reaches the terminal as text: labels of a token, names of files."""

from __future__ import annotations

import json

import pytest

from hsmcore.cli.app import run as run_command

pytestmark = pytest.mark.integration
EVIL = "\x1b]0;title\x07\x1b[2Jx\u202e\n00 sequencer-key yes"


def test_a_label_writes_neither_escape_codes_nor_rows(fresh_token, tmp_path, capsys):
    token = fresh_token({"name": "good", "kind": "ed25519"}, {"name": "evil", "kind": "ed25519", "label": EVIL})
    path = tmp_path / "hsm.json"
    path.write_text(json.dumps(token.config("good")))
    assert run_command(["keys", "list", "--config", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert r"\x1b]0;title\x07\x1b[2Jx\u202e\n00 sequencer-key yes" in "".join(lines)
    assert run_command(["keys", "list", "--config", str(path), "--json"]) == 0
    assert EVIL in {key["label"] for key in json.loads(capsys.readouterr().out)}


def test_the_name_of_a_file_writes_no_escape_codes(tmp_path, capsys):
    assert run_command(["doctor", "--config", str(tmp_path / "no\x1b[31m")]) != 0
    said = capsys.readouterr().err
    assert r"no\x1b[31m" in said
    assert "\x1b" not in said
