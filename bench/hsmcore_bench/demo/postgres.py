"""A private PostgreSQL: one server in a temporary folder, at a free port of this host, gone with the demonstration."""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hsmcore.errors import SystemFailure

OLDEST: Final = 15
_USER: Final = "hsmcore"
_STARTS: Final = 30.0  # seconds
_SETTINGS: Final = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "jit": "off"}


def find_programs() -> Path:
    """The folder of the newest server's programs. Raises SystemFailure."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    newest = max(found, key=_version, default=None)
    if newest is None or _version(newest) < OLDEST:
        raise SystemFailure(
            f"PostgreSQL {OLDEST} or newer is not installed", hint="Install it: apt-get install postgresql"
        )
    return newest


def _version(programs: Path) -> int:
    name = programs.parent.name
    return int(name) if name.isdigit() else 0


@contextmanager
def private_postgres() -> Iterator[str]:
    """Make a server, start it, and give the URL of an empty database. It asks for a password, which nothing but the URL
    has. Takes about three seconds. Raises SystemFailure."""
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="hsmcore-demo-pg-") as name:
        folder, password, port = Path(name), secrets.token_urlsafe(24), free_port()
        word = folder / "password"
        word.touch(mode=0o600)
        word.write_text(password)
        _give(folder, word)
        data, log = folder / "data", folder / "log"
        options = ["-A", "scram-sha-256", f"--pwfile={word}", "-U", _USER, "-E", "UTF8", "--locale=C"]
        _run([programs / "initdb", "-D", data, *options])
        word.unlink()
        settings = [part for pair in (_SETTINGS | {"port": str(port)}).items() for part in ("-c", "=".join(pair))]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *settings], stdout=output, stderr=output, cwd="/", **unprivileged()
            )
        try:
            url = f"postgresql://{_USER}:{password}@127.0.0.1:{port}/postgres"
            _await(url, server, log)
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    end = time.monotonic() + _STARTS
    while True:
        try:
            return psycopg.connect(url, connect_timeout=2).close()
        except psycopg.Error:
            if server.poll() is not None or time.monotonic() > end:
                raise SystemFailure(f"PostgreSQL does not start: {log.read_text()[-500:]}") from None
            time.sleep(0.02)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **unprivileged())
    if done.returncode != 0:
        raise SystemFailure(f"{Path(command[0]).name}: {done.stderr.strip()[-500:]}")


def unprivileged() -> dict[str, Any]:
    """Arguments of Popen: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _give(*paths: Path) -> None:
    if who := unprivileged():
        for path in paths:
            os.chown(path, who["user"], who["group"])


def free_port() -> int:
    """Return a port of this host that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
