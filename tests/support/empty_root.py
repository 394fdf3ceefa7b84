"""A root of its own for a program: an interpreter, the libraries that this and SoftHSM need, and nothing else.

There is no shell, no compiler, no libsodium and no network; what the program mounts and leaves ends with it.

Needs a mount namespace: root has one, others get theirs in a user namespace, where the kernel allows that.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.support.softhsm import find_module

UNSHARE = ["unshare", "--map-root-user", "--user", "--mount", "--net", "--propagation", "private"]
C_LIBRARY = ("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libm.so.6", "libresolv.so.2")
DEVICES = ("null", "urandom", "random", "zero")


def why_impossible() -> str | None:
    """Why there can be no root of its own here, in the system's words."""
    said = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return said.stderr.strip() if said.returncode else None


class EmptyRoot:
    """`folder` becomes the root; `seen` are folders that are shown in it, read-only, at their own paths."""

    def __init__(self, folder: Path, seen: Iterable[Path] = ()) -> None:
        self.path = folder
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        base = Path(sys.base_prefix)
        self.python = base / "bin" / version
        library = base / "lib" / version
        self._seen = [library, *seen]
        for name in ("tmp", "proc", "dev/shm", "etc", "opt"):
            (folder / name).mkdir(parents=True)
        for name in DEVICES:
            (folder / "dev" / name).touch()
        module = find_module()
        assert module is not None
        dynamic = [*library.glob("lib-dynload/*.so")]
        for path in {self.python.resolve(), module, *needed([self.python.resolve(), module, *dynamic])}:
            self.add(path, path)
        if not (folder / self.python.relative_to("/")).exists():
            self.add(self.python.resolve(), self.python)
        for path in self._seen:
            (folder / path.relative_to("/")).mkdir(parents=True, exist_ok=True)

    def add(self, path: Path, at: Path) -> None:
        """Copy a file into the root."""
        target = self.path / at.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)

    def run(
        self, line: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the root, with this environment and no other."""
        inside = shlex.quote(str(self.path))
        script = ["set -e"]
        seen = [shlex.quote(str(path)) for path in self._seen]
        script += [f"mount --bind -o ro {path} {inside}{path}" for path in seen]
        script += [f"mount --bind /dev/{name} {inside}/dev/{name}" for name in DEVICES]
        script += [f"mount --rbind /proc {inside}/proc", f"mount -t tmpfs tmpfs {inside}/dev/shm"]
        pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        env = shutil.which("env")
        chroot = shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin:/bin")
        # env starts the program by itself: nothing of this system but the two is in the line.
        script.append(f"exec {env} -i {pairs} {chroot} {inside} {shlex.join(line)}")
        whole = [*UNSHARE, "sh", "-c", "\n".join(script)]
        return subprocess.run(whole, capture_output=True, text=True, timeout=timeout, check=False)

    def files(self) -> list[str]:
        """The names of all files that were put into the root."""
        return [path.name for path in self.path.rglob("*") if path.is_file()]


def needed(files: Sequence[Path]) -> set[Path]:
    """The shared libraries that these files load, the loader, and all of the C library, which a wheel may count on."""
    said = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}
    folder = next(path.parent for path in found if path.name == "libc.so.6")
    return found | {folder / name for name in C_LIBRARY if (folder / name).exists()}
