"""The report as one HTML file: no script, nothing from elsewhere, for light and dark screens and for paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from statistics import median

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration
from hsmcore_bench.suite import sizing
from hsmcore_bench.suite.formulas import USED
from hsmcore_bench.suite.model import Contender, Percentiles, Sample, Scenario, Verdict
from hsmcore_bench.suite.picture import Row, caption, colour, latencies, rates
from hsmcore_bench.suite.report import (
    SURE,
    bound,
    disturbance,
    headline,
    precise,
    ranged,
    reached,
    recovery_rows,
    resolution,
    sure,
    switch_rows,
    titled,
    verdict_of,
)
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import spread, usable

X_NAMES = {
    "in_flight": "in flight",
    "sessions": "sessions",
    "batch": "messages in a batch",
    "message_bytes": "bytes of a message",
    "members": "members",
    "per_second": "requests a second",
}
CURVE_COLOURS = {"ours": "c0", "others": "c1", "raw": "c4", "software": "c3"}
PART_NAMES = {"loop": "event loop", "ring": "ring", "hsm": "HSM", "wake": "wake-up"}


def page(result: Result) -> str:
    """The whole document."""
    titles = [(f"s-{s.name}", s.title) for s in result.scenarios]
    titles += [("kills", "Kills under load")] * bool(result.recovery)
    titles += [("primary", "Failures of the primary")] * bool(result.switches)
    titles.append(("conditions", "Conditions"))
    links = "".join(f'<a href="#{name}">{escape(title[:1].upper() + title[1:])}</a> ' for name, title in titles)
    body = [
        "<h1>hsmcore benchmark</h1>",
        f'<p class="lead">{escape(verdict_of(result))}</p>',
        f'<p class="soft">{escape(headline(result))}.</p>',
        *_warnings(result),
        *_targets(result.targets),
        f'<p class="soft">{escape(resolution(result))}</p>',
        f"<nav>{links}</nav>",
    ]
    for scenario in result.scenarios:
        body += _scenario(result, scenario)
    if result.recovery:
        body += ['<h2 id="kills">Kills under load</h2>', table(*recovery_rows(result))]
    if result.switches:
        body += ['<h2 id="primary">Failures of the primary</h2>', table(*switch_rows(result))]
    body += _conditions(result)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>hsmcore benchmark, {escape(result.started[:10])}</title><style>{svg.STYLE.read_text()}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _warnings(result: Result) -> Iterator[str]:
    for what, reasons in (("skipped", result.skipped), ("failed", result.failed)):
        for name, reason in reasons.items():
            yield f'<p class="warn"><b>{what} {escape(name)}</b>: {escape(reason)}</p>'


def _targets(targets: Sequence[Verdict]) -> Iterator[str]:
    if not targets:
        return
    missed = [verdict for call in ("missed", "undecided") for verdict in targets if verdict.call == call]
    rest = [verdict for verdict in targets if verdict.call not in ("missed", "undecided")]
    yield "<h2>Targets</h2>"
    if missed:
        yield from _judged(missed)
    if rest:
        yield f"<details{' open' if not missed else ''}><summary>{len(rest)} more</summary>"
        yield from _judged(rest)
        yield "</details>"


def _judged(targets: Sequence[Verdict]) -> Iterator[str]:
    """The verdict first: on a small screen the rest of a row may be beside it."""
    yield "<div class=wide><table><thead><tr><th>verdict</th><th>target</th><th>bound</th><th>reached</th>"
    yield f"<th>{SURE}</th></tr></thead><tbody>"
    for v in targets:
        kind = {"met": "yes", "missed": "no"}.get(v.call, "soft")
        what = escape(v.what.replace("`", ""))
        cells = "".join(f"<td>{cell}</td>" for cell in (what, bound(v), reached(v), sure(v)))
        yield f'<tr><td class="{kind}">{v.call}</td>{cells}</tr>'
    yield "</tbody></table></div>"


def _scenario(result: Result, scenario: Scenario) -> Iterator[str]:
    summaries = {summary.contender: summary for summary in result.summaries}
    rows = [(c, summaries[c.name]) for c in result.contenders if c.scenario == scenario.name and c.name in summaries]
    yield f'<h2 id="s-{scenario.name}">{escape(scenario.title)}</h2><p class="soft">{escape(scenario.about)}</p>'
    if not rows:
        yield "<p>Nothing was measured.</p>"
        return
    drawers: dict[str, Callable[[Result, Scenario, list[Row]], Iterator[str]]] = {
        "curve": _curves,
        "parts": _parts,
        "open": _open,
        "latency": _latency,
    }
    yield from drawers.get(scenario.chart, _bars)(result, scenario, rows)
    yield _figures(rows)


def _bars(result: Result, _scenario: Scenario, all_rows: list[Row]) -> Iterator[str]:
    rows = [row for row in all_rows if row[1].rate.median]
    if not rows:
        yield from _used(result, [contender for contender, _ in all_rows])
        return
    said = f"{caption(rows)}; the line goes from the lowest round to the highest."
    yield rates(rows).figure(said[0].upper() + said[1:])


def _used(result: Result, contenders: Sequence[Contender]) -> Iterator[str]:
    """What those that sign nothing take of a processor."""
    drawn = []
    for contender in contenders:
        taken = spread([100.0 * used for s in result.samples if s.contender == contender.name and (used := USED.of(s))])
        if taken is not None:
            text = f"{ranged(taken)} %"
            drawn.append(svg.Bar(contender.title, taken.median, taken.low, taken.high, text, colour(contender)))
    if drawn:
        yield svg.bars(drawn).figure("Share of a processor; the line goes from the lowest round to the highest.")


def _latency(_result: Result, _scenario: Scenario, rows: list[Row]) -> Iterator[str]:
    yield latencies(rows).figure("Median latency; the line goes to the 99.9th percentile.")


def _curves(_result: Result, scenario: Scenario, rows: list[Row]) -> Iterator[str]:
    x = scenario.x or "in_flight"
    speeds: dict[str, list[tuple[float, float]]] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    for contender, summary in rows:
        at = float(getattr(contender, x) or 0)
        speeds.setdefault(contender.series, []).append((at, summary.rate.median))
        for name, value in ((contender.series, summary.p50_ns), (f"{contender.series}{svg.DASHED}", summary.p99_ns)):
            if value is not None:
                times.setdefault(name, []).append((at, value))
    colours = {c.series: CURVE_COLOURS[colour(c)] for c, _ in rows}
    if len(set(colours.values())) < len(colours):
        colours = {}
    name = X_NAMES[x]
    high = max(rate for own in speeds.values() for _, rate in own)
    low = min(rate for own in speeds.values() for _, rate in own)
    what, log_y = f"Signatures per second against {name}.", high > 30 * low
    yield svg.lines(speeds, name, "signatures per second", svg.plain, log_y=log_y, colours=colours).figure(what)
    if times:
        yield svg.lines(times, name, "latency", svg.time_tick, log_y=True, colours=colours).figure(
            f"Latency against {name}."
        )


def _parts(result: Result, _scenario: Scenario, rows: list[Row]) -> Iterator[str]:
    drawn = []
    for contender, _ in rows:
        parts = mean_parts(result.samples, contender.name)
        if parts:
            named = {PART_NAMES[name]: parts.get(name, 0.0) for name in PART_NAMES}
            drawn.append(svg.Stack(contender.title, named, duration(sum(parts.values()))))
    if drawn:
        yield svg.stacks(drawn).figure("Parts of one signature's mean latency; the whole is at the right.")
        lines = [[s.label, *(duration(value) for value in s.parts.values()), s.note] for s in drawn]
        yield table(["", *PART_NAMES.values(), "together"], lines)


def mean_parts(samples: Sequence[Sample], contender: str) -> dict[str, float]:
    """Medians over the rounds of the means within each."""
    own = [s.parts_ns for s in samples if s.contender == contender and s.parts_ns is not None]
    return {name: median(parts.get(name, 0.0) for parts in own) for name in (own[0] if own else ())}


def _open(result: Result, _scenario: Scenario, rows: list[Row]) -> Iterator[str]:
    """Measured beside predicted."""
    lines, series = [], dict[str, list[tuple[float, float]]]()
    for contender, measured, found in predictions(result, [contender for contender, _ in rows]):
        cells = (
            [f"{found.utilisation:.0%}", *(duration(t * 1e9) for t in (found.p50, found.p99))] if found else [""] * 3
        )
        lines.append([contender.title, duration(measured.p50), duration(measured.p99), *cells])
        at = contender.per_second or 0.0
        for name, value in (("measured", measured.p50), ("measured, p99", measured.p99)):
            series.setdefault(name, []).append((at, value))
        if found:
            series.setdefault("predicted", []).append((at, found.p50 * 1e9))
            series.setdefault("predicted, p99", []).append((at, found.p99 * 1e9))
    if series:
        yield svg.lines(series, "requests a second", "latency", svg.time_tick).figure(
            "Latency against requests a second."
        )
    yield table(["", "p50", "p99", "utilisation", "predicted p50", "predicted p99"], lines)


def predictions(
    result: Result, contenders: Sequence[Contender]
) -> Iterator[tuple[Contender, Percentiles, sizing.Forecast | None]]:
    """What was measured of requests that come at random, and what the model says to it where there is a curve."""
    curve = sizing.curves(result).get("network-5ms")
    rounds = list(result.by_round().values())
    for contender in contenders:
        times = [r[contender.name].latency_ns for r in usable(rounds, {contender.name})]
        known = [t for t in times if t is not None]
        if not known or contender.per_second is None:
            continue
        middle = Percentiles(*(median(getattr(t, name) for t in known) for name in ("p50", "p99", "p999", "mean")))
        found = sizing.forecast(curve, contender.sessions, contender.per_second) if curve else None
        yield contender, middle, found


def _figures(rows: Sequence[Row]) -> str:
    """A row for each contender; columns without a value are left out."""
    columns = {"signatures/s": [ranged(summary.rate) if summary.rate.median else "" for _, summary in rows]}
    columns["× reference"] = [precise(summary.ratio) for _, summary in rows]
    columns["× ceiling"] = [precise(summary.of_ceiling) for _, summary in rows]
    times = {"p50": "p50_ns", "p99": "p99_ns", "p99.9": "p999_ns", "lag p99": "lag_p99_ns", "CPU": "cpu_ns"}
    columns |= {name: [duration(getattr(summary, field)) for _, summary in rows] for name, field in times.items()}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if not columns:
        return ""
    titles = [titled(contender) for contender, _ in rows]
    return table(["", *columns], list(zip(titles, *columns.values(), strict=True)))


def _conditions(result: Result) -> Iterator[str]:
    e = result.environment
    facts = {
        "processors": f"{e['processors']} × {e['processor']}",
        "memory": f"{e['memory_gib']} GiB" if "memory_gib" in e else "",
        "kernel": f"Linux {e['kernel']}",
        "Python": e["python"],
        "event loop": e.get("loop", ""),
        "module": e.get("module", ""),
        "libraries": ", ".join(f"{name} {version}" for name, version in e["versions"].items()),
        "load average before": ", ".join(map(str, e["load_average"])),
        "load average after": ", ".join(map(str, e["load_average_after"])),
        "other processes": disturbance(result),
        "taken by the hypervisor": f"{e['stolen_share']:.1%}" if "stolen_share" in e else "",
        "message": f"{result.message_bytes} bytes",
        "rounds": f"{result.rounds} of {result.slice_seconds:g} s",
    }
    yield '<h2 id="conditions">Conditions</h2>'
    yield table(["", ""], [[name, value] for name, value in facts.items() if value])
    yield (
        '<p class="soft">Contenders that are compared sign in turn, each alone, in an order that is shuffled for each '
        "round. A ratio is formed within a round; figures are medians over the rounds, with lowest and highest. "
        "Latency is that of a closed loop unless a scenario says otherwise: with N in flight on a device that makes R "
        "signatures a second, the mean is at least N ÷ R.</p>"
    )
