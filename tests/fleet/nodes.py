"""PostgreSQL servers for tests: one program, one folder, one port each. They run as a user that is not root, which
PostgreSQL refuses, and are ended by their process ids."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.support.chaos import ends_within, send_signal
from tests.support.postgres import USER, call, free_port, newest, unprivileged

DATABASE = "hsmcore"
ADMIN = "admin"
"""Who a test is to the server, whatever happens to the role of the hosts."""
_INCLUDED = "node.conf"
_IPC_RMID = 0  # shmctl(2)
BASE = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "track_activity_query_size": "16384",  # of a bind that is one message, for _INSERTS
    "autovacuum": "off",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",  # not in /dev/shm, where a server that is killed leaves it
    "track_commit_timestamp": "on",
    "wal_keep_size": "64MB",
    "wal_log_hints": "on",
    "wal_sender_timeout": "60s",  # what is to be cut is cut; a machine that is busy cuts nothing
    "wal_receiver_timeout": "60s",
    "wal_retrieve_retry_interval": "200ms",
    "wal_receiver_status_interval": "1s",
    "log_min_messages": "warning",
}


_LOOKS = 10
_SCHEMA = "SELECT schemaname FROM pg_tables WHERE tablename = 'bound'"
_HIGHEST = "SELECT coalesce(max(position), -1) FROM {}.bound"
_KEPT = "kept"
_OF_POSITIONS = ("bound", "watermark")
_KEEP = f"CREATE TABLE {_KEPT}.{{0}} AS TABLE @.{{0}}"
_PUT_BACK = (
    # A row that stays keeps its commit.
    "DELETE FROM @.bound AS b WHERE (domain, position) NOT IN (SELECT domain, position FROM kept.bound)",
    f"INSERT INTO @.bound TABLE {_KEPT}.bound ON CONFLICT DO NOTHING",
    "DELETE FROM @.watermark",
    f"INSERT INTO @.watermark TABLE {_KEPT}.watermark",
)
_INSERTS = r"""SELECT pid,
        substring(query FROM 'INSERT INTO bound[^;]*?''::VARCHAR, ''(\d+)''')::bigint
            > (SELECT max(high) + 20 FROM {}.watermark)
    FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND wait_event = 'relation' AND query LIKE '%INSERT INTO bound%'"""

needs_postgres = pytest.mark.skipif(
    not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), reason="PostgreSQL is not installed"
)


def give(path: Path) -> Path:
    """Make the folder, if it is missing, that user's. Returns it."""
    path.mkdir(exist_ok=True, mode=0o700)
    if who := unprivileged():
        os.chown(path, who["user"], who["group"])
    return path


class Process:
    """A process that a test has started."""

    def __init__(
        self,
        command: Iterable[str | Path],
        log: Path,
        start: Callable[..., subprocess.Popen[Any]] = subprocess.Popen,
        **more: Any,
    ) -> None:
        with log.open("ab") as output:
            self._popen = start(list(command), stdout=output, stderr=output, stdin=subprocess.DEVNULL, **more)
        self.pid = self._popen.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def family(self) -> list[int]:
        """Its process id and those of its children."""
        try:
            return [self.pid, *map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())]
        except OSError:
            return [self.pid]

    def send(self, number: int, *, family: bool = False) -> None:
        """Send a signal, also to its children."""
        if self.runs:
            for pid in self.family() if family else [self.pid]:
                send_signal(pid, number)

    def end(self, number: int = signal.SIGKILL, seconds: float = 20.0, *, family: bool = False) -> None:
        """End it, and wait for that. Idempotent."""
        waits = []
        if self.runs:
            for pid in self.family() if family else [self.pid]:
                try:
                    waits.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    continue
                send_signal(pid, number)
                send_signal(pid, signal.SIGCONT)
        try:
            self._popen.wait(seconds)
            assert all(ends_within(fd, seconds) for fd in waits)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        finally:
            for fd in waits:
                os.close(fd)


