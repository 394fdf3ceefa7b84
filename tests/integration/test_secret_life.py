"""Open, use and close with secrets, then search for them in all output: logs, errors, pickles, the
audit file, the command line, and the processes that were started."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import resource
import subprocess
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from tests.support.chaos import engine_of
from tests.support.cloudhsm import ADMIN, DENIED, SIGNER, Cluster
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.base import log
from hsmcore.errors import HsmError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]

# Quotes, a backslash and letters beyond ASCII: each way of writing text down writes these in its own way.
SIGNER_SECRET = "zq\"Sign'r\\ßé-4711"
ADMIN_SECRET = "zq\"Keep'r\\ßé-0815"
WRONG_SECRET = "zq\"Wrong'\\ßé-9999"


def spellings(secret: str) -> set[bytes]:
    """The ways in which a secret might stand somewhere."""
    raw = secret.encode()
    found = {
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        repr(secret)[1:-1].encode(),
        repr(raw)[2:-1].encode(),
        ascii(secret)[1:-1].encode(),
        json.dumps(secret)[1:-1].encode(),
        json.dumps(secret, ensure_ascii=False)[1:-1].encode(),
        json.dumps(repr(secret))[1:-1].encode(),
        quote(secret).encode(),
        secret.encode("utf-16-le"),
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):  # wherever it stands in what was encoded, this much of it is always the same
            whole = encode(bytes(shift) + raw)
            first = -(-shift * 8 // 6) + (1 if shift else 0)
            found.add(whole[first : len(raw) * 8 // 6 - 2])
    return found


def test_the_search_finds_every_spelling():
    for spelling in spellings(SIGNER_SECRET):
        assert len(spelling) >= 12
    for prefix in (b"", b"u", b"us", b"user:"):
        assert any(s in base64.b64encode(prefix + SIGNER_SECRET.encode() + b"!") for s in spellings(SIGNER_SECRET))


class Outputs:
    """Everything that came out, by where."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def add(self, where: str, what: bytes | str) -> None:
        self.found[where] = self.found.get(where, b"") + (what.encode() if isinstance(what, str) else what)

    def add_error(self, where: str, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self.add(where, f"{error}{error!r}{vars(error)}{error.args!r}{text}".encode() + pickle.dumps(error))

    def add_process(self, where: str, pid: int) -> None:
        """What others can see of a process, and that it leaves no core file."""
        folder = Path(f"/proc/{pid}")
        self.add(f"{where} arguments", (folder / "cmdline").read_bytes())
        try:
            self.add(f"{where} environment", (folder / "environ").read_bytes())
        except PermissionError:  # it is not dumpable, and we are not root
            assert os.geteuid() != 0
        limits = (folder / "limits").read_text()
        [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"], line
        if os.geteuid() != 0:  # not dumpable: no process of this user attaches to it or reads its memory
            assert (folder / "environ").stat().st_uid == 0

    def check(self, *secrets: str) -> None:
        empty = [where for where, what in self.found.items() if not what]
        assert empty == []
        for secret in secrets:
            for spelling in spellings(secret):
                shown = [where for where, what in self.found.items() if spelling in what]
                assert shown == [], f"{secret!r} as {spelling!r}"


def users(token):
    return [
        {"pin": f"{SIGNER}:{SIGNER_SECRET}", "tokenPin": token.pin, "denied": DENIED},
        {"pin": f"{ADMIN}:{ADMIN_SECRET}", "tokenPin": token.pin},
    ]


def secret_file(folder, name, value):
    path = folder / name
    path.touch(mode=0o600)
    path.write_text(value)
    return str(path)


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_no_secret_shows_from_opening_to_closing(fresh_token, tmp_path, monkeypatch, caplog, capfd, isolation):
    outputs = Outputs()
    caplog.set_level(logging.DEBUG)
    token = fresh_token()
    cluster = Cluster(tmp_path, token, users=users(token))
    monkeypatch.setenv("HSM_SIGNER_SECRET", SIGNER_SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    admin = {"username": ADMIN, "password": {"file": secret_file(tmp_path, "admin", ADMIN_SECRET)}}
    settings = {"isolation": isolation, "password": {"env": "HSM_SIGNER_SECRET"}, "adminCredentials": admin}
    audit = tmp_path / "audit.log"
    config = cluster.provider(settings=settings, auditLogFile=str(audit))
    wrong = cluster.provider(settings={**settings, "password": {"file": secret_file(tmp_path, "wrong", WRONG_SECRET)}})
    wrong_admin = {"username": ADMIN, "password": WRONG_SECRET}

    log.configure(json=True, level="DEBUG")
    try:
        async with opened(config) as manager:
            await manager.sign(b"message")
            made = await manager.generate_key()
            for number, pid in enumerate(children()):
                outputs.add_process(f"child {number}", pid)
            if isolation == "process":
                assert engine_of(manager).host_pid in children()
            assert len(children()) == (2 if isolation == "process" else 1)
            await manager.set_current_key_id(made)
            await manager.deactivate_key(made)
            await _fails(outputs, manager.sign(b"message"))
            await _fails(outputs, manager.export_key_backup(made))
            await _fails(outputs, manager.set_current_key_id("ff"))
            await _fails(outputs, manager._path.member.control.destroy("ee"))
            outputs.add("manager", f"{manager!r}{manager.config!r}{manager.get_stats()}{manager.keys()}")
            outputs.add("configuration", json.dumps(manager.config.redacted()))
            outputs.add("pickled configuration", pickle.dumps(manager.config))
        await _fails(outputs, _opens(wrong))
        refused = cluster.provider(settings={**settings, "adminCredentials": wrong_admin})
        async with opened(refused) as manager:
            await _fails(outputs, manager.generate_key())
            await _fails(outputs, manager.generate_key())
    finally:
        structlog.reset_defaults()
    outputs.add("audit file", audit.read_bytes())
    outputs.add("module's log", cluster.log.read_bytes())
    outputs.add("standard library's log", f"{caplog.text}\n")
    out, err = capfd.readouterr()
    outputs.add("standard streams", out + err)
    assert "member started" in err
    outputs.check(SIGNER_SECRET, ADMIN_SECRET, WRONG_SECRET, token.pin)


async def _opens(config):
    async with opened(config):
        pass


async def _fails(outputs, awaitable):
    with pytest.raises(HsmError) as caught:
        await awaitable
    outputs.add_error(f"error {len(outputs.found)}", caught.value)


def test_the_command_line_shows_no_secret(fresh_token, tmp_path):
    outputs = Outputs()
    token = fresh_token()
    cluster = Cluster(tmp_path, token, users=users(token))
    admin = {"username": ADMIN, "password": {"env": "HSM_ADMIN_SECRET"}}
    config = tmp_path / "hsm.json"
    settings = {"password": {"env": "HSM_SIGNER_SECRET"}, "adminCredentials": admin}
    config.write_text(json.dumps(cluster.provider(settings=settings)))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(cluster.provider(settings={**settings, "password": SIGNER_SECRET, "sesions": 3})))
    good = {"HSM_SIGNER_SECRET": SIGNER_SECRET, "HSM_ADMIN_SECRET": ADMIN_SECRET}
    bad = {"HSM_SIGNER_SECRET": WRONG_SECRET, "HSM_ADMIN_SECRET": WRONG_SECRET}

    def command(code, *arguments, secrets=good, at=config):
        environment = {**os.environ, **secrets, "HSMCORE_LOG": "DEBUG", "HSMCORE_CONFIG": str(at)}
        done = subprocess.run([*PROGRAM, *arguments], env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr.decode()
        outputs.add(" ".join(arguments), done.stdout + done.stderr)
        return done.stdout

    command(0, "tokens", "--json")
    [listed] = json.loads(command(0, "keys", "list", "--json"))
    assert listed["publicKey"] == token.keys["ed25519"].public_key.hex()
    made = json.loads(command(0, "keys", "generate", "--label", "new", "--json"))
    command(1, "keys", "deactivate", made["id"], "--json")
    command(0, "sign", "--text", "message", "--json")
    command(1, "sign", "--text", "message", "--json", secrets=bad)
    command(1, "keys", "list", "--json", secrets=bad)
    command(1, "keys", "list", secrets=bad)
    command(2, "sign", "--text", "message", "--json", at=broken)
    command(2, "keys", "list", at=broken)
    outputs.add("module's log", cluster.log.read_bytes())
    outputs.check(SIGNER_SECRET, ADMIN_SECRET, WRONG_SECRET, token.pin)


def test_this_process_writes_core_files_as_its_owner_wants(fresh_token):
    """The library hardens the processes that it starts, and leaves its host's limits alone."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    hsmcore.create_key_manager(fresh_token().config())
    assert resource.getrlimit(resource.RLIMIT_CORE) == before
