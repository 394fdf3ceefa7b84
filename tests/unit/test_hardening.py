"""What was built here was built with the compiler's protections; the debugging information says how."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.paths import CHAOS

import hsmcore
from hsmcore import _native

HOST = Path(hsmcore.__file__).parent / "_bin" / "hsmcore-host"
BRANCHES = {"x86_64": "-fcf-protection=return", "aarch64": "-mbranch-protection=standard"}

pytestmark = pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")


def readelf(option: str, path: Path) -> str:
    """What readelf says of a program."""
    return subprocess.run(["readelf", "--wide", option, path], check=True, capture_output=True, text=True).stdout


def test_the_extension_shows_what_others_look_for_and_nothing_else():
    rows = [line.split() for line in readelf("--dyn-syms", Path(_native.__file__)).splitlines()]
    shown = {row[7] for row in rows if len(row) > 7 and row[4] in ("GLOBAL", "WEAK") and row[6].isdigit()}
    assert shown == {"PyInit__native", "C_GetFunctionList"}


@pytest.mark.parametrize("path", [HOST, Path(_native.__file__), CHAOS], ids=lambda path: path.name)
def test_the_compiler_s_protections_are_on(path):
    producers = {line for line in readelf("--debug-dump=info", path).splitlines() if "DW_AT_producer" in line}
    compiled = [line for line in producers if "GNU C" in line]
    if not compiled:
        pytest.skip("built without debugging information, or by another compiler")
    branches = BRANCHES.get(platform.machine(), "")
    for line in compiled:
        assert "-fstack-clash-protection" in line
        assert branches in line
        assert "-fstack-protector-strong" in line
    assert "_chk@" in readelf("--dyn-syms", path)  # calls that check the size of their buffers
