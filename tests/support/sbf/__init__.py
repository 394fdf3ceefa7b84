"""Programs for Solana's runtime from C, by clang alone: it writes an object file, and this what a loader takes.

A program has one function, `entrypoint`, and no constants in memory; it may make system calls.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

CLANG: Final = "clang-19"
_FLAGS: Final = ("--target=bpfel", "-mcpu=v1", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin")
_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = Struct("<IIQQQQIIQQ")
_SYMBOL: Final = Struct("<IBBHQQ")
_RELOCATION: Final = Struct("<QQ")
_BPF, _SHARED, _CALL = 247, 3, 10
_PROGRAM, _STRINGS, _DYNAMIC, _RELOCATIONS, _SYMBOLS = 1, 3, 6, 9, 11
"""Types of sections."""


class _Code(NamedTuple):
    text: bytes
    calls: list[tuple[int, bytes]]
    """Where a system call stands in it, and its name."""


def program(source: Path, constants: Mapping[str, bytes | str]) -> bytes:
    """Compile a program. `constants`: bytes become macros NAME_0, NAME_1 … of eight each, as little-endian numbers."""
    macros = []
    for name, value in constants.items():
        if isinstance(value, str):
            macros.append(f"-D{name}={value}")
        else:
            words = (int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8))
            macros += (f"-D{name}_{number}={word}UL" for number, word in enumerate(words))
    with TemporaryDirectory() as folder:
        made = Path(folder) / "program.o"
        subprocess.run([CLANG, *_FLAGS, *macros, "-c", source, "-o", made], check=True, timeout=60)
        return _linked(_read(made.read_bytes()))


def _read(data: bytes) -> _Code:
    header = _HEADER.unpack_from(data)
    at, size, count, names = header[6], header[11], header[12], header[13]
    sections = [_SECTION.unpack_from(data, at + size * number) for number in range(count)]
    bodies = [data[section[4] : section[4] + section[5]] for section in sections]
    named = {_name(bodies[names], section[0]): number for number, section in enumerate(sections)}
    assert not {name for name in named if name.startswith((b".rodata", b".data", b".bss"))}, named
    symbols = list(_SYMBOL.iter_unpack(bodies[named[b".symtab"]]))
    calls = [
        (place, _name(bodies[named[b".strtab"]], symbols[what >> 32][0]))
        for place, what in _RELOCATION.iter_unpack(bodies[named.get(b".rel.text", 0)])
        if what & 0xFFFFFFFF == _CALL
    ]
    return _Code(bodies[named[b".text"]], calls)


def _name(names: bytes, at: int) -> bytes:
    return names[at : names.index(b"\0", at)]


def _linked(code: _Code) -> bytes:
    """A shared object, whose dynamic relocations name the system calls."""
    names = sorted({name for _, name in code.calls})
    strings, symbols = b"\0", _SYMBOL.pack(0, 0, 0, 0, 0, 0)
    for name in names:
        symbols += _SYMBOL.pack(len(strings), 0x10, 0, 0, 0, 0)
        strings += name + b"\0"
    places = {b".text": _HEADER.size}
    for name, size in ((b".dynsym", len(code.text)), (b".dynstr", len(symbols)), (b".rel.dyn", _padded(strings))):
        places[name] = places[[*places][-1]] + size
    moved = b"".join(
        _RELOCATION.pack(_HEADER.size + at, (names.index(name) + 1) << 32 | _CALL) for at, name in code.calls
    )
    places[b".dynamic"] = places[b".rel.dyn"] + len(moved)
    tags = ((5, places[b".dynstr"]), (6, places[b".dynsym"]), (10, len(strings)), (11, _SYMBOL.size))
    tags += ((17, places[b".rel.dyn"]), (18, len(moved)), (19, _RELOCATION.size), (0, 0))
    dynamic = b"".join(_RELOCATION.pack(*tag) for tag in tags)
    places[b".shstrtab"] = places[b".dynamic"] + len(dynamic)
    section_names = b"\0" + b"".join(name + b"\0" for name in places)
    rows = {
        b".text": (_PROGRAM, 6, len(code.text), 0, 0),
        b".dynsym": (_SYMBOLS, 2, len(symbols), 3, _SYMBOL.size),
        b".dynstr": (_STRINGS, 2, len(strings), 0, 0),
        b".rel.dyn": (_RELOCATIONS, 2, len(moved), 2, _RELOCATION.size),
        b".dynamic": (_DYNAMIC, 3, len(dynamic), 3, _RELOCATION.size),
        b".shstrtab": (_STRINGS, 0, len(section_names), 0, 0),
    }
    table = bytes(_SECTION.size)
    for name, (kind, flags, size, link, entry) in rows.items():
        at = places[name]
        named = section_names.index(b"\0" + name + b"\0") + 1
        table += _SECTION.pack(named, kind, flags, at, at, size, link, 0, 8, entry)
    body = code.text + symbols + strings.ljust(_padded(strings), b"\0") + moved + dynamic
    body += section_names.ljust(_padded(section_names), b"\0")
    sections = _HEADER.size + len(body)
    identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
    sizes = (_HEADER.size, 56, 0, _SECTION.size, len(rows) + 1, len(rows))
    return _HEADER.pack(identity, _SHARED, _BPF, 1, _HEADER.size, 0, sections, 0, *sizes) + body + table


def _padded(data: bytes) -> int:
    return -(-len(data) // 8) * 8
