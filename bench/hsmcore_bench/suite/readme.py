"""What documents say of a kept result: the README's rows, the whole table of docs/RESULTS.md, the picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration
from hsmcore_bench.suite import excerpts
from hsmcore_bench.suite.model import Verdict
from hsmcore_bench.suite.picture import caption, rates
from hsmcore_bench.suite.report import bound, counted, disturbance, headline, markdown, reached
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import shipped, to_json, was_idle

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"
ROWS_BEGIN: Final = "<!-- bench-rows:begin -->"
ROWS_END: Final = "<!-- bench-rows:end -->"
ROWS: Final = {
    "device-5ms-raw": "**a network device, 5 ms a signature:** raw C loop, 128 threads",
    "device-5ms-ours-256": "hsmcore, bare, 256 in flight",
    "stack-256": "hsmcore, all safeties, 256 in flight",
    "device-5ms-executor": "python-pkcs11, asyncio executor, 256 in flight",
    "raw": "**SoftHSM, on this processor:** raw C loop",
    "sign-64": "hsmcore, bare, 64 in flight",
    "stack-64": "hsmcore, all safeties, 64 in flight",
    "pkcs11-executor": "python-pkcs11, asyncio executor, 64 in flight",
    "failover-noop-256": "**a module that does nothing:** failover, 256 in flight",
    "policy-noop": "policy",
    "audit-noop-fsync": "audit log, each record on disk",
    "stack-noop-256": "all safeties",
}
"""What the README's table shows, in this order, and what it calls each."""
WORST: Final = 3
"""As many missed targets the README names."""
PICTURED: Final = ("raw", "sign-64", "sign-256", "many-256", "pkcs11-executor", "pkcs11-shared", "pykcs11")


def table(result: Result, source: str) -> str:
    """The main tables, the targets, the excerpts, and the file that they come from."""
    blocks = [markdown(result, short=True).rstrip("\n"), *excerpts.blocks(result), _origin(source)]
    return f"\n{_warning(result)}" + "\n\n".join(blocks) + "\n\n"


def rows(result: Result, source: str) -> str:
    """The rows that decide, how many targets were missed, the worst of them, and the file that they come from. The
    picture beside them has the excerpts."""
    lines = ["| | signatures/s | rate | processor time added | p50 | p99 |", "|---|--:|--:|--:|--:|--:|"]
    for contender, summary in excerpts.measured(result, tuple(ROWS)):
        beside = "raw C" if "raw" in (contender.reference or "").split("-") else "without"
        ratio = "" if summary.ratio is None else f"{summary.ratio.median:.2f} × {beside}"
        more = excerpts.added_by(result, contender) if beside == "without" else None
        cells = [f"{summary.rate.median:,.0f}", ratio, "" if more is None else f"{more:.1f} µs"]
        cells += [duration(summary.p50_ns), duration(summary.p99_ns)]
        lines.append(f"| {ROWS[contender.name]} | {' | '.join(cells)} |")
    blocks = ["\n".join(lines), _misses(result.targets), _origin(source)]
    return f"\n{_warning(result)}" + "\n\n".join(blocks) + "\n\n"


def _misses(targets: Sequence[Verdict]) -> str:
    missed = sorted((named for named in _named(targets) if named[1].call == "missed"), key=_distance, reverse=True)
    said = f"{counted(targets)} ([each with its reason](docs/RESULTS.md))"
    if not missed:
        return f"{said}."
    worst = [f"{what} ({reached(verdict)}, target {bound(verdict)})" for what, verdict in missed[:WORST]]
    return f"{said}; furthest from their bounds: {'; '.join(worst)}."


def _distance(named: tuple[str, Verdict]) -> float:
    """How many times worse than its bound a target was reached."""
    value, limit = named[1].reached or 0.0, named[1].bound or 0.0
    worse, better = (limit, value) if named[1].at_least else (value, limit)
    return worse / better if better else math.inf


def _named(targets: Sequence[Verdict]) -> Iterator[tuple[str, Verdict]]:
    """What each is about, also where the table says "the same" as above."""
    subject = ""
    for verdict in targets:
        if verdict.what.startswith("the same"):
            yield f"{subject}: {verdict.what.removeprefix('the same').lstrip(', ')}", verdict
        else:
            subject = verdict.what
            yield subject, verdict


def chart(result: Result) -> str:
    """Rates beside a raw C loop, as an SVG document. Raises ValueError when nothing was measured."""
    summaries = {summary.contender: summary for summary in result.summaries}
    chosen = [(c, summaries[c.name]) for c in result.contenders if c.name in PICTURED and c.name in summaries]
    if not chosen:
        raise ValueError("nothing was measured")
    title = "hsmcore beside a raw C loop and its peers"
    charts = [(caption(chosen), rates(chosen)), *excerpts.charts(result)]
    return svg.document(charts, title, headline(result), svg.STYLE.read_text(encoding="utf-8"))


def placed(text: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with `made` between the markers. Raises ValueError when it does not have both, once each."""
    place = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    if text.count(begin) != 1 or text.count(end) != 1 or place.search(text) is None:
        raise ValueError(f"needs a line {begin} and, after it, a line {end}, once each")
    return place.sub(lambda _: made, text)


def updated(document: Path, result: Result, source: str) -> str:
    """What the file should contain: the picture if it is an SVG, the shipped curves if it is JSON, else rows or table
    between its markers. Raises ValueError, which names the file."""
    try:
        if document.suffix == ".svg":
            return chart(result)
        if document.suffix == ".json":
            return to_json(shipped(result)).decode()
        text = document.read_text(encoding="utf-8")
        if ROWS_BEGIN in text:
            return placed(text, rows(result, source), ROWS_BEGIN, ROWS_END)
        return placed(text, table(result, source))
    except (OSError, ValueError) as error:
        raise ValueError(f"{document}: {error}") from None


def write(document: Path, result: Result, source: str) -> bool:
    """Bring the file up to date; whether that changed it. Raises ValueError."""
    after = updated(document, result, source)
    if document.is_file() and document.read_text(encoding="utf-8") == after:
        return False
    document.write_text(after, encoding="utf-8")
    return True


def _warning(result: Result) -> str:
    return "" if was_idle(result) else f"**Not made on an idle machine: {disturbance(result)}. Believe no figure.**\n\n"


def _origin(source: str) -> str:
    return f"From `{source}` by `hsmcore bench table`."
