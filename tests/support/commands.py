"""The command line, run in the test's own process."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import structlog
import typer
from typer.core import TyperGroup

from hsmcore.cli.app import build
from hsmcore.cli.app import run as cli

Command = Callable[..., tuple[int, Any, str]]
BENCH = ("bench", "demo", "load", "tune")
"""The commands of hsmcore-bench."""


@cache
def application(bench: str) -> Any:
    """The program's commands, with this one of hsmcore-bench."""
    return typer.main.get_command(build(bench=bench))


def tree() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be run, by its words: also a group that does something alone, as `bench` and `keys` do."""
    for bench in ("", *BENCH):
        found = application(bench)
        for name, command in found.commands.items():
            if name == bench or (not bench and name not in BENCH):
                yield from _below((name,), command)


def _below(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {})
    if not below or command.invoke_without_command or type(command) is not TyperGroup:  # a class of its own: `keys`
        yield words, command
    for name, one in below.items():
        yield from _below((*words, name), one)


@contextmanager
def commands(folder: Path, captured: Any, *words: str) -> Iterator[Command]:
    """Run commands that begin with `words`: exit code, what was printed (as JSON unless `plain`), standard error.
    `config`: a file in `folder`; `captured`: pytest's capfdbinary."""

    def command(*arguments: str, config: str | None = "config.json", plain: bool = False) -> tuple[int, Any, str]:
        named = () if config is None else ("--config", str(folder / config))
        code = cli([*words, *arguments, *named, *([] if plain else ["--json"])])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = captured.readouterr()
        return code, out.decode() if plain else json.loads(out or b"null"), err.decode()

    yield command
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()
