#!/usr/bin/env python3
"""Build the last commit twice, in two folders, and compare: the same bytes, or exit code 1 and what differs.

    scripts/reproduce.py [--python python3.13 ...] [--against dist]

`--against`: a folder with the files of a release; they are compared as well, so that anybody with the same commit,
interpreters, compiler and libraries can check that a release comes from its source: see docs/RELEASING.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Build twice and compare."""
    parser = argparse.ArgumentParser(description="Build twice and compare.")
    parser.add_argument("--python", nargs="+", default=[])
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    line = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    # It lists what the releaser had installed, which no other machine can repeat: it is of the input.
    bill = (options.against or ROOT / "dist").resolve() / "hsmcore.cdx.json"
    with tempfile.TemporaryDirectory(prefix="hsmcore-reproduce-") as name:
        folders = [Path(name, "one"), Path(name, "a-longer-name", "two")]
        for folder in folders:
            line = [sys.executable, str(ROOT / "scripts" / "wheels.py"), "--commit", commit]
            line += ["--output", str(folder / "dist"), "--folder", str(folder / "build")]
            line += [*(["--python", *options.python] if options.python else [])]
            environment = {**os.environ, "HSMCORE_BILL": str(bill)}
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment)
        made, again = (folder / "dist" for folder in folders)
        differences = compare(made, again)
        if options.against is not None:
            differences += compare(made, options.against)
        count = len(list(made.iterdir()))
    print(*differences or [f"identical: {count} files"], sep="\n")
    return 1 if differences else 0


def compare(made: Path, other: Path) -> list[str]:
    """What differs between the files of a folder and those with the same names in another."""
    found = []
    for path in sorted(made.iterdir()):
        twin = other / path.name
        if not twin.is_file():
            found.append(f"{path.name}: not in {other}")
        elif path.read_bytes() != twin.read_bytes():
            found += [f"{path.name}: {each}" for each in members(path, twin)]
    return found


def members(path: Path, twin: Path) -> list[str]:
    """The names inside two wheels that differ; of other files that they do."""
    if path.suffix != ".whl":
        return ["differs"]
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(twin) as other:
        crcs = [{info.filename: info.CRC for info in archive.infolist()} for archive in (one, other)]
    return [name for name in sorted(crcs[0].keys() | crcs[1].keys()) if crcs[0].get(name) != crcs[1].get(name)] or [
        "the archive itself differs"
    ]


if __name__ == "__main__":
    sys.exit(main())
