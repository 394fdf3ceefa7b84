"""A load test over time, as one HTML file: rates, latencies and failures of each second, then the figures of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from hsmcore_bench.harness import svg
from hsmcore_bench.load.report import text_of

MOST_POINTS: Final = 600
"""Of a line: a soak of hours has no more, each the worst of its seconds."""


def page(result: Mapping[str, Any]) -> str:
    """The whole document."""
    title = f"hsmcore load, {result['target']['name']}"
    charts = "".join(chart.figure(caption) for caption, chart in _charts(result["timeline"], result["faults"]["told"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{svg.STYLE.read_text()}</style></head><body><h1>{escape(title)}</h1>"
        f"{charts or '<p>It ended within its first second.</p>'}<h2>Figures</h2><pre>{escape(text_of(result))}</pre>"
        "</body></html>\n"
    )


def _charts(
    timeline: Sequence[Mapping[str, Any]], faults: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, svg.Chart]]:
    points = _thinned(timeline)
    marks = [(float(fault["at"]), str(fault["fault"])) for fault in faults if fault["modules"]]
    marks = marks[:: -(-len(marks) // MOST_POINTS) or 1]
    told = " A mark is an injected fault." if marks else ""
    if len(points) < 2:
        return
    for caption, unit, tick, names in (
        ("Requests a second.", "a second", svg.plain, {"rate": "signed", "failed": "failed"}),
        (
            "Latency from the planned start: median and 99th percentile.",
            "latency",
            svg.time_tick,
            {"p50": "latency", "p99": f"latency{svg.DASHED}"},
        ),
    ):
        series = {
            title: [(point["at"], float(point[name])) for point in points if point[name] is not None]
            for name, title in names.items()
        }
        series = {title: own for title, own in series.items() if own}
        if series:
            # Latencies are held against each other by orders of magnitude; rates, which may be 0, are not.
            logarithmic = tick is svg.time_tick
            chart = svg.lines(series, "seconds", unit, tick, log_x=False, log_y=logarithmic, dots=False, marks=marks)
            yield caption + told, chart


def _thinned(timeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    size = -(-len(timeline) // MOST_POINTS)
    groups = [timeline[begin : begin + size] for begin in range(0, len(timeline), size or 1)]
    return [
        {
            "at": group[-1]["at"],
            "rate": min(point["rate"] for point in group),
            "failed": max(point["failed"] for point in group),
            **{name: max((p[name] for p in group if p[name] is not None), default=None) for name in ("p50", "p99")},
        }
        for group in groups
    ]
