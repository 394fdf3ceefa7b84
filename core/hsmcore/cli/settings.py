"""The configuration of a command, and the options that name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmcore.base.log import MAX_REASON, is_reason
from hsmcore.cli.output import BadUsage
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config, Pkcs11Settings, Provider

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="HSMCORE_CONFIG", metavar="PATH", help="Configuration file (default: the state folder's)."
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="State folder (default: hsmcore under $XDG_STATE_HOME).")
]
GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="ADDRESS",
        help="Ask a running gateway, without the key: unix:/path, or tls:host:port; several with commas.",
    ),
]
TlsOption = Annotated[
    str | None,
    typer.Option("--tls", metavar="CERTIFICATE,KEY,AUTHORITIES", help="PEM files for --gateway tls:…"),
]
YesOption = Annotated[bool, "-y: Do not ask at a terminal."]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result, and errors, as JSON.")]


def checked_reason(reason: str) -> str:
    """Return a reason that was given, or "". Raises BadUsage."""
    if reason and not is_reason(reason):
        raise BadUsage(f"a reason has 1 to {MAX_REASON} printable characters")
    return reason


def _said(reason: str) -> str:
    if not reason.strip():
        raise BadUsage("it is done for a reason, which is recorded: --reason TEXT")
    return checked_reason(reason)


RequiredReason = Annotated[str, typer.Option("--reason", help="Why; required, and recorded.", callback=_said)]


def locate(config: Path | None, state: Path | None) -> Path:
    """Return the path of the configuration: that of --state, else --config, else of the default state folder."""
    from hsmcore.config.root import default_state
    from hsmcore.members.control.softhsm import StateFolder

    if state is not None:  # before --config, which HSMCORE_CONFIG may set for all commands
        return StateFolder(state).config
    return config if config is not None else StateFolder(default_state()).config


def load_config(config: Path | None, state: Path | None) -> Config:
    """As `load_configs`, for a command that works with the only key manager. Raises ConfigurationError."""
    from hsmcore.config.several import choose

    return choose(load_configs(config, state), None, "This command takes a configuration of one keyManager.")


def load_configs(config: Path | None, state: Path | None, *, warns: bool = True) -> dict[str, Config]:
    """Load the configuration that the options name; return that of each key manager. Raises ConfigurationError.

    A softhsm2.conf beside it is used, as by `create_key_manager`. `warns`: as of `load_each`.
    """
    from hsmcore.config import load_each
    from hsmcore.members.control.softhsm import use_token_beside

    path = locate(config, state)
    _require_file(path)
    use_token_beside(path)
    return load_each(path, warns=warns)


def _require_file(path: Path) -> None:
    """Raise ConfigurationError unless a file is there that this user may read."""
    problem, hint = "", "Make a SoftHSM token and a configuration with `hsmcore init`, or name a file with --config."
    try:
        with path.open("rb"):
            return
    except (FileNotFoundError, NotADirectoryError):
        problem = "there is no such file"
    except IsADirectoryError:
        problem, hint = "is a folder", f"Name the file in it, or give it as the state folder: --state {path}"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        hint = "Run the command as the user that owns the file, who may alone read it if `init` made it."
    raise ConfigurationError.of([ConfigFault("$", problem)], source=f"configuration {path}", hint=hint)


def misconfigured(where: str, problem: str, hint: str | None = None) -> ConfigurationError:
    """Return the error for a configuration that a command cannot work with."""
    return ConfigurationError.of([ConfigFault(where, problem)], hint=hint)


def token_settings(config: Config) -> Pkcs11Settings:
    """Return the first member's settings. Raises ConfigurationError if it has no PKCS#11 module, or is incomplete."""
    from hsmcore.config import Pkcs11Settings

    provider = config.key_manager.own
    if not isinstance(provider.config, Pkcs11Settings):
        problem = f"keys of a provider of type {provider.type} are not managed by this command"
        raise misconfigured(provider.where, problem, "Use the provider's own tools.")
    config.require_complete()
    return provider.config


def member_named(config: Config, name: str, *, pkcs11: bool = False) -> Provider:
    """Return the member of that name, which has a PKCS#11 module if `pkcs11`. Raises BadUsage."""
    from hsmcore.config import Pkcs11Settings

    members = {member.name: member for _, member in config.key_manager.members()}
    found = members.get(name)
    if found is None or (pkcs11 and not isinstance(found.config, Pkcs11Settings)):
        what = "PKCS#11 member" if pkcs11 else "member"
        raise BadUsage(f"there is no {what} {name!r}; the configuration has {', '.join(members)}")
    return found
