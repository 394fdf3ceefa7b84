"""The commands that work on results: `bench compare`, `size`, `table` and `report`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from hsmcore.cli.output import FAILED, BadUsage, note, print_fields, print_json, print_table
from hsmcore_bench.harness.figures import duration, figures
from hsmcore_bench.suite import sizing
from hsmcore_bench.suite.compare import CONFIDENCE, Comparison, Line, compare
from hsmcore_bench.suite.readme import table, write
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import SHIPPED, latest_first, newest, read_json

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ResultsOption = Annotated[
    Path | None, typer.Option("--results", metavar="FILE", help="A result's JSON (default: the newest here).")
]
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s)")
_SECONDS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def add_to(app: typer.Typer) -> None:
    app.command("compare", short_help="Hold one run against another.")(compare_runs)
    app.command("size", short_help="How many sessions and members a rate needs.")(size_pool)
    app.command("table", short_help="Make the documents' tables from a result.")(make_table)
    app.command("report", short_help="Make the HTML report from a result.")(make_report)


def compare_runs(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="JSON of the one run.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="JSON of the other.")],
    everything: Annotated[bool, typer.Option("--all", help="Also the lines that show no difference.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a rate is lower.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what changed from one run to another, and only that: a verdict is given where the interval of the change does
    not contain 0, so that noise alone rarely makes one. Rates of different machines are not judged, ratios are.

    Example: hsmcore bench compare bench/results/2026-11-25.json bench-results/hsmcore-bench.json
    """
    found = compare(_read(before), _read(after))
    if as_json:
        lines = [asdict(line) | {"verdict": line.verdict} for line in found.lines]
        print_json(asdict(found) | {"confidence": CONFIDENCE, "lines": lines})
    else:
        _print_comparison(found, everything=everything)
    if check and any(line.call == "worse" and line.unit != "ns" for line in found.lines):
        raise typer.Exit(FAILED)


def _print_comparison(found: Comparison, *, everything: bool) -> None:
    for key, (one, other) in found.machine.items():
        print(f"other {key}: {one} → {other}; rates and times are not judged")
    for run in found.busy:
        print(f"{run}: the machine was not idle; rates and times are not judged")
    judged = [line for line in found.lines if line.call in ("better", "worse")]
    shown = found.lines if everything else judged
    if shown:
        print(f"{found.before} → {found.after}\n")
        header = ("name", "figure", "before", "after", f"change ({CONFIDENCE:.0%} interval)", "verdict")
        rows = [(s.contender, s.figure, _value(s, s.before), _value(s, s.after), _change(s), s.verdict) for s in shown]
        print_table(header, rows)
        print()
    others = len(found.lines) - len(judged)
    print(f"{others} of {len(found.lines)} figures: no difference that these runs could show")
    for names, which in ((found.only_before, "first"), (found.only_after, "second")):
        if names:
            print(f"only in the {which} run: {', '.join(names)}")


def _value(line: Line, value: float) -> str:
    return duration(value) if line.unit == "ns" else f"{figures(value)}{'' if line.unit == '×' else '/s'}"


def _change(line: Line) -> str:
    if line.low is None or line.high is None:
        return f"{line.change:+.1%}"
    return f"{line.change:+.1%} ({line.low:+.1%} to {line.high:+.1%})"


