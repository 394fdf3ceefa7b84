"""The files that commands read and write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage
from hsmcore.errors import SystemFailure

OutputOption = Annotated[Path | None, "-o PATH: Default: standard output."]


def read(path: Path, most: int = -1) -> bytes:
    """Return what a file holds, at most `most` bytes. Raises BadUsage."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from None


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file; a new one gets `mode`, by default for its owner alone. Raises SystemFailure."""
    try:
        path.touch(mode)
        path.write_bytes(data)
    except OSError as error:
        raise SystemFailure(f"{path} cannot be written: {error.strerror}", hint="Name another file.") from error


def deliver(cli: Invocation, data: bytes, output: Path | None, shown: Any, what: str, mode: int = 0o666) -> None:
    """Write `data` to a file and say so, or to standard output. `shown`: what is printed with --json instead."""
    if output is not None:
        write(output, data, mode)
    if shown is None or (output is None and not cli.as_json):
        sys.stdout.write(data.decode())
    else:
        cli.show(shown, f"{what} written to {output}")
