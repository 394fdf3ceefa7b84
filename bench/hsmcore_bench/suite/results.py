"""Results as files: JSON with every sample, small enough to keep, and where the kept ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson

from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import DISTURBED, median

KEPT: Final = Path("bench/results")


def to_json(result: Result) -> bytes:
    """One line for each contender and each one's samples, so that two files compare line by line."""
    lines = []
    for key, value in result.to_dict().items():
        if isinstance(value, dict) and value:
            inner = b",\n".join(b"    %b: %b" % (_dumps(name), _dumps(item)) for name, item in value.items())
            lines.append(b"  %b: {\n%b\n  }" % (_dumps(key), inner))
        elif isinstance(value, list) and value:
            inner = b",\n".join(b"    %b" % _dumps(item) for item in value)
            lines.append(b"  %b: [\n%b\n  ]" % (_dumps(key), inner))
        else:
            lines.append(b"  %b: %b" % (_dumps(key), _dumps(value)))
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def read_json(path: Path) -> Result:
    """Read what to_json wrote. Raises ValueError, which names the file, when it is something else."""
    try:
        data: dict[str, Any] = orjson.loads(path.read_bytes())
        return Result.from_dict(data)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no benchmark result: {error}") from error


def newest(folder: Path = KEPT, *, idle: bool = False) -> tuple[Path, Result]:
    """The latest of the kept results, or of those that were made on an idle machine. Raises ValueError when there is
    none."""
    found = [(path, read_json(path)) for path in sorted(folder.glob("*.json"))]
    found = [(path, result) for path, result in found if not idle or was_idle(result)]
    if not found:
        which = "no results from an idle machine" if idle else "no results"
        raise ValueError(f"{which} in {folder}: name a file with --results, or measure first (hsmcore bench)")
    return max(found, key=lambda pair: pair[1].started)


def was_idle(result: Result) -> bool:
    """Whether others left the machine alone during the median slice."""
    shares = [sample.others for sample in result.samples]
    return bool(shares) and median(shares) <= DISTURBED


def _dumps(value: object) -> bytes:
    return orjson.dumps(value)
