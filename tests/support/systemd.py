"""A real systemd as the first process of namespaces of its own, which starts the units of packaging/systemd.

Its /usr, /etc and /var are this machine's with a memory layer on top, so the units run as they stand: user hsmcore,
/usr/bin/hsmcore, /etc/hsmcore. Nothing outside is changed. Needs root, a kernel with overlayfs, and cgroups that may
be mounted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import hsmcore

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"
MANAGER = Path("/lib/systemd/systemd")
USER, CLIENTS = 4711, 4712
"""Ids of user and group `hsmcore`, and of the group `hsmcore-clients`."""
_CGROUPS = Path("/sys/fs/cgroup")

_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$LAYERS"
for one in usr etc var; do
    mkdir "$LAYERS/$one" "$LAYERS/$one.work"
    mount -t overlay overlay -o "lowerdir=/$one,upperdir=$LAYERS/$one,workdir=$LAYERS/$one.work" "/$one"
done
mount -t tmpfs tmpfs /srv
mkdir /srv/python /srv/site /srv/core
mount --bind "$PYTHON" /srv/python
mount --bind "$SITE" /srv/site
mount --bind "$CORE" /srv/core
cp -a "$FILES/." /
chown -R 4711:4711 /var/lib/hsmcore
echo 'hsmcore:x:4711:4711::/nonexistent:/usr/sbin/nologin' >> /etc/passwd
printf 'hsmcore:x:4711:\\nhsmcore-clients:x:4712:\\n' >> /etc/group
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
exec env -i container=test PATH=/usr/bin:/usr/sbin SYSTEMD_UNIT_PATH=/srv/units \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
"""
_PROGRAM = """#!/bin/sh
export LD_LIBRARY_PATH=/srv/python/lib PYTHONPATH=/srv/core:/srv/site PYTHONDONTWRITEBYTECODE=1
exec /srv/python/bin/python3 -c 'import sys; from hsmcore.cli import main; sys.exit(main())' "$@"
"""


# Of this machine's units none is started: only these are there.
_TARGETS = ("sysinit", "basic", "sockets", "network-online", "multi-user", "shutdown")
_SAID = b"[Service]\nStandardOutput=append:/run/said\nStandardError=append:/run/said\n"


def problem() -> str:
    """Why there can be none here, or ""."""
    if os.geteuid() != 0 or not MANAGER.exists() or shutil.which("unshare") is None:
        return "needs root, systemd and unshare"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlayfs"
    command = ["unshare", "--mount", "--pid", "--fork", "--cgroup", "true"]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stderr.decode().strip() if done.returncode else ""


class Systemd:
    """One that runs."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside it."""
        whole = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--", *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def path(self, path: str) -> str:
        """A path of its file system, seen from outside."""
        return f"/proc/{self.pid}/root{path}"

    def log(self) -> str:
        """What it and its units have said."""
        units = Path(self.path("/run/said"))
        return self._log.read_text(errors="replace") + (units.read_text(errors="replace") if units.exists() else "")


@contextmanager
def booted(folder: Path, files: Mapping[str, bytes | Path]) -> Iterator[Systemd]:
    """Start one with these files; a path stands for a folder's copy. Everything is gone after the block."""
    top, log = folder / "files", folder / "systemd.log"
    wanted = {
        "/usr/bin/hsmcore": _PROGRAM.encode(),
        **{f"/srv/units/{name}.target": b"[Unit]\nDefaultDependencies=no\n" for name in _TARGETS},
        **{f"/srv/units/{unit.name}": unit.read_bytes() for unit in UNITS.iterdir()},
        **{f"/srv/units/{unit.name}.d/said.conf": _SAID for unit in UNITS.glob("*.service")},
        **files,
    }
    for path, content in wanted.items():
        place = top / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copytree(content, place)
        else:
            place.write_bytes(content)
            place.chmod(0o755 if path.startswith("/usr/bin/") else 0o600 if path == "/etc/hsmcore/pin" else 0o644)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "FILES": str(top),
        "PYTHON": sys.base_prefix,
        "SITE": sysconfig.get_path("purelib"),
        "CORE": str(Path(hsmcore.__file__).parents[1]),
    }
    # Not in the run's folder, which may lie in /dev/shm: systemd deletes there what the user of a unit that ends owns.
    with tempfile.TemporaryDirectory(dir="/tmp") as layers, _group() as group, log.open("wb") as out:
        unshare = 'exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc sh -c "$BOOT"'
        child = subprocess.Popen(
            ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && {unshare}'],
            env={**environment, "LAYERS": layers, "BOOT": _BOOT},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        try:
            yield Systemd(_first(child), log)
        finally:
            child.kill()  # --kill-child: the first process dies with it, and all others with that
            child.wait()


def _first(child: subprocess.Popen[bytes]) -> int:
    """Wait for systemd, and return its process id out here."""
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    while child.poll() is None:
        for pid in map(int, children.read_text().split()):
            with suppress(OSError):
                named = Path(f"/proc/{pid}/comm").read_text() == "systemd\n"
                if named and Path(f"/proc/{pid}/root/run/systemd/private").exists():
                    return pid
    raise AssertionError("systemd did not start")


@contextmanager
def _group() -> Iterator[Path]:
    """A control group for all of it, so that the machine's own are left alone."""
    base = _CGROUPS / "unified" if (_CGROUPS / "unified").is_dir() else _CGROUPS
    group = base / f"hsmcore-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        kill = group / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
        _remove(group)


def _remove(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        while True:  # a process that was killed is gone in a moment
            try:
                Path(folder).rmdir()
                break
            except OSError:
                continue
