"""A reading as text: Prometheus' format 0.0.4 or OpenMetrics 1.0.

prometheus_client writes both, but takes ten times as long and holds the interpreter for that time, so no signature is
delivered. A test compares the two outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from hsmcore.metrics.catalog import METRICS
from hsmcore.metrics.reading import BOUNDS, Buckets, Reading, TimeSlice

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_LE: Final = tuple(f'le="{bound!r}"' for bound in BOUNDS)


def content_type(accept: str | None) -> str:
    """Return the content type for an Accept header."""
    for offer in (accept or "").lower().split(","):
        name, *parameters = [part.strip() for part in offer.split(";")]
        if name == "application/openmetrics-text" and not {"q=0", "q=0.0"} & set(parameters):
            return OPENMETRICS
    return TEXT


def encode(reading: Reading, kind: str, time_slice: TimeSlice) -> bytes:
    """Return the text, in the order of the catalogue."""
    strict, first = kind == OPENMETRICS, reading.labels
    lines: list[str] = []
    for metric in METRICS:
        samples = reading.samples.get(metric)
        if not samples:
            continue
        family = metric.name.removesuffix("_total") if strict and metric.kind == "counter" else metric.name
        lines.append(f"# HELP {family} {_escaped(metric.help)}\n# TYPE {family} {metric.kind}\n")
        if metric.kind == "histogram":
            for labels, value in samples:
                if isinstance(value, Buckets):
                    _histogram(lines, metric.name, first + metric.labels, labels, value)
                    time_slice()
            continue
        name, names = metric.name, first + metric.labels
        lines += [f"{name}{_braced(names, labels)} {value!r}\n" for labels, value in samples]
        time_slice()
    if strict:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _histogram(lines: list[str], name: str, names: tuple[str, ...], labels: tuple[str, ...], value: Buckets) -> None:
    start, braced = _start(name, names, labels), _braced(names, labels)
    lines += [f"{start}{le}}} {count}\n" for le, count in zip(_LE, value.counts, strict=True)]
    lines.append(f'{start}le="+Inf"}} {value.total}\n{name}_count{braced} {value.total}\n')
    lines.append(f"{name}_sum{braced} {value.seconds!r}\n")


@lru_cache(maxsize=4096)
def _start(name: str, names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return f"{name}_bucket{{{_pairs(names, values)}{',' if names else ''}"


@lru_cache(maxsize=16384)
def _braced(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return f"{{{_pairs(names, values)}}}" if names else ""


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