class Node:
    """One PostgreSQL server. All methods block."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = free_port()
        self.database = DATABASE
        """That `ask` asks."""
        self.process: Process | None = None

    def make(self) -> None:
        """Make an empty cluster with its database."""
        give(self.folder)
        options = ["-A", "trust", "-U", ADMIN, "-E", "UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"]
        call(newest() / "initdb", "-D", self.data, *options)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write("".join(f"{name} = '{value}'\n" for name, value in BASE.items()) + f"include '{_INCLUDED}'\n")
        self.configure()
        self.start()
        self.execute(f"CREATE ROLE {USER} LOGIN")
        self.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}")

    def copy_to(self, other: Node) -> None:
        """Give another node all that this one has; neither runs."""
        give(other.folder)
        command = ["cp", "-a", "--reflink=auto", self.data, other.data]
        subprocess.run(command, check=True)

    def clone_from(self, port: int) -> None:
        """Make this node a copy of the server at that port, which it may then follow."""
        give(self.folder)
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={port} user={ADMIN}"
        call(newest() / "pg_basebackup", "-d", source, "-D", self.data, "-X", "stream", "-c", "fast", "--no-sync")

    def configure(self, **settings: str) -> None:
        """Replace the settings of this node alone; a server that runs takes them at once, as far as it can."""
        path = self.data / _INCLUDED
        path.write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
        path.chmod(0o644)
        if self.process is not None:
            self.process.send(signal.SIGHUP)

    def follow(self, port: int, **settings: str) -> None:
        """Be a standby of the server at that port, from the next start or at once."""
        (self.data / "standby.signal").touch()
        conninfo = f"host=127.0.0.1 port={port} user={ADMIN} application_name={self.name} connect_timeout=2"
        self.configure(primary_conninfo=conninfo, **settings)

    def start(self, seconds: float = 120.0) -> None:
        """Start the server and wait until it takes connections."""
        end = time.monotonic() + seconds
        while not self.answers():
            assert time.monotonic() < end, f"{self.name} does not start: {self.log.read_text()[-2000:]}"
            if self.process is None or not self.process.runs:  # what was killed may still hold its memory
                command = [newest() / "postgres", "-D", self.data, "-p", str(self.port)]
                self.process = Process(command, self.log, cwd="/", **unprivileged())
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it takes connections."""
        if self.process is None or not self.process.runs:
            return False
        try:
            self.connect("postgres").close()
        except psycopg.Error:
            return False
        return True

    def connect(self, database: str, user: str = ADMIN) -> psycopg.Connection[Any]:
        """A connection whose statements commit at once, and wait for no standby."""
        where = {"host": "127.0.0.1", "port": self.port, "user": user, "dbname": database}
        options = "-c synchronous_commit=local"
        return psycopg.connect(**where, options=options, autocommit=True, connect_timeout=3)  # type: ignore[arg-type]

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self.connect(self.database) as connection:
            return connection.execute(question, values).fetchall()  # type: ignore[arg-type]

    def schema(self) -> str | None:
        """The schema of the fleet's tables, if they are there."""
        found = self.ask(_SCHEMA)
        return str(found[0][0]) if found else None

    def highest(self) -> int:
        """The highest position that is bound, or -1."""
        schema = self.schema()
        return -1 if schema is None else int(self.ask(_HIGHEST.format(schema))[0][0])

    def keep_rows(self) -> None:
        """Keep the rows of positions as they are, for `put_rows_back`."""
        self._run(f"DROP SCHEMA IF EXISTS {_KEPT} CASCADE", f"CREATE SCHEMA {_KEPT}", *map(_KEEP.format, _OF_POSITIONS))

    def put_rows_back(self) -> None:
        """Have the rows of positions be what they were when they were kept."""
        self._run(*_PUT_BACK)

    def _run(self, *statements: str) -> None:
        """Run them in one transaction."""
        schema = self.schema()
        with self.connect(self.database) as connection, connection.transaction():
            for statement in statements if schema is not None else ():
                connection.execute(statement.replace("@", f"{schema}"))  # type: ignore[arg-type]

    def hold_a_bind(self, seconds: float) -> int | None:
        """Stop the process of a transaction that waits to insert a position far ahead, which no other bind forbids.
        Returns its id, or None."""
        end = time.monotonic() + seconds
        schema = self.schema()
        with self.connect(self.database) as lock, self.connect(self.database) as watch:
            while schema is not None and time.monotonic() < end:
                lock.execute("BEGIN")
                lock.execute(f"LOCK TABLE {schema}.bound IN SHARE MODE")
                for _ in range(_LOOKS):
                    found = watch.execute(_INSERTS.format(schema)).fetchone()  # type: ignore[arg-type]
                    if found is not None and found[1]:
                        send_signal(int(found[0]), signal.SIGSTOP)
                        return int(found[0])
                    if found is not None:
                        break
                    time.sleep(0.005)
                lock.execute("ROLLBACK")
        return None

    def execute(self, statement: str) -> None:
        """Run a statement in the database that is always there."""
        with self.connect("postgres") as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def end(self, number: int = signal.SIGKILL) -> None:
        """End the server with all its processes: SIGKILL, as a power cut would but for the disk's cache; SIGINT: in
        order. Idempotent."""
        if self.process is not None:
            self.process.end(number, family=number == signal.SIGKILL)
            self.process = None
            self._remove_segment()

    def _remove_segment(self) -> None:
        """A server that was killed leaves its segment of System V shared memory behind, and a machine has room for some
        thousand of them. The seventh line of its file has key and number."""
        with suppress(OSError, ValueError, IndexError):
            number = int((self.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(number, _IPC_RMID, None)
