"""Writes the tables of the client in Rust, clients/rust/src/tables.rs, from those of the codec in Python.

`python -m scripts.wire_tables` after a change of them; tests/unit/test_wire.py holds the file to what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hsmcore.errors.statuses import STATUSES
from hsmcore.gateway.wire import frames
from hsmcore.gateway.wire import messages as wire

FILE: Final = Path(__file__).parents[1] / "clients" / "rust" / "src" / "tables.rs"
_UNSAID: Final = "Unsaid"


def _table(name: str, meaning: str, names: Iterable[str], more: str = "") -> str:
    """An enum whose variants have the numbers of their places."""
    rows = "".join(f'    {_variant(one)} = "{one}",\n' for one in names)
    return f"table! {{\n    /// {meaning}\n    {name}\n{rows}{more}}}\n"


def _variant(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace("_", "-").split("-")) or _UNSAID


def text() -> str:
    """Return the file."""
    types = "".join(f"pub const {one.name}: u8 = {int(one)};\n" for one in frames.Type)
    numbers = {
        "VERSION: u16": wire.VERSION,
        "MOST_BYTES: usize": frames.MOST_BYTES,
        "HAS_POSITION: u8": int(frames.Flag.HAS_POSITION),
        "AGAIN: u8": int(frames.Flag.AGAIN),
        "RETRYABLE: u8": int(wire.Fault.RETRYABLE),
        "MAYBE_SIGNED: u8": int(wire.Fault.MAYBE_SIGNED),
        "NONCE_BYTES: usize": wire.NONCE_BYTES,
        "MOST_PING: usize": wire.MOST_PING,
        "NO_RECORD: u64": f"{wire.NO_RECORD:#x}",
    }
    tables = (
        _table("Kind", "What a payload is. `Unsaid` says nothing.", wire.KINDS),
        _table("Algorithm", "Of a key.", wire.ALGORITHMS),
        _table("Level", "The level of failover that signed. `Unsaid`: unknown.", wire.LEVELS),
        _table("Operation", "What can be done with a key.", wire.OPERATIONS),
        _table("Code", "What went wrong: a row of hsmcore's statuses.", STATUSES, '    Other = "OTHER",\n'),
    )
    constants = "".join(f"pub const {name} = {value};\n" for name, value in numbers.items())
    return "\n".join(
        (
            "//! Written by scripts/wire_tables.py from the codec in Python: numbers and names of hsmcore-wire/1.\n",
            types,
            constants,
            *tables,
        )
    )


if __name__ == "__main__":
    FILE.write_text(text())
    sys.stdout.write(f"{FILE}\n")
