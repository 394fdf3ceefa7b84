"""A private PostgreSQL for tests: a cluster of its own in a temporary folder, on a free port of this host.

`Cluster` is one server, with standbys (`standby`) and poolers in front (`Bouncer`) on request. PostgreSQL refuses to
run as root, so root starts its programs as `nobody`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
from tests.support.authority import Issued
from tests.support.run_folder import run_folder

from hsmcore.config.fleet import Fleet
from hsmcore_bench.demo.postgres import free_port, unprivileged

SECONDS = 60.0
"""The longest wait for a server."""
MOST_DATABASES = 20
"""More than a test makes: those of tests before it are dropped. Each takes 8 MB, which may be memory."""
USER = "hsmcore"
PASSWORD = "corner/of:the@room"  # of a server that is gone when the test is
_ENCODED = "corner%2Fof%3Athe%40room"
_SUPER = "postgres"


def newest() -> Path:
    """The folder of the newest PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is missing: see scripts/setup"
    return found[-1].parent


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def call(*command: str | Path) -> None:
    """Run a program to its end, not as root."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment(), **unprivileged())
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


class _Server:
    """A program in a folder of its own; ended by its process id."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _launch(self, command: Sequence[str | Path], answers: Callable[[], bool]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self.folder,
                **unprivileged(),
            )
        end = time.monotonic() + SECONDS
        while not answers():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    @property
    def log(self) -> str:
        """What the program wrote."""
        return (self.folder / "log").read_text()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        process.wait(SECONDS)

    def close(self) -> None:
        """End it and delete its folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def pause(self) -> None:
        """Stop the program where it is, not its children."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)


class Cluster(_Server):
    """One PostgreSQL server. Every database in it has the owner USER."""

    def __init__(self, folder: Path, port: int, *, primary: Cluster | None = None) -> None:
        super().__init__(folder, port)
        self.primary = primary
        self.data = folder / "data"
        self._parts: list[_Server] = []
        self._databases: list[str] = []

    @classmethod
    def make(cls, **settings: str) -> Self:
        """Make a cluster and start it."""
        made = cls(_folder(), free_port())
        password = made.folder / "password"
        password.write_text(PASSWORD)
        made._own()
        options = ("-A", "scram-sha-256", f"--pwfile={password}", "-U", _SUPER, "-E", "UTF8", "--locale=C.UTF-8")
        call(newest() / "initdb", "-D", made.data, "--no-sync", *options)
        with (made.data / "pg_hba.conf").open("a") as rules:
            rules.write("host replication all 127.0.0.1/32 scram-sha-256\n")
        # Not in /dev/shm, where a server that is killed leaves it.
        memory = {"dynamic_shared_memory_type": "mmap", "max_wal_size": "128MB", "wal_keep_size": "64MB"}
        made.configure(**memory | {"max_connections": "100"} | settings)
        made.start()
        made.execute(f"CREATE ROLE {USER} LOGIN REPLICATION PASSWORD '{PASSWORD}'")
        made.execute(f"GRANT pg_signal_backend TO {USER}")
        return made

    def _own(self) -> None:
        if who := unprivileged():
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, who["user"], who["group"])

    def configure(self, **settings: str) -> None:
        """Add lines to the server's configuration, of which the last one counts. Takes effect with the next start."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def change(self, **settings: str) -> None:
        """Change settings of the running server. Its connections know them at their next statement."""
        self.configure(**settings)
        self.execute("SELECT pg_reload_conf()")
        for name, value in settings.items():
            # A connection that was made after the change: the server has told the others before it made this one.
            self.until(f"SELECT current_setting('{name}')", value)

    @contextmanager
    def changed(self, **settings: str) -> Iterator[None]:
        """Other settings while the body runs."""
        before = {name: str(self.execute(f"SELECT current_setting('{name}')")[0][0]) for name in settings}
        self.change(**settings)
        try:
            yield
        finally:
            self.change(**before)

    @contextmanager
    def certified(self, issued: Issued) -> Iterator[None]:
        """Take TLS connections, under a certificate, while the body runs."""
        files = {"ssl_cert_file": self.folder / "server.crt", "ssl_key_file": self.folder / "server.key"}
        for path, source in zip(files.values(), issued, strict=True):
            path.touch(0o600)
            path.write_bytes(Path(source).read_bytes())
        self._own()
        with self.changed(ssl="on", **{name: str(path) for name, path in files.items()}):
            yield

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        address = ("-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}")
        place = ("-c", f"unix_socket_directories={self.folder}", "-c", "logging_collector=off")
        self._launch((newest() / "postgres", "-D", self.data, *address, *place), self._answers)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, *, how: str = "fast") -> None:
        """Stop the server: "fast" ends its connections, "immediate" is a crash without a power cut."""
        self._end({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])

    def restart(self, *, how: str = "fast") -> None:
        """Stop it and start it again."""
        self.stop(how=how)
        self.start()

    def standby(self, *, synchronous: bool = True) -> Cluster:
        """Make a standby of this server and start it; the server then waits for it in COMMIT if it is synchronous."""
        made = Cluster(_folder(), free_port(), primary=self)
        self._parts.append(made)
        passwords = made.folder / "passwords"
        passwords.write_text(f"*:*:*:*:{PASSWORD.replace(':', chr(92) + ':')}\n")
        passwords.chmod(0o600)
        made._own()
        name = f"standby_{made.port}"
        source = f"host=127.0.0.1 port={self.port} user={_SUPER} passfile={passwords} application_name={name}"
        options = ("-R", "-X", "stream", "-c", "fast", "--no-sync")
        call(newest() / "pg_basebackup", "-D", made.data, *options, "-d", source)
        made.start()
        if synchronous:
            self.change(synchronous_standby_names=name)
            self.until("SELECT string_agg(sync_state, ' ') FROM pg_stat_replication WHERE sync_state = 'sync'", "sync")
        return made

    def promote(self) -> None:
        """Make the primary of a standby."""
        self.execute("SELECT pg_promote(true)")

    def database(self, name: str | None = None) -> str:
        """Make an empty database and return its URL."""
        name = name or f"d_{secrets.token_hex(6)}"
        while len(self._databases) >= MOST_DATABASES:
            self.execute(f"DROP DATABASE IF EXISTS {self._databases.pop(0)} WITH (FORCE)")
        self.execute(f"CREATE DATABASE {name} OWNER {USER} STRATEGY FILE_COPY")
        self._databases.append(name)
        return self.url(name)

    def url(self, database: str) -> str:
        """The URL of a database, with the password."""
        return f"postgresql://{USER}:{_ENCODED}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres", *, user: str = _SUPER) -> psycopg.Connection[Any]:
        """A connection beside those of the code under test."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=PASSWORD, dbname=database, autocommit=True
        )

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser and return its rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def until(self, query: str, value: object) -> None:
        """Wait until a query's only value is `value`."""
        end = time.monotonic() + SECONDS
        while (found := self.execute(query)) != [(value,)]:
            assert time.monotonic() < end, f"{query}: {found}"
            time.sleep(0.01)

    def backends(self, database: str, where: str = "true") -> list[int]:
        """The process ids of clients' connections to a database that fulfil a condition on pg_stat_activity. Autovacuum
        may have a connection, too."""
        clients = f"datname = '{database}' AND backend_type = 'client backend'"
        found = self.execute(f"SELECT pid FROM pg_stat_activity WHERE {clients} AND {where}")  # noqa: S608
        return [int(row[0]) for row in found]

    def waiting_for_standby(self, database: str) -> list[int]:
        """The connections that wait in COMMIT for the synchronous standby."""
        return self.backends(database, "wait_event = 'SyncRep'")

    def bouncer(self, mode: str = "transaction") -> Bouncer:
        """Start a PgBouncer in front of this server."""
        made = Bouncer.make(self, mode)
        self._parts.append(made)
        return made

    def close(self) -> None:
        """End it with its standbys and poolers, and delete their folders."""
        while self._parts:
            self._parts.pop().close()
        super().close()


