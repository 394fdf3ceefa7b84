"""Which configuration a command works with, and the options that all commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config, Pkcs11Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="HSMCORE_CONFIG", metavar="PATH", help="Configuration file (default: the state folder's)."
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="State folder (default: hsmcore under $XDG_STATE_HOME)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result, and errors, as JSON.")]


def locate(config: Path | None, state: Path | None) -> Path:
    """The configuration file to use: --config, else the state folder's."""
    from hsmcore.control.softhsm import StateFolder, default_state

    if state is not None:  # the more specific one: HSMCORE_CONFIG may be set for all commands
        return StateFolder(state).config
    return config if config is not None else StateFolder(default_state()).config


def load_config(config: Path | None, state: Path | None) -> Config:
    """Load the configuration that the options name, and lead SoftHSM to the token beside it.

    This sets SOFTHSM2_CONF for the command's own process where a softhsm2.conf lies beside the configuration; it wins
    over a variable that was set before, because the configuration names a token that is only there.
    """
    from hsmcore.config import load

    path = locate(config, state)
    if not path.is_file():
        raise ConfigurationError.of(
            [ConfigFault("$", "there is no such file")],
            source=f"configuration {path}",
            hint="Make a SoftHSM token and a configuration with `hsmcore init`, or name a file with --config.",
        )
    beside = path.resolve().parent / "softhsm2.conf"
    if beside.is_file():
        os.environ["SOFTHSM2_CONF"] = str(beside)
    return load(path)


def token_settings(config: Config) -> Pkcs11Settings:
    """The primary member's settings; an error if it isn't reached through a PKCS#11 module."""
    from hsmcore.config import Pkcs11Settings

    provider = config.key_manager.own
    if not isinstance(provider.config, Pkcs11Settings):
        problem = f"keys of a provider of type {provider.type} are not managed by this command"
        raise ConfigurationError.of([ConfigFault(provider.where, problem)], hint="Use the provider's own tools.")
    config.require_complete()
    return provider.config
