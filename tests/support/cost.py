"""What tests cost: `pytest -n0 -p tests.support.cost --cost FILE`, as root. Writes a JSON object a line: the seconds
that each phase of a test and each fixture took, by the clock and of processors, those of all child processes included.
`python -m tests.support.cost FILE…` sums them by file and by fixture, the most costly first."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from time import monotonic  # tests replace time's own
from typing import Any

import pytest

_GROUP = Path("/sys/fs/cgroup/cpuacct")
"""Linux's accounting by groups, which children cannot leave: getrusage() knows no child that nobody waited for."""


class Costs:
    """Measures this process and its children from now on."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("a")
        group = _GROUP / f"tests-{os.getpid()}"
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
        self.usage = group / "cpuacct.usage"
        self.began = self.now()

    def now(self) -> tuple[float, float]:
        """Seconds by the clock, and of processors."""
        return monotonic(), int(self.usage.read_text()) / 1e9

    def write(self, what: str, name: str, began: tuple[float, float]) -> None:
        """Note what has passed since `began`."""
        wall, processor = (round(end - start, 4) for end, start in zip(self.now(), began, strict=True))
        self.file.write(json.dumps({"what": what, "name": name, "wall": wall, "processor": processor}) + "\n")
        self.file.flush()

    @pytest.hookimpl
    def pytest_collection_finish(self) -> None:
        """All that was imported and collected."""
        self.write("collect", "all", self.began)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The fixtures, too."""
        began = self.now()
        try:
            return (yield)
        finally:
            self.write("setup", item.nodeid, began)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The test."""
        began = self.now()
        try:
            return (yield)
        finally:
            self.write("call", item.nodeid, began)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """What the fixtures end."""
        began = self.now()
        try:
            return (yield)
        finally:
            self.write("teardown", item.nodeid, began)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """A part of a test's setup."""
        began = self.now()
        try:
            return (yield)
        finally:
            self.write("fixture", f"{fixturedef.baseid}::{fixturedef.argname}", began)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the figures go."""
    parser.addoption("--cost", type=Path, help="the file that the costs of tests are added to")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    config.pluginmanager.register(Costs(config.option.cost))


def sums(lines: Iterable[str]) -> str:
    """The most costly files, tests and fixtures: processor seconds, seconds by the clock, name."""
    tables: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for line in lines:
        one = json.loads(line)
        test = one["what"] in {"setup", "call", "teardown"}
        keys = [(one["what"], one["name"] if one["what"] == "fixture" else "all")]
        keys += [("file", one["name"].partition("::")[0]), ("test", one["name"])] if test else []
        for table, key in keys:
            processor, wall = tables.setdefault(table, (Counter(), Counter()))
            processor[key] += one["processor"]
            wall[key] += one["wall"]
    return "\n".join(
        f"{table:9} {seconds:8.2f} {wall[key]:8.2f}  {key}"
        for table, (processor, wall) in tables.items()
        for key, seconds in processor.most_common(60)
    )


if __name__ == "__main__":
    print(sums(line for file in sys.argv[1:] for line in Path(file).read_text().splitlines()))  # noqa: T201
