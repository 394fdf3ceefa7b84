"""The options that every command has, and the forms in which a command prints its result.

A command is a function whose first argument is an `Invocation`; `command` gives it --config, --state and --json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from hsmcore.cli.output import FAILED, note, print_fields, print_json, print_table
from hsmcore.cli.settings import ConfigOption, JsonOption, KeyManagerOption, StateOption, load_configs

if TYPE_CHECKING:
    from hsmcore.config import Config

_COMMON: Final = [
    Parameter("config_path", Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption),
    Parameter("state", Parameter.KEYWORD_ONLY, default=None, annotation=StateOption),
    Parameter("key_manager", Parameter.KEYWORD_ONLY, default=None, annotation=KeyManagerOption),
    Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption),
]


@dataclass(frozen=True)
class Invocation:
    """The common options of one command line."""

    config_path: Path | None
    state: Path | None
    key_manager: str | None
    as_json: bool

    @cached_property
    def config(self) -> Config:
        """The configuration of the key manager that the options name, loaded when it is first used. Raises
        ConfigurationError."""
        return self.loaded()

    def loaded(self, *, warns: bool = True) -> Config:
        """As `config`, loaded now. `warns`: as of `load_each`."""
        from hsmcore.config.several import choose

        configs = load_configs(self.config_path, self.state, warns=warns)
        return choose(configs, self.key_manager, "Name it with --key-manager.")

    @cached_property
    def configs(self) -> dict[str, Config]:
        """As `config`, of every key manager, by name."""
        return load_configs(self.config_path, self.state)

    def confirm(self, warning: str, question: str, *, yes: bool) -> None:
        """Print a warning, and at a terminal ask before the command goes on, unless `yes`. Raises typer.Exit."""
        if warning and not self.as_json:
            note(f"  {warning}")
        if yes or self.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return
        if not typer.confirm(question, err=True):
            note("hsmcore: nothing was done")
            raise typer.Exit(FAILED)

    def show(self, result: Mapping[str, Any], text: str | None = None) -> None:
        """Print a result: as JSON, else as `text`, else one field a line."""
        if self.as_json:
            print_json(result)
        elif text is not None:
            print(text)
        else:
            print_fields(result)

    def show_table(self, result: Any, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a result: as JSON, else as a table."""
        if self.as_json:
            print_json(result)
        else:
            print_table(header, rows)


def command(
    app: typer.Typer, short_help: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a function to `app` as a command with the common options behind its own. Its name
    is the function's if it has no other."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(
            *, config_path: Path | None, state: Path | None, key_manager: str | None, as_json: bool, **own: Any
        ) -> None:
            function(Invocation(config_path, state, key_manager, as_json), **own)

        own = [*signature(function, eval_str=True).parameters.values()][1:]
        run.__signature__ = Signature([*own, *_COMMON])  # type: ignore[attr-defined]  # typer reads it
        app.command(name, short_help=short_help)(run)
        return function

    return add
