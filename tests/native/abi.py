"""The native core through its ABI: the shared library that the C build makes for tests, declared from the header.

The declarations are read from native/include, so that a change there reaches these tests without a second edit.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "native" / "include"
HEADERS = [INCLUDE / "hsmcore" / name for name in ("status.h", "hsmcore.h", "requests.h", "guest.h")]
HEADERS += [ROOT / "native" / "src" / name for name in ("list.h", "deadlines.h", "admission.h")]
LIBRARY = "libhsmcore_test.so"


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def _status_rows() -> str:
    names = re.findall(r"^HSM_STATUS\((\w+),", (INCLUDE / "hsmcore" / "status.def").read_text(), re.MULTILINE)
    return ", ".join(f"HSM_{name}" for name in names) + ","


def declarations() -> str:
    """The headers as cffi reads them: no preprocessor, no attributes, no inline functions; the table of statuses put in
    its place."""
    text = _without_comments("".join(header.read_text() for header in HEADERS))
    text = re.sub(r"^static inline .*?^}", "", text, flags=re.MULTILINE | re.DOTALL)
    table = r"^#define HSM_STATUS\(.*\n#include <hsmcore/status\.def>\n#undef .*$"
    text = re.sub(table, _status_rows(), text, flags=re.MULTILINE)
    constants = dict(re.findall(r"^#define (HSM_\w+) (\d+)U?\b", text, re.MULTILINE))
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"__attribute__\(\(.*?\)\)(?=;)", "", text, flags=re.DOTALL)
    # printf-like functions are for C alone.
    text = re.sub(r"^[^;{}]*\.\.\.\)\s*;", "", text, flags=re.MULTILINE)
    text = text.replace("HSM_NODISCARD", "")
    for name, value in constants.items():
        text = re.sub(rf"\b{name}\b", value, text)
    return text


def constant(name: str) -> int:
    """A numeric #define."""
    for header in HEADERS:
        found = re.search(rf"^#define {name} (\d+)U?\b", header.read_text(), re.MULTILINE)
        if found:
            return int(found[1])
    raise KeyError(name)


def library_path() -> Path:
    """HSMCORE_TEST_LIBRARY, or what `make native-test` builds."""
    path = Path(os.environ.get("HSMCORE_TEST_LIBRARY") or ROOT / "build" / "test" / LIBRARY)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `make native-test`, or set HSMCORE_TEST_LIBRARY to {LIBRARY}")
    return path


def noop_path() -> Path:
    """The no-op module of the same build."""
    path = library_path().parent / "bin" / "libhsmcore_noop.so"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `make native-test`")
    return path


@cache
def load() -> tuple[Any, Any]:
    """cffi's view of the library: (ffi, lib)."""
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    return ffi, ffi.dlopen(str(library_path()))


def leaks() -> dict[str, int]:
    """What the library holds now."""
    ffi, lib = load()
    held = ffi.new("hsm_leaks *")
    lib.hsm_leaks_read(held)
    return {name: getattr(held, name) for name, _ in ffi.typeof("hsm_leaks").fields}
