"""Rate and latency over sessions, with the knee marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration, figures
from hsmcore_bench.tune.sweep import Found


def picture(results: Mapping[str, Found]) -> str:
    """Return an SVG document of results by member."""
    charts = [chart for name, found in results.items() for chart in _charts(name, found)]
    about = " ".join(f"{name}: {sentence(found)}." for name, found in results.items())
    return svg.document(charts, "How many sessions", about, svg.STYLE.read_text())


def sentence(found: Found) -> str:
    """Say where the knee is, what it reaches, and what more sessions cost."""
    at, above = found.at_knee, found.above
    text = f"the knee is at {at.sessions} sessions: {figures(at.rate)}/s, p99 {duration(at.p99_ns)} in the module"
    if above is not None:
        text += f"; {above.sessions} sessions make {figures(above.rate)}/s, p99 {duration(above.p99_ns)}"
    return text


def _charts(name: str, found: Found) -> Iterator[tuple[str, svg.Chart]]:
    points, knee = found.points, float(found.knee)
    rates = [(float(p.sessions), p.rate) for p in points]
    lasted = {
        "in the module": [(float(p.sessions), float(p.p50_ns)) for p in points],
        f"in the module{svg.DASHED}": [(float(p.sessions), float(p.p99_ns)) for p in points],
    }
    times = [ns for own in lasted.values() for _, ns in own]
    mark = f"knee: {found.knee} sessions"
    colours = {"rate": "c0", "in the module": "c0", mark: "c1"}
    yield (
        f"{name}: signatures per second",
        svg.lines({"rate": rates, mark: [(knee, 0.0), (knee, found.best)]}, "sessions", "", svg.plain, colours=colours),
    )
    yield (
        f"{name}: time of a signature in the module, p50 and p99",
        svg.lines(
            lasted | {mark: [(knee, min(times)), (knee, max(times))]},
            "sessions",
            "",
            svg.time_tick,
            log_y=True,
            colours=colours,
        ),
    )
