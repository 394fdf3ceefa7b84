"""The commands, and the report of their errors. A command imports its dependencies when it runs."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer

from hsmcore.base.extras import install
from hsmcore.base.log import configure, get_logger
from hsmcore.cli.invocation import SIGNER, command
from hsmcore.cli.output import (
    BAD_USAGE,
    FAILED,
    INTERRUPTED,
    BadUsage,
    StartFailed,
    note,
    report,
    report_system,
    report_usage,
)
from hsmcore.cli.streams import silence_broken
from hsmcore.errors import HsmError

# The base of typer's usage errors, which has no public name of its own.
_UsageError: Final[Any] = typer.BadParameter.__base__


class _Command(NamedTuple):
    """Where a command, or a group of them, is: only the one that runs is imported."""

    module: str
    short_help: str
    form: Literal["common", "signer", "json", "group"] = "common"
    """Whether it has all the common options, those and --gateway, --json alone, or its module's `app` is a group."""


_COMMANDS: Final = {
    "init": _Command("init", "Make a SoftHSM token, a key and a configuration.", "json"),
    "doctor": _Command("doctor", "Check every provider, step by step.", "signer"),
    "sign": _Command("signing", "Sign one message.", "signer"),
    "verify": _Command("signing", "Verify a signature in software.", "signer"),
    "serve": _Command("serve", "Show a key manager to Prometheus, supervisors and people."),
    "gateway": _Command("gateway", "Serve key managers to programs in other processes."),
    "demo": _Command("", "Run an example sequencer on Solana's own runtime."),
    "bench": _Command("", "Measure signing beside raw C and other libraries."),
    "load": _Command("", "Load a token at a given rate, with faults, and judge how it did."),
    "tune": _Command("", "Find how many sessions a device can use."),
    "metrics": _Command("metrics", "List metrics; print alert rules and dashboard; scrape.", "json"),
    "version": _Command("about", "Print versions.", "json"),
    "tokens": _Command("tokens", "List the tokens that the module shows."),
    "cluster": _Command("tokens", "Check a CloudHSM cluster with AWS."),
    "keys": _Command("keys", "List, make, deactivate and back up the token's keys.", "group"),
    "rotate": _Command("rotate", "Rotate the signing key, plan, approve, abort.", "group"),
    "backup": _Command("backup", "List, verify and restore backups of keys.", "group"),
    "batch": _Command("batch", "Make proofs of batched messages again.", "group"),
    "publish": _Command("publish", "Prove from the public log of positions, and verify.", "group"),
    "audit": _Command("audit", "Verify, prove and search the audit log.", "group"),
    "config": _Command("about", "Show what a configuration file may contain.", "group"),
    "failover": _Command("failover", "Look at the levels, drain members, force a level.", "group"),
    "fleet": _Command("fleet", "Look at the hosts of a fleet, move the epoch, hold, reconcile.", "group"),
    "notices": _Command("notices", "Try the targets of notices.", "group"),
    "emergency": _Command("emergency", "Look at the emergency budget, reset it, forbid its use.", "group"),
    "policy": _Command("policy", "Explain what may be signed; look at floors, raise them.", "group"),
    "state": _Command("state", "Back up, restore, reconcile the state store; look at its seal.", "group"),
}
"""One without a module is of the package hsmcore-bench, found by entry points: this package does not import that."""
# The extra of hsmcore that brings a package which may be missing.
_EXTRAS: Final = {
    "hsmcore_bench": "bench",
    "PyKCS11": "bench",
    "hdrh": "bench",
    "solders": "solana",
    "boto3": "aws",
    "psycopg": "fleet",
    "obstore": "backup",
    "starlette": "serve",
    "uvicorn": "serve",
}


def build(*, bench: str = "", only: str | None = None) -> typer.Typer:
    """Return the application. Import all commands, or `only` the one of that name, and of hsmcore-bench only `bench`:
    of the others the name and the line in the list are known without."""
    app = typer.Typer(
        name="hsmcore",
        help="Sign with hardware security modules, at the speed of the hardware.",
        epilog="Start with: hsmcore init, then: hsmcore doctor",
        pretty_exceptions_enable=False,  # a pretty one prints local variables, and one of them may hold a PIN
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_no_command)
    for name, found in _COMMANDS.items():
        if not found.module and name == bench:
            app.add_typer(_bench_command(name))
        elif not found.module or only not in (None, name):
            app.command(name, short_help=found.short_help)(_nothing)
        else:
            _add(app, name, found)
    return app


