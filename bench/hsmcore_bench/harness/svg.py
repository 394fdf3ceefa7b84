"""Pictures as SVG, for the HTML report and on their own. Colours are classes: the style decides what they are on dark
screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType

from hsmcore_bench.harness.figures import duration

STYLE = Path(__file__).with_name("report.css")
WIDTH = 1080
LABEL = 495  # for the names on the left
ROW = 26
COLOURS = 6  # classes c0 .. c5
DASHED = ", p99"
Name = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    text: str
    colour: str  # class
    bound: float | None = None  # what its value should reach


@dataclass(frozen=True, slots=True)
class Stack:
    label: str
    parts: Mapping[str, float]  # nanoseconds
    note: str


@dataclass(frozen=True, slots=True)
class Chart:
    height: float
    inside: str

    def figure(self, caption: str) -> str:
        """For a page."""
        return (
            f'<figure><svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-label="{escape(caption)}">'
            f"{self.inside}</svg><figcaption>{escape(caption)}</figcaption></figure>"
        )


def document(charts: Sequence[tuple[str, Chart]], title: str, about: str, style: str) -> str:
    """Charts under their headings, as an SVG document."""
    y, parts = 40.0, [_text(10, 22, title)]
    for heading, chart in charts:
        parts.append(_text(10, y + 10, heading))
        parts.append(f'<g transform="translate(0 {y + 18:.0f})">{chart.inside}</g>')
        y += chart.height + 30
    notes = wrap(about, 150)
    parts += [_text(10, y + 8 + 16 * number, line, kind="small") for number, line in enumerate(notes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 16 * len(notes):.0f}" role="img">'
        f"<title>{escape(title)}</title><style>{style}</style>"
        f'<rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


Series = Mapping[str, Sequence[tuple[float, float]]]  # name -> points


def bars(
    rows: Sequence[Bar], *, mark: float | None = None, logarithmic: bool = False, name: Name | None = None
) -> Chart:
    """Horizontal bars with a line from lowest to highest, and one across at the bound; a dashed line at `mark`. Points
    on a logarithmic axis."""
    left, right = LABEL, WIDTH - 150
    scale = _Scale([v for r in rows for v in (r.low, r.high)] + ([mark] if mark else []), left, right, logarithmic)
    height = ROW * len(rows) + 40
    parts = list(scale.grid(8, height - 34, name or plain))
    for place, row in enumerate(rows):
        y = 10 + ROW * place
        parts.append(_text(left - 10, y + 15, row.label, "end"))
        if logarithmic:
            parts.append(f'<circle class="{row.colour}" cx="{scale(row.value):.1f}" cy="{y + 11}" r="5"/>')
        else:
            wide = max(0.0, scale(row.value) - left)
            parts.append(f'<rect class="{row.colour}" x="{left}" y="{y + 3}" width="{wide:.1f}" height="{ROW - 10}"/>')
        a, b = scale(row.low), scale(row.high)
        parts.append(f'<path class="ink" d="M{a:.1f} {y + 11}H{b:.1f}M{a:.1f} {y + 8}v6M{b:.1f} {y + 8}v6"/>')
        if row.bound is not None:
            parts.append(f'<path class="ink" stroke-width="3" d="M{scale(row.bound):.1f} {y}v{ROW - 4}"/>')
        parts.append(_text(max(b, scale(row.value), scale(row.bound or 0.0)) + 8, y + 15, row.text))
    if mark is not None:
        parts.append(f'<path class="mark" d="M{scale(mark):.1f} 6V{height - 34}"/>')
    return Chart(height, "".join(parts))


def lines(
    series: Series,
    x_name: str,
    y_name: str,
    y_tick: Name,
    *,
    log_x: bool = True,
    log_y: bool = False,
    dots: bool = True,
    colours: Mapping[str, str] = MappingProxyType({}),
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Lines over a logarithmic x axis, or with `log_x` False over an even one; those of 99th percentiles are dashed, in
    the colour of their medians. A name that is not in `colours` gets the next one. `marks`: what happened at a place of
    the x axis."""
    left, right, top, bottom = 84, WIDTH - 250, 26, 250
    points = [point for own in series.values() for point in own]
    xs = _Scale([x for x, _ in points], left, right, log_x)
    ys = _Scale([y for _, y in points], bottom, top, log_y)
    parts = [*ys.rows(left, right, y_tick)]
    parts += xs.columns(top, bottom, [x for x, _ in points]) if log_x else xs.grid(top, bottom, plain)
    parts += [_text(left, 14, y_name), _text(right, bottom + 34, x_name, "end")]
    for x, what in marks:
        if left <= xs(x) <= right:
            title = f"<title>{escape(what)}</title>"
            parts.append(f'<path class="mark" d="M{xs(x):.1f} {top}V{bottom}">{title}</path>')
    kin = list(dict.fromkeys(name.removesuffix(DASHED) for name in series))
    for number, (name, own) in enumerate(series.items()):
        base = name.removesuffix(DASHED)
        colour = colours.get(base, f"c{kin.index(base) % COLOURS}")
        dashed = " dashed" if name.endswith(DASHED) else ""
        path = "L".join(f"{xs(x):.1f} {ys(y):.1f}" for x, y in own)
        parts.append(f'<path class="{colour} line{dashed}" d="M{path}"/>')
        if dots:
            parts += [f'<circle class="{colour}" cx="{xs(x):.1f}" cy="{ys(y):.1f}" r="3.5"/>' for x, y in own]
        y = top + 6 + 22 * number
        parts.append(f'<path class="{colour} line{dashed}" d="M{right + 16} {y}h24"/>')
        parts.append(_text(right + 46, y + 4, name))
    return Chart(bottom + 42, "".join(parts))


