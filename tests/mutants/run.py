"""Runs the tests near a mutant in a copy of the tree, where the file is changed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.mutants.changes import Mutant
from tests.support.paths import ROOT
from tests.support.run_folder import fast_folder

COPIED: Final = ("core", "native", "bench", "tests", "pyproject.toml")
"""The rest of the tree is linked."""
LEAVES: Final = shutil.ignore_patterns(".hypothesis", "node_modules", "results")
PATIENCE: Final = 6
"""A run gets so many times what the unchanged file's took, and half a minute."""
_COMMAND: Final = ("-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "tests.mutants.quick")
_SELECTED: Final = ("-m", "not deep", "-k", "not postgres and not pooled")
_NATIVE: Final = """
cmake -G Ninja -DHSMC_WERROR=OFF -S . -B native-tests &&
cmake --build native-tests --target hsmcore hsmcore_shared "$@" || exit 3
cc -shared -o "$EXTENSION" build/extension-"$TAG"/build/cython/bindings/*.o native-tests/libhsmcore.a \
    -Wl,--version-script=bindings/native.map -lcrypto -lsodium || exit 3
for test; do native-tests/$test || { echo "FAILED $test"; exit 1; }; done
"""
"""What the compiler refuses has no verdict. The extension is linked again, too: its own object file is the tree's."""
_KILLED: Final = (1, 2)
"""Exit codes of pytest: a test failed, or its file could not be loaded."""
_SIGNALLED: Final = 128
"""Beyond it is the shell's exit code for a process that a signal ended: a crash."""


@dataclass(frozen=True)
class Outcome:
    """`verdict`: "killed", "survived" or "none". `by`: the test that failed."""

    verdict: str
    seconds: float
    by: str = ""


class Copy:
    """A copy of the tree, for one run at a time."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="hsmcore-mutants-", dir=fast_folder()))
        for path in ROOT.iterdir():
            if path.name in COPIED:
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, self.folder / path.name, **({"ignore": LEAVES} if path.is_dir() else {}))
            elif path.name != ".git":
                (self.folder / path.name).symlink_to(path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.folder)

    def judge(self, mutant: Mutant, tests: tuple[str, ...], limit: float) -> Outcome:
        """Run the tests with the change."""
        path = self.folder / mutant.path
        source = path.read_bytes()
        path.write_bytes(mutant.apply(source))
        try:
            return self.run(tests, limit)
        finally:
            path.write_bytes(source)

    def run(self, tests: tuple[str, ...], limit: float) -> Outcome:
        """Run tests of the copy. What takes longer than `limit` seconds has no verdict."""
        begun = time.monotonic()
        # No bytecode is written: it tells sources by the second of their change and their length.
        paths = os.pathsep.join(str(self.folder / name) for name in ("core", "bench"))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *_COMMAND, *_SELECTED, *(test for test in tests if not test.endswith(".c"))]
        if native := [Path(test).stem for test in tests if test.endswith(".c")]:
            environment |= {
                "HSMCORE_TEST_LIBRARY": str(self.folder / "native-tests" / "libhsmcore_test.so"),
                "EXTENSION": f"core/hsmcore/_native{sysconfig.get_config_var('EXT_SUFFIX')}",
                "TAG": f"{sys.implementation.cache_tag}{sys.abiflags}",
            }
            then = shlex.join(command) if len(native) < len(tests) else ""
            command = ["sh", "-c", _NATIVE + then, "sh", *native]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                said, _ = running.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.communicate()
                return Outcome("none", time.monotonic() - begun, "takes too long")
        took = time.monotonic() - begun
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if running.returncode in _KILLED or not 0 <= running.returncode < _SIGNALLED:
            return Outcome("killed", took, failed[1] if failed else "")
        if running.returncode == 0:
            return Outcome("survived", took)
        return Outcome("none", took, said.strip().rpartition("\n")[2])
