"""Copies of programs and libraries that have the names of their folders compiled in: each copy names folders of the
test's own, so that nothing of the machine's is touched and several tests run side by side."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path


def short_folder() -> Path:
    """A new folder with a name of nine bytes, which fits where "/etc/pkcs11" stood."""
    while True:
        folder = Path("/tmp") / secrets.token_hex(2)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder


def relocate(source: Path, copy: Path, moves: Mapping[str, Path]) -> None:
    """Copy a binary. Where it names a path of `moves`, the copy names the other one, filled up with slashes."""
    data = source.read_bytes()
    for old, new in moves.items():
        assert len(str(new)) <= len(old), f"{new} does not fit in the place of {old}"
        data = data.replace(old.encode(), str(new).ljust(len(old), "/").encode())
    copy.write_bytes(data)
    copy.chmod(0o755)