def stacks(rows: Sequence[Stack]) -> Chart:
    """What a whole is made of: each row's parts as shares of it, its length written beside it."""
    left, right = LABEL, WIDTH - 150
    names = list(dict.fromkeys(name for row in rows for name in row.parts))
    parts = []
    for number, name in enumerate(names):
        x = left + 140 * number
        parts += [f'<rect class="c{number}" x="{x}" y="4" width="14" height="10"/>', _text(x + 20, 14, name)]
    for place, row in enumerate(rows):
        y, edge = 26 + ROW * place, float(left)
        whole = sum(row.parts.values()) or 1.0
        parts.append(_text(left - 10, y + 15, row.label, "end"))
        for number, name in enumerate(names):
            wide = (right - left) * row.parts.get(name, 0.0) / whole
            title = f"<title>{escape(name)}: {duration(row.parts.get(name, 0.0))}</title>"
            place_of = f'x="{edge:.1f}" y="{y + 2}" width="{wide:.1f}" height="{ROW - 8}"'
            parts.append(f'<rect class="c{number}" {place_of}>{title}</rect>')
            edge += wide
        parts.append(_text(right + 8, y + 15, row.note))
    return Chart(30 + ROW * len(rows), "".join(parts))


def plain(value: float) -> str:
    return f"{value:,g}" if value < 1e6 else f"{value / 1e6:g} M"


def time_tick(ns: float) -> str:
    unit, size = next(((u, s) for u, s in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)) if ns >= s), ("ns", 1.0))
    return f"{ns / size:g} {unit}" if ns else "0"


class _Scale:
    """From values to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float, logarithmic: bool) -> None:
        self._start, self._end, self._log = start, end, logarithmic
        self._low: int = 0
        self._high: int = 1
        self._step = 1.0
        if logarithmic:
            known = [value for value in values if value > 0] or [1.0]
            self._low, self._high = floor(log10(min(known)) + 1e-9), ceil(log10(max(known)) - 1e-9)
            self._high = max(self._high, self._low + 1)
        else:
            self._step = _step(max(values, default=1.0) or 1.0)
            self._high = ceil((max(values, default=1.0) or 1.0) / self._step)

    def __call__(self, value: float) -> float:
        place = log10(max(value, 1e-300)) if self._log else value / self._step
        place = min(max(place, self._low), self._high)
        return self._start + (self._end - self._start) * (place - self._low) / (self._high - self._low)

    def ticks(self) -> list[float]:
        return [10.0**k if self._log else k * self._step for k in range(self._low, self._high + 1)]

    def grid(self, top: float, bottom: float, name: Name) -> Iterator[str]:
        for tick in self.ticks():
            yield f'<path class="grid" d="M{self(tick):.1f} {top}V{bottom}"/>'
            yield _text(self(tick), bottom + 16, name(tick), "middle", "small")

    def rows(self, left: float, right: float, name: Name) -> Iterator[str]:
        for tick in self.ticks():
            yield f'<path class="grid" d="M{left} {self(tick):.1f}H{right}"/>'
            yield _text(left - 8, self(tick) + 4, name(tick), "end", "small")

    def columns(self, top: float, bottom: float, values: Sequence[float]) -> Iterator[str]:
        """At the values themselves, as many as have room."""
        last = -1e9
        for value in sorted(set(values)):
            if self(value) - last < 40:
                continue
            last = self(value)
            yield f'<path class="grid" d="M{last:.1f} {top}V{bottom}"/>'
            yield _text(last, bottom + 16, f"{value:,g}", "middle", "small")


def _step(most: float) -> float:
    """A round distance of ticks, so that there are four to ten of them."""
    size = 10.0 ** floor(log10(most))
    return next(size * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if most / (size * part) <= 8)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
