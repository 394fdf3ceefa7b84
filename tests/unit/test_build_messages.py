"""A build or an import that cannot work ends in one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """As much of the sources as a build looks at before it compiles."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("native", "bindings", "bench/native"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "core" / "hsmcore").mkdir(parents=True)
    return folder


WITHOUT_HEADERS = """
import runpy, sys, sysconfig
known = sysconfig.get_path
sysconfig.get_path = lambda name, *more, **named: "/nonexistent" if name == "include" else known(name, *more, **named)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def end_of_build(source, *, program=("setup.py",), **changes):
    line = [sys.executable, *program, "-q", "build_ext"]
    environment = {**os.environ, "CMAKE_GENERATOR": "Ninja", **changes}
    said = subprocess.run(line, cwd=source, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert said.returncode != 0
    return said.stderr.splitlines()[-1]


def test_a_build_names_all_libraries_that_are_missing(source):
    said = end_of_build(source, PKG_CONFIG_LIBDIR="/nonexistent")
    assert "libcrypto, libsodium, p11-kit-1, jansson" in said
    assert "apt-get install libssl-dev libsodium-dev libp11-kit-dev libjansson-dev (Debian" in said
    assert "dnf install openssl-devel libsodium-devel p11-kit-devel jansson-devel (Fedora" in said


def test_a_build_without_cmake_or_a_compiler_says_so(source):
    assert "apt-get install cmake (Debian" in end_of_build(source, PATH="/nonexistent")
    shutil.rmtree(source / "build", ignore_errors=True)
    assert "apt-get install gcc libc6-dev make (Debian" in end_of_build(source, CC="/bin/false")


def test_a_build_without_the_headers_of_python_says_so(source):
    said = end_of_build(source, program=("-c", "import sys; sys.argv[0] = 'setup.py'" + WITHOUT_HEADERS))
    assert "Python.h of Python 3." in said
    assert "apt-get install python3-dev (Debian, Ubuntu), or dnf install python3-devel (Fedora)" in said


def test_free_threaded_cpython_is_refused_in_one_sentence():
    code = "import sys; sys.abiflags = 't'; import hsmcore"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = said.stderr.splitlines()[-1]
    assert last.startswith("ImportError: hsmcore is not tested on free-threaded CPython")
