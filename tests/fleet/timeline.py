"""What each host of a schedule waited for, from the end of its faults to the first block that was signed.

python -m tests.fleet.timeline FOLDER …    # those that `schedules --keep` has left
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fleet.history import lines_of
from tests.fleet.schedules import MENDED

BEFORE, BEHIND = 3.0, 1.0
"""Seconds that are shown before the end of the faults, and behind the first block."""


def shown(line: dict[str, Any]) -> str:
    """A line in a few words; lines of one text follow each other as one."""
    what = line["what"]
    sort = "message" if line.get("position") is None else "block"
    if what == "answer":
        return f"{sort}: {line['status']}: {line['why'][:110]}"
    if what == "state":
        works = f"; its store: {line['works']}" if line["works"] else ""
        return (
            f"{line['state']} {line['epoch']} of {line['holder']}, incident {line['incident']}, {line['reason']}{works}"
        )
    if "processor" in line:
        return f"{what}, {line['processor']:.2f} s of the processor"
    return f"{sort}: released" if what == "release" else f"{what} {line.get('why', '')}"[:150]


def timeline(folder: Path) -> Iterator[str]:
    """The lines, by time; those of one host that say the same follow each other as one."""
    mended = int((folder / MENDED).read_text())
    lines = [(line["at"], history.parent.name, line) for history in folder.glob("*/history")
             for line in lines_of(history)]  # fmt: skip
    signed = min((at for at, _, line in lines if line["what"] == "release" and line["position"] is not None
                  and line["asked"] > mended), default=1 << 62)  # fmt: skip
    last: dict[tuple[str, str], list[Any]] = {}
    rows: list[list[Any]] = []
    for at, host, line in sorted(lines, key=lambda found: found[:2]):
        if not mended - BEFORE * 1e9 < at < signed + BEHIND * 1e9 or line["what"] in ("event", "published"):
            continue
        said = shown(line)
        row = last.get((host, said[:60]))
        if row is None or at > row[1] + 5e8:
            row = last[host, said[:60]] = [at, at, 0, host, said]
            rows.append(row)
        row[1], row[2] = at, row[2] + 1
    for begun, ended, count, host, said in rows:
        times = f" to {(ended - mended) / 1e9:.2f}, {count} times" if count > 1 else ""
        yield f"{(begun - mended) / 1e9:7.2f} {host}{times}: {said}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.writelines(f"{line}\n" for line in (f"---- {name}", *timeline(Path(name))))
