"""Compile the hostile host (tests/native/hostile_host.c), a program in the place of hsmcore-host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.paths import ROOT


def compile_hostile_host(folder: Path) -> Path:
    """Build it with the native core; returns the program."""
    out = folder / "hostile-host"
    names = ["p11-kit-1", "libsodium", "libcrypto"]
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", *names], check=True, capture_output=True, text=True)
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O0", "-g", "-pthread", "-Inative/src", "-Inative/include"]
    sources = [ROOT / "tests/native/hostile_host.c", *sorted((ROOT / "native/src").glob("*.c"))]
    subprocess.run([*command, *map(str, sources), "-o", str(out), *flags.stdout.split(), "-ldl"], check=True, cwd=ROOT)
    return out
