"""A result for people: tables on the terminal, and as markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from hsmcore_bench.harness.figures import duration, figures
from hsmcore_bench.suite import failover, resilience
from hsmcore_bench.suite.model import Call, Contender, Spread, Summary, Verdict
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import was_idle
from hsmcore_bench.suite.stats import DISTURBED, between, median, ratios, spread, usable_breaks
from hsmcore_bench.suite.targets import CONFIDENCE

HEADLINES = ("sign-64", "pkcs11-executor")
SURE = f"{CONFIDENCE:.0%} between"  # the interval of a median
AGAIN = "-again"  # the end of the name of a contender that is its reference once more
COLOURS = {"met": "green", "missed": "red", "undecided": "yellow"}
Group = tuple[str, list[tuple[Contender, Summary | None]]]  # a heading, and the contenders under it


def plain(value: float) -> str:
    """A value of a target: thousandths, which matter of a ratio, and all before the point; a count as it is."""
    size = abs(value)
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{3 if size < 10.0 else 2 if size < 100.0 else 1 if size < 1000.0 else 0}f}"


def with_unit(text: str, unit: str) -> str:
    return f"{text}{unit}" if unit == "/s" else f"{text} {unit}".rstrip()


def ranged(value: Spread | None) -> str:
    """Median, lowest and highest: 0.98 (0.95-1.01)."""
    return "" if value is None else f"{figures(value.median)} ({figures(value.low)}–{figures(value.high)})"


def precise(value: Spread | None) -> str:
    """A ratio whose hundredths matter: 0.985 (0.981-0.990)."""
    return "" if value is None else f"{value.median:.3f} ({value.low:.3f}–{value.high:.3f})"


def groups(result: Result) -> Iterator[Group]:
    """The contenders under their headings, in order, each with its summary if it has one."""
    summaries = {summary.contender: summary for summary in result.summaries}
    headings = dict.fromkeys(contender.group for contender in result.contenders)
    for heading in headings:
        yield heading, [(c, summaries.get(c.name)) for c in result.contenders if c.group == heading]


def split(result: Result) -> tuple[list[Group], list[Group]]:
    """The groups that are held against raw C, and those of resilience, which have references of their own."""
    everything = list(groups(result))
    main = {scenario.title for scenario in result.scenarios if scenario.table == "main"}
    return [g for g in everything if g[0] in main], [g for g in everything if g[0] not in main]


def recovery_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each thing that was killed."""
    headings = ["killed under load", "times", "signing again after", "rate before", "rate after ÷ before", "lost"]
    rows = []
    for case in resilience.RECOVERY_CASES:
        own = usable_breaks(result.recovery, case.name)
        again = spread([b.again_seconds * 1e3 for b in own])
        before, kept = spread([b.rate_before for b in own]), spread([b.kept for b in own])
        if again is None or before is None:
            continue
        lost = sum(b.failed + b.wrong for b in result.recovery if b.case == case.name)
        rows.append(
            [case.title, str(len(own)), f"{ranged(again)} ms", f"{before.median:,.0f}/s", ranged(kept), f"{lost:,}"]
        )
    return headings, rows


