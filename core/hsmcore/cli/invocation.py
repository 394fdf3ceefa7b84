"""What every command has: its options as data, and the forms in which it reads its configuration and prints a result.

A command is a function whose first argument is an `Invocation`; `command` gives it --config, --state and --json. An
option is `Annotated[type, "-o PATH: What it is for.", {"min": 1}]`: its names beside that of the parameter and its
metavar, if it has any, its help, and more words for typer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hsmcore.cli.output import FAILED, BadUsage, View, note, print_fields, print_json
from hsmcore.cli.settings import (
    ConfigOption,
    GatewayOption,
    JsonOption,
    StateOption,
    TlsOption,
    checked_reason,
    load_configs,
)
from hsmcore.errors import BadArgument

if TYPE_CHECKING:
    from hsmcore.cli.opened import Absent
    from hsmcore.config import Config
    from hsmcore.gateway import Client
    from hsmcore.manager.key_manager import KeyManager
    from hsmcore.members.control import ControlPlane
    from hsmcore.state import Store

T = TypeVar("T")
S = TypeVar("S")

_NAME: Final = Annotated[str | None, "NAME: Which one, if the configuration has several."]
_COMMON: Final = {
    "config": ConfigOption,
    "state": StateOption,
    "key_manager": _NAME,
    "as_json": JsonOption,
    "gateway": GatewayOption,
    "tls": TlsOption,
}
_ABSENT: Final = {"config": None, "state": None, "key_manager": None, "as_json": False, "gateway": None, "tls": None}
_OPTION: Final = re.compile(r"(?:((?:-[-\w/]+ ?)*)([^a-z ]*): )?(.*)")
"""Names, metavar and help."""


@dataclass(frozen=True)
class Invocation:
    """The common options of one command line."""

    config_path: Path | None
    state: Path | None
    key_manager: str | None
    as_json: bool
    gateway: str | None = None
    """The address of a gateway that is asked instead of a token."""
    tls: str | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration of the key manager that the options name, loaded when it is first used. What of it is to be
        warned of is doctor's to say, and a start's. Raises ConfigurationError."""
        return self.loaded()

    def loaded(self) -> Config:
        """As `config`, loaded now."""
        from hsmcore.config.several import choose

        configs = load_configs(self.config_path, self.state, warns=False)
        return choose(configs, self.key_manager, "Name it with --key-manager.")

    @cached_property
    def configs(self) -> dict[str, Config]:
        """As `config`, of every key manager, by name."""
        return load_configs(self.config_path, self.state)

    def recorded(self, command: str, **fields: object) -> AbstractContextManager[dict[str, object]]:
        """As `hsmcore.cli.recorded.recorded`, in the log of the configuration."""
        from hsmcore.cli.recorded import recorded

        return recorded(self.config.key_manager, command, **fields)

    def on_state(self, work: Callable[[Store], Awaitable[T]], *, shows: bool = False, absent: Absent = "refused") -> T:
        """Run `work` with the state store, as `hsmcore.cli.opened.in_state`."""
        import asyncio

        from hsmcore.cli.opened import in_state

        return asyncio.run(in_state(self.config, work, shows=shows, absent=absent))

    def on_token(self, work: Callable[[ControlPlane], Awaitable[T]]) -> T:
        """Run `work` with the first member's token, logged in."""
        import asyncio

        from hsmcore.cli.opened import with_token

        return asyncio.run(with_token(self.config, work))

    def on_manager(self, work: Callable[[KeyManager], Awaitable[T]]) -> T:
        """Run `work` with the key manager, open."""
        from hsmcore.manager.key_managers import create_key_manager

        return _opened(create_key_manager(self.config, rotates=False), work)

    def on_signer(self, work: Callable[[KeyManager | Client], Awaitable[T]]) -> T:
        """Run `work` with what signs: the key manager, or with --gateway a client of that gateway, which reads no
        configuration."""
        if self.gateway is None:
            if self.tls is not None:
                raise BadUsage("--tls goes with --gateway")
            return self.on_manager(work)
        return self.on_gateway(self.gateway, work)

    def on_gateway(self, address: str, work: Callable[[Client], Awaitable[T]]) -> T:
        """Run `work` with a client of a gateway."""
        from hsmcore.gateway import Client, ClientTls

        try:
            tls = None if self.tls is None else ClientTls.parse(self.tls)
            client = Client(address, self.key_manager or "default", tls=tls, program="hsmcore")
        except BadArgument as error:
            raise BadUsage(f"--gateway: {error.args[0]}") from None
        return _opened(client, work)

    def confirm(self, warning: str, question: str, *, yes: bool, required: bool = False) -> None:
        """Print a warning, and at a terminal ask before the command goes on, unless `yes`. Raises typer.Exit, and
        BadUsage without a terminal, if the answer is `required`."""
        self.note(warning)
        if yes:
            return
        if self.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            if required:
                raise BadUsage(f"{warning}; give --yes if that is meant")
            return
        if not typer.confirm(question, err=True):
            note("hsmcore: nothing was done")
            raise typer.Exit(FAILED)

    def show(self, result: Any, view: str | View | None = None, *, ok: bool = True) -> None:
        """Print a result: as JSON; else as the text, or by the view; else one field a line. Raises typer.Exit unless
        `ok`."""
        if self.as_json:
            print_json(result)
        elif isinstance(view, str):
            print(view)
        else:
            (view or print_fields)(result)
        if not ok:
            raise typer.Exit(FAILED)

    def note(self, text: str) -> None:
        """Print what comes next on standard error, unless the output is JSON."""
        if text and not self.as_json:
            note(f"  {text}")


def _opened(signer: AbstractAsyncContextManager[S], work: Callable[[S], Awaitable[T]]) -> T:
    import asyncio

    async def run() -> T:
        async with signer as opened:
            return await work(opened)

    return asyncio.run(run())


_TOKEN: Final = "config state key_manager as_json"
SIGNER: Final = f"{_TOKEN} gateway tls"
"""What a command takes that works with a gateway, too."""


def command(
    app: typer.Typer, short_help: str | None, name: str | None = None, takes: str = _TOKEN
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a function to `app` as a command, with the common options that it `takes` behind its
    own. Its name is the function's if it has no other."""
    taken = takes.split()
    shared = [Parameter(one, Parameter.KEYWORD_ONLY, default=_ABSENT[one], annotation=_COMMON[one]) for one in taken]

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            common: dict[str, Any] = {one: given.pop(one) if one in taken else _ABSENT[one] for one in _ABSENT}
            function(Invocation(*common.values()), **given)

        own = [*signature(function, eval_str=True).parameters.values()][1:]
        run.__signature__ = Signature([_option(one) for one in (*own, *shared)])  # type: ignore[attr-defined]  # typer reads it
        app.command(name, short_help=short_help)(run)
        return function

    return add


def _option(parameter: Parameter) -> Parameter:
    """Return a parameter as typer reads it."""
    text, more = (*getattr(parameter.annotation, "__metadata__", ()), {}, {})[:2]
    found = _OPTION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return parameter
    names = (found[1] or "").split()
    if not any(name.startswith("--") for name in names):
        names.insert(0, "--" + parameter.name.replace("_", "-"))
    if parameter.name == "reason":
        more = {"callback": checked_reason, **more}
    option = typer.Option(*names, metavar=found[2] or None, help=found[3], **more)
    return parameter.replace(annotation=Annotated[parameter.annotation.__origin__, option])
