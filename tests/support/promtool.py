"""Alert rules judged by promtool on series that were really scraped."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.scrapes import Key, Scrape

import hsmcore.metrics.rules

ALERTS = Path(hsmcore.metrics.rules.__file__).with_name("alerts.yml")
TARGET = {"instance": "sequencer", "job": "hsmcore"}
STEP = 15
STEPS = 60
"""Each scrape stands for so many: long enough for every `for` and every range of the rules."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def check(folder: Path, series: list[dict[str, str]], expressions: Sequence[tuple[int, str, float | None]]) -> None:
    """Each expression, at its second, must have this one value; None: no result."""
    wanted = [
        {
            "expr": expression,
            "eval_time": f"{second}s",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for second, expression, value in expressions
    ]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": wanted}
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": f"{STEP}s", "tests": [test]}
    path = folder / "rules-test.json"
    path.write_text(json.dumps(document))  # JSON is YAML
    done = run("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def firing(alert: str = ".+") -> str:
    """How many instances of an alert fire."""
    return f'count(ALERTS{{alertstate="firing",alertname=~"{alert}"}})'


def as_series(scrapes: Sequence[Scrape]) -> list[dict[str, str]]:
    """One scrape after the other, each STEPS times."""
    keys: dict[Key, None] = {key: None for scrape in scrapes for key in scrape.samples}
    return [
        {
            "series": _named(name, {**dict(sorted(labels)), **TARGET}),
            "values": " ".join(_value(scrape.samples.get((name, labels))) for scrape in scrapes),
        }
        for name, labels in keys
    ]


def _named(name: str, labels: Mapping[str, Any]) -> str:
    return f"{name}{{{','.join(f'{label}={json.dumps(value)}' for label, value in labels.items())}}}"


def _value(found: float | None) -> str:
    return f"{'_' if found is None else f'{found:.9f}'}x{STEPS - 1}"


def middle(place: int) -> int:
    """A second in which scrape number `place` has stood for long enough, and the one before is forgotten."""
    return (place * STEPS + STEPS - 1) * STEP


def begun(place: int, seconds: int) -> int:
    """So many seconds after scrape number `place` first stood."""
    return place * STEPS * STEP + seconds