def switch_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each thing that befell the primary."""
    headings = [
        f"primary, at {failover.REQUESTS_PER_SECOND:,} requests/s",
        *("times", "signing again after", "after it was known", "requests", "failed, lost, wrong, twice"),
        "slower than 2 × median",
    ]
    rows = []
    for case in failover.CASES:
        own = [s for s in result.switches if s.case == case.name]
        if not own:
            continue
        quiet = usable_breaks(own, case.name)  # requests are counted of all, times of the undisturbed ones
        again = spread([s.pause_seconds * 1e3 for s in quiet if s.pause_seconds is not None])
        known = spread([s.known_seconds * 1e3 for s in quiet if s.known_seconds is not None])
        sums = [sum(counts) for counts in zip(*((s.failed, s.lost, s.wrong, s.twice) for s in own), strict=True)]
        slow = spread([s.slow_percent for s in quiet])
        rows.append(
            [
                case.title,
                str(len(own)),
                f"{ranged(again)} ms" if again else "",
                f"{ranged(known)} ms" if known else "",
                f"{sum(s.asked for s in own):,}",
                ", ".join(f"{count:,}" for count in sums),
                f"{ranged(slow)} %",
            ]
        )
    return headings, rows


def headline(result: Result) -> str:
    """What the numbers depend on, in one sentence."""
    e = result.environment
    parts = [f"{name} {version}" for name, version in e["versions"].items()] + [e.get("module")]
    versions = ", ".join(filter(None, parts))
    return (
        f"{e['processors']} × {e['processor']}, Linux {e['kernel']}, {e['python']}, {versions}; "
        f"{result.message_bytes}-byte messages; medians of {result.rounds} interleaved slices of "
        f"{result.slice_seconds:g} s{_more(result)}; load average {e['load_average'][0]} before and "
        f"{e['load_average_after'][0]} after, {disturbance(result)}; {result.started}"
    )


def _more(result: Result) -> str:
    more = {sample.contender for sample in result.samples if sample.round >= result.rounds}
    return f", of more for {len(more)} contenders of targets that were undecided" if more else ""


def verdict_of(result: Result) -> str:
    """What a run has shown, in one line."""
    named = {contender.name: contender.title for contender in result.contenders}
    parts = [counted(result.targets)] if result.targets else []
    ours = [s for s in result.summaries if s.ratio is not None and s.contender in HEADLINES]
    parts += [f"{named[s.contender]}: {figures(s.ratio.median)} × raw C" for s in ours if s.ratio is not None]
    if result.interrupted:
        parts.append("interrupted, so of fewer rounds than were asked for")
    return "; ".join(parts or [f"{len(result.summaries)} contenders were measured, none of them with a target"]) + "."


def resolution(result: Result) -> str:
    """What the cases that were measured twice say of the machine; empty if there was none."""
    rounds = list(result.by_round().values())
    said = []
    for contender in result.contenders:
        if contender.name.endswith(AGAIN) and contender.reference is not None:
            ends = between(values := ratios(rounds, contender.name, contender.reference), CONFIDENCE)
            if ends is not None:
                said.append(f"{contender.reference} {plain(median(values))} ({plain(ends[0])}–{plain(ends[1])})")
    return (
        f"The same case twice, rate ÷ rate: {', '.join(said)}. Smaller differences cannot be seen here." if said else ""
    )


def disturbance(result: Result) -> str:
    """How much of the machine others used while the slices ran."""
    shares = spread([sample.others for sample in result.samples])
    if shares is None:
        return "nothing measured"
    disturbed = sum(sample.others > DISTURBED for sample in result.samples)
    return (
        f"others used {shares.median:.0%} of the machine in the median slice and more than {DISTURBED:.0%} in "
        f"{disturbed} of {len(result.samples)}"
    )


WIDE = 150  # columns that the full tables take


def print_result(result: Result, console: Console) -> None:
    """All tables, then the contenders that could not take part, and why."""
    wide = console.width >= WIDE
    main, resilient = split(result)
    if main:
        console.print(_table("Signatures per second, and how long each took", "× raw C", main, wide=wide))
    if resilient:
        console.print(_table(_title_of(resilient), "× reference", resilient, wide=wide))
    if result.recovery:
        console.print(_rows_table("Kills under load: median (lowest–highest)", *recovery_rows(result)))
    if result.switches:
        console.print(_rows_table("Failures of the primary: median (lowest–highest)", *switch_rows(result)))
    if result.targets:
        console.print(_targets_table(result.targets, wide=wide))
    for name, reason in result.skipped.items():
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)
    for name, reason in result.failed.items():
        console.print(f"failed {name}: {reason}", style="bold red", markup=False)
    if result.samples and not was_idle(result):
        console.print(f"The machine was not idle: {disturbance(result)}. Ratios suffer, rates more.", style="yellow")
    if said := resolution(result):
        console.print(said, markup=False)
    console.print(headline(result), style="dim", markup=False)
    console.print(verdict_of(result), style="bold", markup=False)


def _title_of(rows_of: list[Group]) -> str:
    """What the second table is about: the one scenario in it, or what there is in a whole run."""
    return rows_of[0][0] if len(rows_of) == 1 else "Isolation, devices, verify-after-sign, failover"


def _table(title: str, relative_to: str, rows_of: list[Group], *, wide: bool) -> Table:
    """Everything where there is room for it; else the names and medians."""
    table = Table(title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    if wide:
        table.add_column("what")
    for heading in ("per second", relative_to, "p50", "p99", "p99.9", *(("lag p99", "CPU") if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading, rows in rows_of:
        table.add_section()
        if wide:
            table.add_row("", f"[bold]{heading}[/]")
        for contender, summary in rows:
            what = [contender.title] if wide else []
            table.add_row(contender.name, *what, *_cells(summary, wide=wide))
    return table


def _rows_table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(summary: Summary | None, *, wide: bool) -> list[str]:
    if summary is None:
        return ["not measured" if wide else ""]
    latencies = [duration(summary.p50_ns), duration(summary.p99_ns), duration(summary.p999_ns)]
    if wide:
        more = [duration(summary.lag_p99_ns), duration(summary.cpu_ns)]
        return [ranged(summary.rate), ranged(summary.ratio), *latencies, *more]
    ratio = "" if summary.ratio is None else figures(summary.ratio.median)
    return [figures(summary.rate.median), ratio, *latencies]


def _targets_table(targets: list[Verdict], *, wide: bool) -> Table:
    table = Table(title="Targets", title_justify="left")
    table.add_column("what")
    for heading in ("target", "reached", *((SURE,) if wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in targets:
        colour = COLOURS.get(verdict.call, "dim")
        table.add_row(
            verdict.what.replace("`", ""),
            bound(verdict),
            reached(verdict),
            *([sure(verdict)] if wide else []),
            f"[{colour}]{verdict.call}[/]",
        )
    return table


def counted(targets: Sequence[Verdict]) -> str:
    """How many are what, of those with a bound: what stands where nobody counts them one by one."""
    calls = Counter(verdict.call for verdict in targets if verdict.bound is not None)
    others: tuple[Call, ...] = ("undecided", "not measured")
    rest = "".join(f", {calls[call]} {call}" for call in others if calls[call])
    return f"Of {calls.total()} targets {calls['met']} are met, {calls['missed']} missed{rest}"


def bound(verdict: Verdict) -> str:
    if verdict.bound is None:
        return ""
    return f"{'≥' if verdict.at_least else '≤'} {with_unit(f'{verdict.bound:,g}', verdict.unit)}"


def reached(verdict: Verdict) -> str:
    return "" if verdict.reached is None else with_unit(plain(verdict.reached), verdict.unit)


def sure(verdict: Verdict) -> str:
    """The interval of the median."""
    return "" if verdict.interval is None else "–".join(map(plain, verdict.interval))


def markdown(result: Result, *, short: bool = False) -> str:
    """Tables of the contenders with a summary; those with references of their own; kills under load; then the targets.
    A short one has the first and the last of these. Ends with what the numbers depend on."""
    main, resilient = split(result)
    rest = [
        _resilience_markdown(resilient),
        _rows_markdown(*recovery_rows(result)),
        _rows_markdown(*switch_rows(result)),
    ]
    parts = [_main_markdown(main), *([] if short else rest), _targets_markdown(result)]
    blocks = ["\n".join(part) for part in parts if part]
    return "\n\n".join([*blocks, headline(result) + "."]) + "\n"


def _main_markdown(rows_of: list[Group]) -> list[str]:
    lines = ["| | signatures/s | × raw C | p50 | p99 | p99.9 |", "|---|--:|--:|--:|--:|--:|"]
    for contender, summary in _under_headings(rows_of, lines, 5):
        cells = [f"{summary.rate.median:,.0f}", "" if summary.ratio is None else f"{summary.ratio.median:.2f}"]
        cells += [duration(summary.p50_ns), duration(summary.p99_ns), duration(summary.p999_ns)]
        lines.append(f"| {titled(contender)} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def titled(contender: Contender) -> str:
    """Its title, with what its latency is of unless that is one call."""
    return contender.title + ("" if contender.latency_of == "call" else f" (latency: {contender.latency_of})")


def _resilience_markdown(rows_of: list[Group]) -> list[str]:
    lines = [
        "| | signatures/s | × ceiling | × reference | p50 | p99 | p99.9 | loop lag p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for contender, summary in _under_headings(rows_of, lines, 7):
        ratios = [precise(summary.of_ceiling), precise(summary.ratio)]
        times = [summary.p50_ns, summary.p99_ns, summary.p999_ns, summary.lag_p99_ns]
        cells = [f"{summary.rate.median:,.0f}", *ratios, *map(duration, times)]
        lines.append(f"| {contender.title} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _under_headings(rows_of: list[Group], lines: list[str], cells: int) -> Iterator[tuple[Contender, Summary]]:
    """Those that were measured; a line for each heading goes into `lines` before its first one."""
    for heading, rows in rows_of:
        measured = [(contender, summary) for contender, summary in rows if summary is not None]
        if measured:
            lines.append(f"| **{heading}** |{' |' * cells}")
        yield from measured


def _rows_markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(headings)} |", f"|---|{'--:|' * (len(headings) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _targets_markdown(result: Result) -> list[str]:
    if not result.targets:
        return []
    lines = [f"| target | bound | reached | {SURE} | verdict |", "|---|--:|--:|--:|---|"]
    lines += [f"| {v.what} | {bound(v)} | {reached(v)} | {sure(v)} | {v.call} |" for v in result.targets]
    return [*lines, *(["", said] if (said := resolution(result)) else [])]
