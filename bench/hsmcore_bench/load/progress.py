"""What a terminal shows while a load test runs; nothing where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hsmcore_bench.load.run import Tick, Watcher


@contextmanager
def watcher() -> Iterator[Watcher]:
    """Gives what run() tells about its progress. Draws only when it is told something."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _tick: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("starting", total=None, figures="")

        def show(tick: Tick) -> None:
            bar.update(
                task,
                description=tick.doing,
                completed=tick.done,
                total=tick.total,
                figures=_figures(tick),
                refresh=True,
            )

        yield show


def _figures(tick: Tick) -> str:
    if not tick.latest.count:
        return ""
    shown = [f"{tick.rate:,.0f}/s"]
    for percent in (50.0, 99.0, 99.9):
        value = tick.latest.percentile(percent)
        shown.append(f"p{percent:g} {0 if value is None else value / 1e6:.2f} ms")
    shown += [f"{tick.counts[name]:,} {name}" for name in ("failed", "lost") if tick.counts[name]]
    return "  ".join(shown)
