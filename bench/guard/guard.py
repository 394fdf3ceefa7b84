"""Count the instructions that one signature costs on the hot path, and compare them with those that are on record.

    python -m bench.guard.guard --program build/guard/hot_path [--update] [--json]

Times tell nothing on a busy machine; a count of instructions is the same on every one with the same compiler. Only our
own code counts: what libc and libcrypto need depends on their version and on the processor. A change that makes the hot
path longer or shorter by more than the tolerance has to change instructions.json too: `make guard-update`. Exit code:
0, 1 (a count is off), 2 (bad usage, valgrind is missing).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("instructions.json")
SECTIONS = (
    *("ring", "ring-digest", "requests", "routes", "cache-hit", "cache-miss", "audit-line", "policy", "policy-raw"),
    "gateway-frame",
)
GOALS = {"ring": 700, "requests": 1100, "audit-line": 867}
"""At most so many of our own: what to reach. Only a count that is off the record is an error."""
SIGNATURES = 1600
TOLERANCE = 0.02
OTHER_COMPILER = 0.25
"""With another compiler than that of the record only a gross change is told from a different choice of instructions."""


@dataclass(frozen=True)
class Count:
    """Instructions for one signature: in our code, and in libraries and the module."""

    own: float
    libraries: float


def counted(text: str, program: str) -> Count:
    """Sum up what callgrind wrote for a run of so many SIGNATURES."""
    own = libraries = 0
    mine = inclusive = False
    for line in text.splitlines():
        if line.startswith("ob="):
            mine = line[3:] == program
        elif line.startswith("calls="):
            inclusive = True  # the line that follows repeats what the function that is called will say itself
        elif re.fullmatch(r"\d+ \d+", line):
            if inclusive:
                inclusive = False
            elif mine:
                own += int(line.split()[1])
            else:
                libraries += int(line.split()[1])
    return Count(own / SIGNATURES, libraries / SIGNATURES)


def measure(program: Path, section: str) -> Count:
    """Run one section under callgrind."""
    with tempfile.TemporaryDirectory(prefix="hsmcore-guard-") as folder:
        out = Path(folder) / "callgrind.out"
        options = [f"--callgrind-out-file={out}", "--toggle-collect=hot_section*", "--compress-strings=no",
                   "--compress-pos=no", "--dump-line=no"]  # fmt: skip
        ran = subprocess.run(
            ["valgrind", "--tool=callgrind", *options, str(program), section, str(SIGNATURES)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if ran.returncode != 0:
            raise SystemExit(f"guard: {section}: {ran.stderr.strip().splitlines()[-1]}")
        return counted(out.read_text(errors="replace"), str(program))


def compiler() -> str:
    """Of the C code, without the distribution's own words."""
    said = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    version = re.search(r"\d+\.\d+\.\d+", said)
    return f"{'clang' if 'clang' in said else 'gcc'} {version[0] if version else said}"


def deviations(found: dict[str, Count], record: dict[str, Any], tolerance: float) -> list[str]:
    """What is off, in words."""
    wrong = []
    for section, count in found.items():
        kept = record["sections"].get(section)
        if kept is None:
            wrong.append(f"{section}: {count.own:.1f} instructions, and none on record")
        elif abs(count.own / kept["own"] - 1) > tolerance:
            change = count.own / kept["own"] - 1
            wrong.append(f"{section}: {count.own:.1f} instructions, on record {kept['own']:.1f} ({change:+.1%})")
    return wrong


def held(section: str, count: Count) -> str:
    """A section held against its goal, in words; empty without one."""
    goal = GOALS.get(section)
    return "" if goal is None else f"   goal ≤ {goal:,}: {'met' if round(count.own, 1) <= goal else 'missed'}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Count the instructions of the hot path.")
    parser.add_argument("--program", type=Path, required=True, help="hot_path, as the build made it")
    parser.add_argument("--record", type=Path, default=RECORD, help="the counts to compare with")
    parser.add_argument("--update", action="store_true", help="write the counts instead of comparing them")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    options = parser.parse_args()
    if shutil.which("valgrind") is None or not options.program.is_file():
        print("guard: needs valgrind (apt-get install valgrind) and the program (make guard)", file=sys.stderr)
        return 2
    found = {section: measure(options.program.resolve(), section) for section in SECTIONS}
    current = {
        "compiler": compiler(),
        "unit": "instructions for one signature",
        "sections": {
            name: {"own": round(count.own, 1), "libraries": round(count.libraries, 1)} for name, count in found.items()
        },
    }
    if options.update:
        options.record.write_text(json.dumps(current, indent=2) + "\n")
    record = json.loads(options.record.read_text())
    same = record["compiler"] == current["compiler"]
    wrong = deviations(found, record, TOLERANCE if same else OTHER_COMPILER)
    if options.json:
        print(json.dumps({**current, "goals": GOALS, "onRecord": record, "ok": not wrong, "deviations": wrong}))
    else:
        for name, count in found.items():
            said = f"{name:12} {count.own:8.1f} own {count.libraries:8.1f} in libraries and the module"
            print(said + held(name, count))
        if not same:
            print(f"guard: {current['compiler']} here, {record['compiler']} on record: only gross changes are told")
    for line in wrong:
        print(f"guard: {line}", file=sys.stderr)
    if wrong:
        print("guard: if that is meant, put it on record with: make guard-update", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
