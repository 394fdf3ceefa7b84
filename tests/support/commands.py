"""The command line, run in the test's own process."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from hsmcore.cli.app import run as cli

Command = Callable[..., tuple[int, Any, str]]


@contextmanager
def commands(folder: Path, captured: Any, *words: str) -> Iterator[Command]:
    """Run commands that begin with `words`: exit code, what was printed (as JSON unless `plain`), standard error.
    `config`: a file in `folder`; `captured`: pytest's capfdbinary."""

    def command(*arguments: str, config: str = "config.json", plain: bool = False) -> tuple[int, Any, str]:
        code = cli([*words, *arguments, "--config", str(folder / config), *([] if plain else ["--json"])])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = captured.readouterr()
        return code, out.decode() if plain else json.loads(out or b"null"), err.decode()

    yield command
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()
