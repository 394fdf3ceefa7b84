"""What schedules.py has printed, as tables of Markdown: by what went wrong, and by how far away the database was.

python -m tests.fleet.table RESULT.json …
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.fleet.schedules import SOON

_COLUMNS = ("schedules", "signatures", "positions", "faults", "refused without need", "while an incident was open",
            "healed: median", "slowest", f"over {SOON:.0f} ttl", "all hosts were up: median", "slowest")  # fmt: skip
_Rows = Sequence[dict[str, Any]]


def rows_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Each schedule that was run."""
    return [row for path in paths if path.stat().st_size for row in json.loads(path.read_text())["each"]]


def line(name: str, rows: _Rows, refused: int | None = None) -> str:
    """Some schedules as a row of a table. `refused`: without need; None: all of theirs."""
    healed = sorted(row["healed"] for row in rows if row["healed"])
    by_rule = "–"
    if refused is None:
        refused = sum(sum(row["refused"].values()) for row in rows)
        by_rule = str(sum(row.get("in incidents", 0) for row in rows))
    faults = sum((Counter(row["faults"]) for row in rows), Counter[str]())
    said = [len(rows), sum(row["released"] for row in rows), sum(row["bound"] for row in rows)]
    said += [", ".join(f"{count} {kind}" for kind, count in faults.items()) or 0, refused, by_rule]
    said += [*_spread(healed), sum(one > SOON for one in healed), *_spread(row["starting"] for row in rows)]
    return f"| {name} | {' | '.join(map(str, said))} |"


def _spread(lives: Iterable[float]) -> tuple[str, str]:
    """The median and the most of some lives of a lease."""
    found = sorted(lives)
    return (f"{found[len(found) // 2]:.1f} ttl", f"{found[-1]:.1f} ttl") if found else ("–", "–")


def table(rows: _Rows) -> str:
    """The tables."""
    heads = (f"| {{}} | {' | '.join(_COLUMNS)} |", f"|---|{'--:|' * len(_COLUMNS)}")
    lines = [heads[0].format("what went wrong"), heads[1]]
    names = Counter(name for row in rows for name in row["doings"]) | Counter(
        name for row in rows for name in row["refused"]
    )
    for name in sorted(names):
        with_it = [row for row in rows if name in row["doings"]]
        times = sum(row["doings"][name] for row in with_it)
        refused = sum(row["refused"].get(name, 0) for row in rows)
        lines.append(line(f"{name}, {times} times" if times else name, with_it or (), refused))
    lines += [line("**all**", rows), "", heads[0].format("round trip"), heads[1]]
    for trip in sorted({row["round trip"] for row in rows}):
        lines.append(line(f"{trip * 1e3:.0f} ms", [row for row in rows if row["round trip"] == trip]))
    for mode in sorted({row["unordered"] for row in rows}):
        lines.append(line(mode, [row for row in rows if row["unordered"] == mode]))
    lines.append(line("PgBouncer", [row for row in rows if row["pooled"]]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table(rows_of(map(Path, sys.argv[1:])))}\n")
