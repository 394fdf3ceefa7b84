"""How the tests themselves are run: sizes, long tests, and the folder that a run leaves nothing of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.paths import ROOT
from tests.support.size import VARIABLE
from tests.support.slow import long_first, reasonless, unmarked

VICTIM = """
import subprocess, sys
from tests.support.run_folder import Keeper
keeper = Keeper()
(keeper.folder / "server").mkdir()
server = subprocess.Popen(["sleep", "600"], cwd=keeper.folder / "server", stdout=subprocess.DEVNULL)
print(keeper.folder, server.pid, flush=True)
sys.stdin.read()
"""


def item(name, *reasons, marked=True):
    mark = SimpleNamespace(args=reasons) if marked else None
    return SimpleNamespace(nodeid=name, path=name[0], get_closest_marker=lambda _: mark)


@pytest.mark.parametrize(("size", "counts"), [(None, [1, 1, 2, 25]), ("full", [1, 4, 5, 100])])
def test_a_share_is_a_quarter_and_never_nothing(size, counts):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: size} if size else {}
    program = "from tests.support.size import share; print([share(n) for n in (1, 4, 5, 100)])"
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert said.stdout.decode() == f"{counts}\n"


def test_long_tests_come_first_and_say_why():
    items = [item("a1", marked=False), item("b1", marked=False), item("b2", "waits"), item("c1", marked=False)]
    items.append(item("d1"))
    assert reasonless(items) == ["d1"]
    long_first(items)
    assert [one.nodeid for one in items] == ["b1", "b2", "d1", "a1", "c1"]


def test_a_run_names_long_tests_that_do_not_say_it():
    def report(name, duration, when="call", **keywords):
        return SimpleNamespace(nodeid=name, duration=duration, when=when, keywords=keywords)

    reports = [
        report("a", 6.0),
        report("b", 9.0),
        report("c", 9.0, slow=1),
        report("d", 1.0),
        report("e", 9.0, "setup"),
    ]
    assert unmarked(reports) == ["9.0 s: b", "6.0 s: a"]


def test_a_run_that_is_killed_leaves_neither_its_folder_nor_its_servers():
    environment = {name: value for name, value in os.environ.items() if name != "HSMCORE_TESTS_FOLDER"}
    command = [sys.executable, "-c", VICTIM]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        folder, server = victim.stdout.readline().decode().split()
        assert Path(folder).is_dir()
        victim.send_signal(signal.SIGKILL)
    while Path(folder).exists() or Path(f"/proc/{server}/cwd").exists():
        time.sleep(0.01)
