"""The main table as a picture: rates on the left, latencies on the right, one row per contender. All else is in the
HTML report."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, log10
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from hsmcore_bench.suite.model import Contender, Summary
from hsmcore_bench.suite.report import duration, groups, split
from hsmcore_bench.suite.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with any colour vision, and in print.
RAW, OURS, OTHERS, SOFTWARE = "#666666", "#0072B2", "#E69F00", "#7A5AA6"
MARKS = (("#56B4E9", "o", "p50", 1.22), ("#CC79A7", "D", "p99", 1.44), ("#D55E00", "^", "p99.9", 1.66))
INK, GRID = "#222222", "#DDDDDD"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
NOTE_X = 1.70
ROW_INCHES, GROUP_INCHES, PAGE_INCHES = 0.4, 0.75, 1.5

Row = tuple[Contender, Summary]


def draw(result: Result, path: Path) -> None:
    """Write a PNG. Needs matplotlib (ImportError without it); ValueError when nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [
        (heading, [(contender, summary) for contender, summary in rows if summary is not None])
        for heading, rows in (split(result)[0] or groups(result))
    ]
    measured = [(heading, rows) for heading, rows in measured if rows]
    if not measured:
        raise ValueError("nothing was measured")
    heights = [len(rows) * ROW_INCHES + GROUP_INCHES for _, rows in measured]
    figure = Figure(figsize=(15, sum(heights) + PAGE_INCHES), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(measured), 2, squeeze=False, height_ratios=heights, width_ratios=(1.6, 1))
    for (left, right), (heading, rows) in zip(axes, measured, strict=True):
        _draw_rates(left, heading, rows)
        _draw_latencies(right, rows, header=left is axes[0][0])
    figure.suptitle("hsmcore beside a raw C loop and its peers", fontsize=15, fontweight="bold", color=INK)
    figure.supxlabel(_caption(result), fontsize=8.5, color="#555555")
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.2)


def _draw_rates(axes: Axes, heading: str, rows: list[Row]) -> None:
    """Bars of the rate relative to raw C where there is one, else signatures per second on a logarithmic axis."""
    relative = any(summary.ratio is not None for _, summary in rows)
    _prepare(axes, rows)
    axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", color=INK)
    rates = {contender.name: summary.rate.median for contender, summary in rows}
    for place, (contender, summary) in enumerate(rows):
        if relative:
            base = rates.get(contender.reference or contender.name, summary.rate.median)
            spread = summary.ratio
            middle, low, high = (
                (spread.median, spread.low, spread.high)
                if spread is not None
                else (1.0, summary.rate.low / base, summary.rate.high / base)
            )
        else:
            middle, low, high = summary.rate.median, summary.rate.low, summary.rate.high
        colour = _colour(contender)
        if relative:
            axes.barh(place, middle, height=0.66, color=colour)
        else:
            axes.plot([middle], [place], "o", markersize=9, color=colour)
        axes.plot([low, high], [place, place], color=INK, linewidth=1.3, marker="|", markersize=7)
        per_second = f"{summary.rate.median:,.0f}/s"
        text = f"{middle:.2f} × · {per_second}" if relative else per_second
        axes.annotate(
            text,
            (max(middle, high), place),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            bbox=PAPER,
        )
    if relative:
        axes.axvline(1.0, color=RAW, linewidth=1.0, linestyle="--", zorder=0)
        axes.set_xlim(0, 1.32 * max(1.0, *(s.ratio.high for _, s in rows if s.ratio is not None)))
        base_name = "its reference" if rows[0][0].reference != "raw" else "the raw C loop"
        axes.set_xlabel(f"rate, relative to {base_name} of the same round (line: lowest to highest)", fontsize=9)
    else:
        axes.set_xscale("log")
        _decades(axes, [s.rate.low for _, s in rows] + [3 * s.rate.high for _, s in rows], rate_tick)
        axes.set_xlabel("signatures per second (line: lowest to highest)", fontsize=9)


def _draw_latencies(axes: Axes, rows: list[Row], *, header: bool) -> None:
    """Three marks a row on a logarithmic axis, and the figures in columns beside it."""
    _prepare(axes, rows)
    axes.set_yticklabels([])
    axes.set_xscale("log")
    beside = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
    for place, (contender, summary) in enumerate(rows):
        values = (summary.p50_ns, summary.p99_ns, summary.p999_ns)
        known = [value for value in values if value is not None]
        if known:
            axes.plot([min(known), max(known)], [place, place], color="#AAAAAA", linewidth=2, zorder=1)
        for value, (colour, marker, label, x) in zip(values, MARKS, strict=True):
            if value is not None:
                axes.plot([value], [place], marker=marker, color=colour, markersize=7, linestyle="none", zorder=2)
            axes.text(x, place, duration(value), transform=beside, ha="right", va="center", fontsize=9, color=INK)
            if header and place == 0:
                axes.text(x, -0.95, label, transform=beside, ha="right", fontsize=10, fontweight="bold", color=colour)
                axes.plot(
                    [x - 0.06 - 0.024 * len(label)],
                    [-1.08],
                    marker,
                    transform=beside,
                    color=colour,
                    markersize=7,
                    clip_on=False,
                )
        if contender.latency_of != "call":
            axes.text(NOTE_X, place, contender.latency_of, transform=beside, va="center", fontsize=8, color="#555555")
    _decades(axes, [v for _, s in rows for v in (s.p50_ns, s.p999_ns) if v is not None], duration_tick)
    axes.set_xlabel("latency", fontsize=9)


def _decades(axes: Axes, values: list[float], name: Callable[[float], str]) -> None:
    """A logarithmic axis around the values, with one tick per decade and at least two of them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    if not values:
        return
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    axes.set_xlim(10.0**low / 1.15, 10.0**high * 1.15)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(low, high + 1)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def duration_tick(ns: float) -> str:
    """A power of ten nanoseconds: 10 µs."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def rate_tick(rate: float) -> str:
    """A power of ten per second: 10 k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.0f} {unit}"
    return f"{rate:.0f}"


def _prepare(axes: Axes, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), [fill(contender.title, 40) for contender, _ in rows], fontsize=10, color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _colour(contender: Contender) -> str:
    if contender.kind == "raw":
        return RAW
    if contender.kind in ("pynacl", "cryptography"):
        return SOFTWARE
    return OTHERS if contender.kind.startswith(("pkcs11", "pykcs11")) else OURS


def _caption(result: Result) -> str:
    e = result.environment
    return (
        f"{e['processors']} × {e['processor']} · {e['python']} · {e.get('module', 'no token')} · "
        f"{result.message_bytes}-byte messages · medians of {result.rounds} interleaved slices of "
        f"{result.slice_seconds:g} s · grey: raw C, blue: hsmcore, orange: other libraries, violet: no HSM · "
        f"{result.started[:10]}"
    )