def size_pool(
    rate: Annotated[float, typer.Option(min=0.001, max=1e9, help="Signatures a second.")],
    p99: Annotated[str, typer.Option(metavar="TIME", help="99 % must be done in this time: 20ms, 500us, 1s.")],
    device: Annotated[
        str, typer.Option(help="Whose curve: token (SoftHSM, or the one that was measured), or a simulated device.")
    ] = "token",
    spare: Annotated[int, typer.Option(min=0, max=8, help="Members that may be gone.")] = 1,
    utilisation: Annotated[float, typer.Option(min=0.05, max=0.98, help="Of the sessions, at most.")] = 0.8,
    results: ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many sessions and members a rate needs, from curves that `hsmcore bench` measured, and what to expect.

    The model (docs/BENCHMARKS.md): requests come at random, wait for a free session, and take as long as was measured
    with as many sessions. Requests that come in bursts wait longer.

    Example: hsmcore bench size --rate 3000 --p99 20ms --device network-5ms
    """
    path, result, curves = _with_curve(device, results)
    seconds = _duration(p99)
    try:
        found = sizing.size(
            curves[device], rate, seconds, spare=spare, utilisation=utilisation, loop=sizing.loop_rate(result)
        )
    except sizing.NotPossibleError as error:
        if as_json:
            print_json({"possible": False, "reason": str(error), "rate": rate, "p99Target": seconds})
        note(f"hsmcore: {error}\n  next: ask for less, or choose another --device")
        raise typer.Exit(FAILED) from None
    if as_json:
        print_json(
            {
                "possible": True,
                **asdict(found),
                "rate": rate,
                "p99Target": seconds,
                "model": sizing.MODEL,
                "results": str(path),
            }
        )
        return
    members = f"{found.members}" + (f" ({found.spare} of them may be gone)" if found.spare else "")
    print_fields(
        {
            "device": f"{found.device}, measured {result.started[:10]} ({path})",
            "sessions per member": found.sessions,
            "members": members,
            "event loops": found.loops,
            "utilisation": f"{found.expected.utilisation:.0%}",
            "p50": duration(found.expected.p50 * 1e9),
            "p99": duration(found.expected.p99 * 1e9),
            **(
                {
                    f"utilisation, {spare} gone": f"{found.without_spare.utilisation:.0%}",
                    f"p99, {spare} gone": duration(found.without_spare.p99 * 1e9),
                }
                if spare
                else {}
            ),
            "model": sizing.MODEL,
        }
    )


def _with_curve(device: str, named: Path | None) -> tuple[Path, Result, dict[str, sizing.Curve]]:
    """The named result; without a name the latest that measured this device, or else what is shipped. Raises
    BadUsage."""
    try:
        found = latest_first() if named is None else [(named, read_json(named))]
    except ValueError as error:
        raise BadUsage(str(error)) from None
    if named is None:
        found.append((SHIPPED, read_json(SHIPPED)))
    known: set[str] = set()
    for path, result in found:
        curves = sizing.curves(result)
        if device in curves:
            return path, result, curves
        known |= curves.keys()
    has = ", ".join(sorted(known)) or "none"
    where = "no result here has such a" if named is None else f"{named} has no such"
    measure = "; measure with: hsmcore bench --only 'sizing-*'"
    raise BadUsage(f"--device {device}: {where} curve (there are: {has}{measure})")


def make_table(
    results: ResultsOption = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option(
            "--write",
            metavar="FILE",
            help="Bring this up to date: a document with markers, an .svg, or curves.json.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make tables and picture of the documents from a result that is kept, so that no figure is typed by hand: the
    newest that was made on an idle machine, unless --results names one.

    Example: hsmcore bench table --write README.md --write docs/RESULTS.md --write docs/results.svg
    """
    path, result = _result(results, idle=True)
    source = _from_here(path)
    try:
        changed = {document: write(document, result, source) for document in documents or ()}
    except ValueError as error:
        raise BadUsage(str(error)) from None
    made = table(result, source)
    if as_json:
        print_json({"results": str(path), "table": made, "changed": any(changed.values())})
    elif not changed:
        print(made.strip())
    for document, new in changed.items() if not as_json else ():
        print(f"{document}: {'written' if new else 'up to date'}, from {path}")


def make_report(
    results: ResultsOption = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("hsmcore-bench.html"),
    as_json: JsonOption = False,
) -> None:
    """Make the HTML report of a result: one file with its pictures, nothing from elsewhere.

    Example: hsmcore bench report --results bench-results/hsmcore-bench.json --out report.html
    """
    from hsmcore_bench.suite.html import page

    path, result = _result(results)
    try:
        out.write_text(page(result), encoding="utf-8")
    except OSError as error:
        raise BadUsage(f"--out {out}: {error.strerror}") from None
    if as_json:
        print_json({"results": str(path), "out": str(out)})
    else:
        print(f"written: {out}, from {path}")


def _from_here(path: Path) -> str:
    """What a document may say of a file: where it lies below this folder, else its name."""
    whole, here = path.resolve(), Path.cwd()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.name


def _result(path: Path | None, *, idle: bool = False) -> tuple[Path, Result]:
    try:
        return newest(idle=idle) if path is None else (path, read_json(path))
    except ValueError as error:
        raise BadUsage(str(error)) from None


def _read(path: Path) -> Result:
    return _result(path)[1]


def _duration(text: str) -> float:
    """Seconds. Raises BadUsage."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise BadUsage(f"--p99 {text}: expected a time with its unit, such as 20ms, 500us or 1s")
    return float(found[1]) * _SECONDS[found[2]]
