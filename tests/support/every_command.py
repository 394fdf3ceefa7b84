"""Every command of the command line, run once in a world that has changed its key, its member or its store."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.support.commands import tree

Done = tuple[int, str, str]
"""Exit code, output, standard error."""

_PUBLIC: Final = "reads a public log, of which the world has none: tests/integration/test_public_log.py"
APART: Final = {
    "init": "makes a token, a key and a configuration of its own",
    "serve": "runs until it is stopped, and opens key managers as `sign` does",
    "gateway": "runs until it is stopped, and opens key managers as `sign` does",
    "demo": "an example with tokens of its own",
    "bench compare": "reads results",
    "bench size": "reads results",
    "bench table": "reads results",
    "bench report": "reads results",
    "metrics": "reads what a key manager shows over HTTP",
    "audit cosign": "asks witnesses, of which the world has none: tests/integration/test_audit_witnesses.py",
    "publish status": _PUBLIC,
    "publish proof": _PUBLIC,
    "publish verify": _PUBLIC,
    "version": "needs no configuration",
    "config schema": "needs no configuration",
}
"""Commands that are not run, and why."""
LONG: Final = """
load --path facade --rate 20 --duration 1s
load --path ring --rate 20 --duration 1s
bench --rounds 1 --seconds 0.02 --patience 0 --only CONTENDERS --out FOLDER/bench TOKEN
tune --seconds 0.05 --most 2
"""
"""Run in the long form: they start processes."""
LINES: Final = """
doctor
sign --text MESSAGE
verify --text MESSAGE --signature SIGNATURE
tokens
cluster
keys
keys list
keys attest KEY
keys set
keys generate --label beside
keys export KEY --output FOLDER/key.backup
keys import FOLDER/key.backup
keys replicate --to MEMBER KEY
keys deactivate KEY
batch proof 0
rotate status
rotate plan
rotate history
rotate approve
rotate abort
rotate now --dry-run
rotate clock --reason WHY
rotate adopt
backup list
backup verify
backup recovery-key --output FOLDER/recovery.key
backup restore BACKUP
failover status
failover history
failover drain MEMBER --reason WHY
failover drain MEMBER --undo
failover readmit MEMBER --reason WHY
failover force secondary --reason WHY --yes
failover force none --reason WHY --yes
fleet status
fleet claim --reason WHY
fleet release --reason WHY
fleet drain --reason WHY
fleet reconcile --reason WHY
fleet hold --reason WHY
fleet resume --reason WHY
fleet retire gone --reason WHY --yes
fleet migrate --role signer
fleet prune
fleet export --output FOLDER/exported.json
fleet import FOLDER/exported.json
notices test
emergency status
emergency disable --reason WHY
emergency enable --reason WHY
emergency reset --reason WHY
policy explain 6d
policy floor show
policy floor set block 9 --reason WHY
policy rebind --reason WHY
state seal
state export --output FOLDER/positions.json
state import FOLDER/exported.json
state backup --to FOLDER/later.hsmstate
state verify FOLDER/later.hsmstate
state restore FOLDER/later.hsmstate --reason WHY
state reconcile --reason WHY
state begin PUBLIC --reason WHY
audit verify
audit mend
audit adopt
audit checkpoint
audit query --limit 100
audit show 1
audit prove 1
audit ship
audit device-log
sign --text MESSAGE
"""
NO_KEY: Final = re.compile(r"Traceback|KeyNotFound|KEY_NOT_FOUND|KeyMismatch|no such key", re.IGNORECASE)


def path_of(line: str) -> str:
    """The words of the command in a line."""
    known, words = {" ".join(words) for words, _ in tree()}, line.split()
    return next(path for count in range(len(words), 0, -1) if (path := " ".join(words[:count])) in known)


def lines(text: str) -> list[str]:
    """The command lines of a text."""
    return [line for line in text.splitlines() if line]


def walk(run: Callable[..., Done], values: Mapping[str, str], text: str = LINES) -> set[str]:
    """Run each line with its words in capitals replaced. Return those that were refused: each says what to do next.
    `PUBLIC`: the key that signs."""
    refused, values = set(), {"WHY": "'a test'", "MESSAGE": "'what every command signs'", **values}
    for line in lines(text):
        code, out, err = run(*shlex.split(re.sub(r"\b[A-Z]{3,}\b", lambda word: values[word[0]], line)))
        assert not NO_KEY.search(err), (line, err)
        if code:
            refused.add(line)
            assert says_what_to_do(out, err), (line, code, out, err)
        elif path_of(line) == "sign":
            signed = json.loads(out)
            assert signed["publicKey"] == values["PUBLIC"], line
            values["SIGNATURE"] = signed["signature"]
    return refused


def says_what_to_do(out: str, err: str) -> bool:
    """Whether a refusal leads on: an error with a hint, or a result with what is wrong and what comes next."""
    if "  next: " in err:
        return True
    found: Any = json.loads(err.splitlines()[-1])["error"] if err else json.loads(out)
    return bool(found.get("hint") or found.get("problem") or found.get("providers"))
