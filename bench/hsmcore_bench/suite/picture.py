"""The main table as a picture of its own: rates and latencies, a row per contender. The rest is in the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration
from hsmcore_bench.suite.model import RAW, Contender, Summary
from hsmcore_bench.suite.report import groups, headline, split
from hsmcore_bench.suite.result import Result

Row = tuple[Contender, Summary]
UNSIGNED = ("echo", "flush", "hand-over", "idle", "verify")  # sign nothing, so their rates are no signatures


def picture(result: Result, style: str) -> str:
    """An SVG document. Raises ValueError when nothing was measured."""
    charts = []
    for heading, found in split(result)[0] or groups(result):
        rows = [(contender, summary) for contender, summary in found if summary is not None]
        if rows:
            charts.append((f"{heading}: {caption(rows)}", rates(rows)))
            charts.append((f"{heading}: latency, p50 to p99.9", latencies(rows)))
    if not charts:
        raise ValueError("nothing was measured")
    return svg.document(charts, "hsmcore beside a raw C loop and its peers", headline(result), style)


def caption(rows: Sequence[Row]) -> str:
    return "rate relative to the reference of the same round" if relative(rows) else "signatures per second"


def relative(rows: Sequence[Row]) -> bool:
    return any(summary.ratio is not None for _, summary in rows)


def rates(rows: Sequence[Row], bounds: Mapping[str, float] = MappingProxyType({})) -> svg.Chart:
    """Relative to the reference where there is one, with the bound of a contender that is in `bounds`; else a point on
    a logarithmic axis."""
    drawn = []
    if relative(rows):
        rows = [row for row in rows if row[0].kind not in UNSIGNED]
    for contender, summary in rows:
        rate = summary.rate
        shown, text = rate, f"{rate.median:,.0f}/s"
        if relative(rows) and summary.ratio is not None:
            shown, text = summary.ratio, f"{summary.ratio.median:.2f} × · {text}"
        elif relative(rows):
            one = rate.median or 1.0
            shown = type(rate)(1.0, rate.low / one, rate.high / one)
        drawn.append(
            svg.Bar(
                contender.title,
                shown.median,
                shown.low,
                shown.high,
                text,
                colour(contender),
                bounds.get(contender.name),
            )
        )
    return svg.bars(drawn, mark=1.0 if relative(rows) else None, logarithmic=not relative(rows))


def latencies(rows: Sequence[Row]) -> svg.Chart:
    """The median, and a line to the 99.9th percentile."""
    drawn = []
    for contender, summary in rows:
        low, high = summary.p50_ns, summary.p999_ns
        if low is not None and high is not None:
            text = f"{duration(low)} to {duration(high)}"
            drawn.append(svg.Bar(contender.title, low, low, high, text, colour(contender)))
    return svg.bars(drawn, logarithmic=True, name=svg.time_tick)


def colour(contender: Contender) -> str:
    if contender.kind in RAW:
        return "raw"
    if contender.kind in ("pynacl", "cryptography"):
        return "software"
    return "others" if contender.kind.startswith(("pkcs11", "pykcs11")) else "ours"
