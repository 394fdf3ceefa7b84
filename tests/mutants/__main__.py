"""Whether the tests see small changes of what promises lie on: `make mutants`.

    python -m tests.mutants [--only failover/budget.py] [--most 300] [--jobs 1] [--list]

Changes are made by a rule and drawn by a seed (changes.py), or named by a person (known.py). Each is judged by the
tests near its file (near.py) in a copy of the tree. The table is by file; the last line counts. Exit code 1 if one
survived.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from tests.mutants.changes import Mutant, by_hand, of_files, sample
from tests.mutants.known import EQUIVALENT, HAND
from tests.mutants.near import NEAR
from tests.mutants.run import PATIENCE, Copy, Outcome
from tests.support.paths import ROOT

SEED = 1
MOST = 300


def chosen(only: list[str], seed: int, most: int) -> list[Mutant]:
    """Return the mutants of files whose paths end with one of `only`: those by hand, then the drawn ones."""
    ends = tuple(only) or ("",)
    hand = [by_hand(ROOT, name, *one[:3]) for name, one in HAND.items() if one.path.endswith(ends)]
    return [*hand, *sample(of_files(ROOT, [path for path in NEAR if path.endswith(ends)]), seed)][:most]


def near(mutant: Mutant) -> tuple[str, ...]:
    """Return the tests that judge a mutant."""
    return (mutant.kind == "hand" and HAND[mutant.text].near) or NEAR[mutant.path]


class Judge:
    """Judges mutants in several copies of the tree."""

    def __init__(self, copies: list[Copy], out: Path | None) -> None:
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            self._copies.put(copy)
        self._out, self._lock = out, Lock()
        self._seconds: dict[tuple[str, ...], float] = {}
        self.results: list[tuple[Mutant, Outcome]] = []

    def take_up(self, mutants: list[Mutant]) -> list[Mutant]:
        """Take killed ones from the results of an earlier run. Returns the rest."""
        rows = json.loads(self._out.read_text()) if self._out is not None and self._out.exists() else []
        killed = {
            row["name"]: Outcome("killed", row["seconds"], row["by"]) for row in rows if row["verdict"] == "killed"
        }
        self.results += [(one, killed[one.name]) for one in mutants if one.name in killed]
        return [one for one in mutants if one.name not in killed]

    def measure(self, tests: tuple[str, ...]) -> None:
        """Run tests without a change: what fails then judges nothing."""
        copy = self._copies.get()
        found = copy.run(tests, 3600)
        self._copies.put(copy)
        if found.verdict == "survived":
            self._seconds[tests] = found.seconds
        else:
            sys.stderr.write(f"fails without a change: {found.by}\n")

    def judge(self, mutant: Mutant) -> None:
        """Find the verdict on one mutant."""
        tests = near(mutant)
        if mutant.name in EQUIVALENT:
            outcome = Outcome("equivalent", 0.0, EQUIVALENT[mutant.name])
        elif tests not in self._seconds:
            outcome = Outcome("none", 0.0, "its tests fail without a change")
        else:
            copy = self._copies.get()
            outcome = copy.judge(mutant, tests, 30 + PATIENCE * self._seconds[tests])
            self._copies.put(copy)
        with self._lock:
            self.results.append((mutant, outcome))
            sys.stderr.write(f"{outcome.verdict:9} {outcome.seconds:5.1f} s {mutant.line:4} {mutant.name}\n")
            if self._out is not None:
                rows = [{"name": one.name, "line": one.line, **asdict(found)} for one, found in self.results]
                self._out.write_text(json.dumps(rows, indent=1) + "\n")

    def table(self) -> str:
        """Return how many of each file's mutants were seen."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for mutant, outcome in self.results:
            counts[mutant.path][outcome.verdict] += 1
            counts["all"][outcome.verdict] += 1
        verdicts = ("killed", "survived", "equivalent", "none")
        lines = [f"{'file':45} {'tried':>6}" + "".join(f"{one:>11}" for one in verdicts)]
        for path, found in counts.items():
            name = path.removeprefix("core/hsmcore/")
            lines.append(f"{name:45} {found.total():6}" + "".join(f"{found[one]:11}" for one in verdicts))
        lines += [f"survived: {mutant.name}" for mutant, outcome in self.results if outcome.verdict == "survived"]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether the tests see small changes of the code.")
    parser.add_argument("--only", action="append", default=[], help="end of a file's path; may be repeated")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--name", default="", help="only mutants whose names contain this")
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    parser.add_argument("--out", type=Path, help="write the results to this file, as JSON; what it has killed is kept")
    asked = parser.parse_args()
    mutants = [one for one in chosen(asked.only, asked.seed, 10**9) if asked.name in one.name][: asked.most]
    if asked.list:
        sys.stdout.writelines(f"{one.line:4} {one.name}\n" for one in mutants)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no copy stays
    copies = [Copy() for _ in range(asked.jobs)]
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(asked.jobs)
        judge = Judge([stack.enter_context(copy) for copy in copies], asked.out)
        stack.callback(pool.shutdown, cancel_futures=True)
        left = judge.take_up(mutants)
        list(pool.map(judge.measure, dict.fromkeys(near(one) for one in left)))
        list(pool.map(judge.judge, left))
    sys.stdout.write(f"{judge.table()}\n")
    return 1 if any(outcome.verdict == "survived" for _, outcome in judge.results) else 0


if __name__ == "__main__":
    sys.exit(main())
