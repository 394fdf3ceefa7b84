"""Is the raw C loop a fair reference? It is held against a second one that shares no line with it: P-256, in turn, in
processes of their own on one token. Where a process has its memory makes a difference of some percent for as long as it
lives, so both are started again and again, and what counts is the median of each life.

    python -m tests.reference.check --lives 16 --rounds 4 --seconds 0.5

Rates are what counts on an idle machine. Where others run, too, processor time for each signature says the same: both
loops do nothing but compute. Exit code: 0 when one of the two ratios (median over the lives) is within 2 %, 1 when
neither is, 2 when something that it needs is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from hsmcore_bench.harness import environment, locate
from hsmcore_bench.harness.process import Child, child_environment
from hsmcore_bench.suite.child.protocol import PIN_ENV
from hsmcore_bench.suite.compare import CONFIDENCE
from hsmcore_bench.suite.softtoken import temporary_token
from hsmcore_bench.suite.stats import interval, redrawn

SOURCE = Path(__file__).with_name("independent.c")
WITHIN = 0.02
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-pedantic")


@dataclass(frozen=True)
class Ratio:
    """The raw loop's figure over the other's: median over the lives, and its interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        return cls(median(ratios), *interval(partial(redrawn, ratios), CONFIDENCE, len(ratios)))

    def __str__(self) -> str:
        return f"{self.median:.4f} ({CONFIDENCE:.0%} interval {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Figures:
    """One loop, one round."""

    rate: float  # signatures a second
    cpu: float  # processor time for each, seconds


@dataclass(frozen=True)
class Verdict:
    rate: Ratio
    cpu: Ratio
    rates: tuple[float, float]
    lives: int
    rounds: int

    @property
    def fair(self) -> bool:
        return min(abs(self.rate.median - 1.0), abs(self.cpu.median - 1.0)) <= WITHIN


def build(folder: Path) -> Path:
    """Compile the second loop. Raises subprocess.CalledProcessError."""
    header = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], capture_output=True, text=True, check=True)
    program = folder / "independent"
    command = ["cc", *FLAGS, *header.stdout.split(), str(SOURCE), "-o", str(program), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return program


Rounds = Sequence[tuple[Figures, Figures]]


def measure(lives: int, rounds: int, seconds: float, threads: int) -> Verdict:
    """Both loops in turn, each first in every second round, in so many pairs of processes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmcore-reference-")))
        token, access = stack.enter_context(temporary_token(locate.SOFTHSM_MODULE, ("ecdsa-p256",)))
        label, raw = token.labels["ecdsa-p256"], locate.native(locate.RAW_SIGN)
        if raw is None:
            raise FileNotFoundError(f"{locate.RAW_SIGN} was not built")
        options = ("--module", token.module, "--token", token.token, "--label", label, "--pin-env", PIN_ENV)
        more = ("--threads", str(threads), "--algorithm", "ecdsa-p256", "--message-bytes", "32")
        commands = [
            [str(raw), *options, *more],
            [str(build(folder)), token.module, token.token, label, str(threads)],
        ]
        return judge([_life(commands, child_environment(access), rounds, seconds) for _ in range(lives)])


def _life(commands: Sequence[list[str]], environment: dict[str, str], rounds: int, seconds: float) -> Rounds:
    with ExitStack() as stack:
        children = []
        for command in commands:  # one after the other: SoftHSM rewrites its files at each login
            children.append(stack.enter_context(Child(command, environment)))
            children[-1].ready()
        for child in children:
            child.run(min(seconds, 0.2))
        return [_round(children, seconds, turned=bool(number % 2)) for number in range(rounds)]


def judge(lives: Sequence[Rounds]) -> Verdict:
    """Of each pair of processes the median of its rounds counts."""
    every = [figures for rounds in lives for figures in rounds]
    return Verdict(
        Ratio.of([median(raw.rate / other.rate for raw, other in rounds) for rounds in lives]),
        Ratio.of([median(raw.cpu / other.cpu for raw, other in rounds) for rounds in lives]),
        (median(raw.rate for raw, _ in every), median(other.rate for _, other in every)),
        len(lives),
        len(every),
    )


def _round(children: Sequence[Child], seconds: float, *, turned: bool) -> tuple[Figures, Figures]:
    found = {}
    for which in (1, 0) if turned else (0, 1):
        before = children[which].cpu_seconds()
        reply = children[which].run(seconds)
        cpu = children[which].cpu_seconds() - before
        found[which] = Figures(reply["signatures"] / reply["seconds"], cpu / reply["signatures"])
    return found[0], found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=16, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=4, help="of each pair")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(options.lives, options.rounds, options.seconds, options.threads)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"reference: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(asdict(found) | {"fair": found.fair}) + "\n")
    else:
        rates = " and ".join(f"{rate:,.0f}/s" for rate in found.rates)
        sys.stdout.write(
            f"raw C loop ÷ independent loop, P-256, {options.threads} threads, {found.lives} lives of the two: "
            f"{rates}\n"
            f"rate             {found.rate}\n"
            f"processor time   {found.cpu}\n"
            f"{'within' if found.fair else 'not within'} 2 %\n"
        )
    return 0 if found.fair else 1


if __name__ == "__main__":
    sys.exit(main())
