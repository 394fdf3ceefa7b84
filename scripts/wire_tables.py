"""Writes the tables of the client in Rust, clients/rust/src/tables.rs, from those of the codec in Python.

`python -m scripts.wire_tables` after a change of them; tests/unit/test_wire.py holds the file to what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Final

from hsmcore.errors.statuses import STATUSES
from hsmcore.gateway.wire import frames
from hsmcore.gateway.wire import messages as wire

FILE: Final = Path(__file__).parents[1] / "clients" / "rust" / "src" / "tables.rs"
_UNSAID: Final = "Unsaid"
_HELD: Final = "~"
"""A space at which no line ends."""


def _table(name: str, meaning: str, names: Iterable[str], more: str = "") -> str:
    """An enum whose variants have the numbers of their places."""
    rows = _wrapped([*(f'{_variant(one)} = "{one}",' for one in names), more])
    return f"table! {{\n    /// {meaning}\n    {name}\n{rows}}}\n"


def _wrapped(parts: Iterable[str]) -> str:
    text = " ".join(part.replace(" ", _HELD) for part in parts if part)
    lines = fill(text, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return lines.replace(_HELD, " ") + "\n"


def _variant(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace("_", "-").split("-")) or _UNSAID


def text() -> str:
    """Return the file."""
    bytes_ = [*frames.Type, frames.Flag.HAS_POSITION, frames.Flag.AGAIN, *wire.Fault]
    sizes = {"MOST_BYTES": frames.MOST_BYTES, "NONCE_BYTES": wire.NONCE_BYTES, "MOST_PING": wire.MOST_PING}
    tables = (
        _table("Kind", "What a payload is. `Unsaid` says nothing.", wire.KINDS),
        _table("Algorithm", "Of a key.", wire.ALGORITHMS),
        _table("Level", "The level of failover that signed. `Unsaid`: unknown.", wire.LEVELS),
        _table("Operation", "What can be done with a key.", wire.OPERATIONS),
        _table("Code", "What went wrong: a row of hsmcore's statuses.", STATUSES, 'Other = "OTHER",'),
    )
    return "\n".join(
        (
            "//! Written by scripts/wire_tables.py from the codec in Python: numbers and names of hsmcore-wire/1.\n",
            _numbers("u8", {str(one.name): int(one) for one in bytes_}),
            _numbers("u16", {"VERSION": wire.VERSION}),
            _numbers("usize", sizes),
            _numbers("u64", {"NO_RECORD": wire.NO_RECORD}),
            *tables,
        )
    )


def _numbers(form: str, values: Mapping[str, int]) -> str:
    rows = _wrapped(f"{name} = {value}," for name, value in values.items())
    return f"numbers! {{ {form}:\n{rows}}}\n"


if __name__ == "__main__":
    FILE.write_text(text())
    sys.stdout.write(f"{FILE}\n")
