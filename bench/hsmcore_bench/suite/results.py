"""Results as files: JSON with every sample, small enough to keep, and where the kept ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson

from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.sizing import LOOP
from hsmcore_bench.suite.stats import DISTURBED, median

KEPT: Final = Path("bench/results")
OWN: Final = Path("bench-results")
"""Where `hsmcore bench` writes."""
SHIPPED: Final = Path(__file__).with_name("curves.json")
"""Of the newest kept result what does not depend on the machine: simulated devices, for `hsmcore bench size`."""


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


def latest_first(*folders: Path) -> list[tuple[Path, Result]]:
    """The results in these folders, or the kept ones and what `hsmcore bench` wrote here. Raises ValueError for a file
    that is none."""
    found = [(path, read_json(path)) for folder in folders or (KEPT, OWN) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda pair: pair[1].started, reverse=True)


def newest(*folders: Path, idle: bool = False) -> tuple[Path, Result]:
    """The latest of these (see `latest_first`), or of those that were made on an idle machine. Raises ValueError when
    there is none."""
    for path, result in latest_first(*folders):
        if not idle or was_idle(result):
            return path, result
    which = "no results from an idle machine" if idle else "no results"
    where = " or ".join(map(str, folders or (KEPT, OWN)))
    raise ValueError(f"{which} in {where}: name a file with --results, or measure first (hsmcore bench)")


def shipped(result: Result) -> Result:
    """Its part that is shipped: curves of simulated devices, and what one event loop does with nothing else to do."""
    scenarios = [one for one in result.scenarios if one.sizes not in (None, "token")]
    names = {one.name for one in scenarios}
    own = [one for one in result.contenders if one.scenario in names or one.name == LOOP]
    chosen = {one.name for one in own}
    excerpt = Result(
        result.started, result.environment, result.rounds, result.slice_seconds, result.message_bytes, own, scenarios,
        samples=[sample for sample in result.samples if sample.contender in chosen],
    )  # fmt: skip
    excerpt.targets = []
    return excerpt


def was_idle(result: Result) -> bool:
    """Whether others left the machine alone during the median slice."""
    shares = [sample.others for sample in result.samples]
    return bool(shares) and median(shares) <= DISTURBED


def _dumps(value: object) -> bytes:
    return orjson.dumps(value)