class Bouncer(_Server):
    """A PgBouncer."""

    @classmethod
    def make(cls, cluster: Cluster, mode: str) -> Self:
        """Start one in front of a cluster."""
        made = cls(_folder(), free_port())
        (made.folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": made.port,
            "unix_socket_dir": made.folder,
            "auth_type": "scram-sha-256",
            "auth_file": made.folder / "users",
            "pool_mode": mode,
            "default_pool_size": 4,
            "server_login_retry": 1,  # as docs/FLEET.md says
            "admin_users": USER,
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        databases = f"* = host=127.0.0.1 port={cluster.port}\n"
        (made.folder / "bouncer.ini").write_text(f"[databases]\n{databases}[pgbouncer]\n{text}")
        if who := unprivileged():
            for path in (made.folder, *made.folder.iterdir()):
                os.chown(path, who["user"], who["group"])
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") or "pgbouncer"
        made._launch((program, made.folder / "bouncer.ini"), made._answers)
        return made

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def url(self, database: str) -> str:
        """The URL of a database through this one."""
        return f"postgresql://{USER}:{_ENCODED}@127.0.0.1:{self.port}/{database}"

    def url_of(self, direct: str) -> str:
        """The URL through this one instead of a direct one."""
        return self.url(direct.rpartition("/")[2])


def _folder() -> Path:
    """A temporary folder that the servers' user may enter. Its path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=run_folder() or "/tmp"))
    folder.chmod(0o755)
    return folder


def fleet(url: str, name: str = "tests", **fields: Any) -> Fleet:
    """The configuration of a fleet whose database has this URL. Without a synchronous standby by default."""
    return Fleet.model_validate({"store": {"url": url}, "name": name, "singleNode": True} | fields)


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """A cluster for one test."""
    made = Cluster.make(**settings)
    try:
        yield made
    finally:
        made.close()