def _add(app: typer.Typer, name: str, found: _Command) -> None:
    module = import_module(f"hsmcore.cli.{found.module}")
    if found.form == "group":
        app.add_typer(module.app, name=name, help=found.short_help, no_args_is_help=True)
    elif found.form == "common":
        command(app, found.short_help)(getattr(module, name))
    elif found.form == "signer":
        command(app, found.short_help, takes=SIGNER)(getattr(module, name))
    else:
        command(app, found.short_help, takes="as_json")(getattr(module, name))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. An expected error is two lines, never a traceback; what the operating
    system refused is one, whichever command it met."""
    as_json = "--json" in arguments
    try:
        configure(json=as_json, level=os.environ.get("HSMCORE_LOG", "WARNING"))
    except ValueError as error:
        return report_usage(f"HSMCORE_LOG: {error}", "Correct the variable, or unset it.", as_json=as_json)
    try:
        code = _run(arguments, as_json=as_json)
        print(end="", flush=True)  # here, where errors are handled, and not when the interpreter ends
    except BrokenPipeError:  # the reader of the output has closed the pipe
        code = FAILED
    except OSError as error:
        get_logger().debug("the operating system refused", exc_info=error)
        code = report_system(error, as_json=as_json)
    silence_broken()
    return code


def _run(arguments: list[str], *, as_json: bool) -> int:
    if arguments in (["--version"], ["-V"]):  # typer's parser would import pydantic first
        _print_version()
        return 0
    name = next((argument for argument in (*arguments, *_words_to_complete()) if not argument.startswith("-")), "")
    built = None
    try:
        built = build(bench=name, only=name)
        result = built(arguments, prog_name="hsmcore", standalone_mode=False)
    except HsmError as error:
        return report(error, _see_help(built, arguments, name), as_json=as_json)
    except StartFailed as failed:
        return report(failed.error, _see_help(built, arguments, name), as_json=as_json, code=failed.code)
    except BadUsage as error:
        return report_usage(str(error), _see_help(built, arguments, name), as_json=as_json)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of a group alone; it has no public name either
            note(error.format_message())
            return BAD_USAGE
        where = error.ctx.command_path if error.ctx is not None else "hsmcore"
        problem = error.format_message().replace("Value error, ", "")  # pydantic's word for it
        return report_usage(problem, f"See `{where} --help`.", as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(package)
        if extra is None:
            raise
        hint = f"Install it with: {install(extra)}"
        return report_usage(f"{package} is not installed", hint, as_json=as_json)
    if result == INTERRUPTED:  # typer turns most interruptions into this result
        note("hsmcore: interrupted")
    return result if isinstance(result, int) else 0


def _see_help(built: typer.Typer | None, arguments: list[str], name: str) -> str:
    """Lead to the help of the command that the arguments name, groups first, as far as they name one; before that is
    known, of its name."""
    path = ["hsmcore"]
    if built is None:
        path.append(name)
    else:
        found: Any = typer.main.get_command(built)
        for word in arguments:
            found = getattr(found, "commands", {}).get(word)
            if found is None:
                break
            path.append(word)
    return f"See `{' '.join(path)} --help`."


def _words_to_complete() -> list[str]:
    """The words that a shell asks to complete: typer answers it from the environment."""
    return os.environ.get("_TYPER_COMPLETE_ARGS", os.environ.get("COMP_WORDS", "")).split()[1:]


def _no_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    if version:
        _print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _print_version() -> None:
    from hsmcore.base.version import __version__

    print("hsmcore", __version__)


def _bench_command(name: str) -> typer.Typer:
    """Return a command of hsmcore-bench. Raises ModuleNotFoundError if that package is not installed."""
    from importlib.metadata import entry_points

    for point in entry_points(group="hsmcore.commands", name=name):
        app: typer.Typer = point.load()
        return app
    raise ModuleNotFoundError(name="hsmcore_bench")


def _nothing() -> None:
    raise typer.Exit(BAD_USAGE)
