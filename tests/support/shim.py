"""The Python side of shim.c: compile it once, give each test a copy of its own."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


def compile_shim(target: Path, folder: Path) -> Path:
    """Build the shim around the module `target`; returns the shared object."""
    out = folder / "shim.so"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True
    ).stdout.split()
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, *flags, f'-DSHIM_TARGET="{target}"', str(SOURCE), "-o", str(out), "-ldl"], check=True)
    return out


class Shim:
    """One copy of the shim: a module path for a configuration, and the knobs of that module. With `shared`, the knobs
    are those of every process that loads this copy."""

    def __init__(self, compiled: Path, path: Path, *, shared: bool = False) -> None:
        shutil.copy(compiled, path)
        if shared:
            path.with_name(f"{path.name}.state").touch(mode=0o600)
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.shim_calls.argtypes = [ctypes.c_char_p]
        self._library.shim_calls.restype = ctypes.c_long
        self._library.shim_fail.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_long]
        self._library.shim_fail_each.argtypes = [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_long]
        self._library.shim_token_flags.argtypes = [ctypes.c_ulong]
        self._library.shim_let.argtypes = [ctypes.c_long]
        self._library.shim_inside.restype = ctypes.c_long

    def calls(self, name: str) -> int:
        """How often the function was called so far."""
        count: int = self._library.shim_calls(name.encode())
        assert count >= 0, f"{name} is not counted by shim.c"
        return count

    def fail(self, name: str, ckr: int, times: int = -1) -> None:
        """Let the next `times` calls (all of them below 0) return `ckr` without being passed on."""
        assert self._library.shim_fail(name.encode(), ckr, times) == 0, f"{name} is not counted by shim.c"

    def fail_each(self, name: str, ckr: int, n: int) -> None:
        """Let each n-th call return `ckr` without being passed on: C_Sign leaves its operation active. 0: none."""
        assert self._library.shim_fail_each(name.encode(), ckr, n) == 0, f"{name} is not counted by shim.c"

    def token_flags(self, flags: int) -> None:
        """Set these bits in every CK_TOKEN_INFO.flags."""
        self._library.shim_token_flags(flags)

    def hold(self) -> None:
        """Keep every C_Sign from going on."""
        self._library.shim_hold()

    def let(self, count: int) -> None:
        """Let `count` held calls of C_Sign go on."""
        self._library.shim_let(count)

    def release(self) -> None:
        """Hold no longer."""
        self._library.shim_release()

    @property
    def inside(self) -> int:
        """How many calls wait in C_Sign."""
        count: int = self._library.shim_inside()
        return count

    async def until_inside(self, count: int) -> None:
        """Wait until so many calls wait in C_Sign."""
        while self.inside != count:  # noqa: ASYNC110  # it happens in native threads
            await asyncio.sleep(0.002)

    async def until_calls(self, name: str, count: int) -> None:
        """Wait until the function has been called at least `count` times."""
        while self.calls(name) < count:  # noqa: ASYNC110  # it happens in native threads
            await asyncio.sleep(0.002)
