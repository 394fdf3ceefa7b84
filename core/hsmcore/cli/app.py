"""The commands, and what becomes of their errors. What a command needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import Any, Final

import typer

from hsmcore.cli import (
    audit,
    audit_running,
    backup,
    doctor,
    emergency,
    failover,
    init,
    keys,
    metrics,
    replicate,
    rotate,
    serve,
    signing,
    tokens,
    version,
)
from hsmcore.cli.output import BAD_USAGE, FAILED, INTERRUPTED, BadUsage, note, report, report_usage
from hsmcore.errors import HsmError
from hsmcore.log import configure

# typer has no public name for the root of its usage errors; this one it has, and it is one of them.
_UsageError: Final[Any] = typer.BadParameter.__base__
# The commands of the package hsmcore-bench, which this one does not import: they are found by entry points.
_BENCH_COMMANDS: Final = {
    "demo": "Run an example sequencer on Solana's own runtime.",
    "bench": "Measure signing beside raw C and other libraries.",
    "load": "Load a token at a given rate, with faults, and judge how it did.",
}


def build(*, command: str) -> typer.Typer:
    """The whole application. Of the package hsmcore-bench, only `command` is loaded: it is slower than all the rest."""
    app = typer.Typer(
        name="hsmcore",
        help="Sign with hardware security modules, at the speed of the hardware.",
        epilog="Start with: hsmcore init, then: hsmcore demo",
        pretty_exceptions_enable=False,  # the pretty ones print local variables, among which a PIN may be
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_no_command)
    app.command(short_help="Make a SoftHSM token, a key and a configuration.")(init.init)
    app.command(short_help="Check every provider, step by step.")(doctor.doctor)
    app.command(short_help="Sign one message.")(signing.sign)
    app.command(short_help="Verify a signature in software.")(signing.verify)
    app.command(short_help="Show a key manager to Prometheus, supervisors and people.")(serve.serve)
    for name, short_help in _BENCH_COMMANDS.items():
        if name == command:
            app.add_typer(_bench_command(name))
        else:
            app.command(name, short_help=short_help)(_nothing)
    app.command(short_help="List metrics; print alert rules and dashboard; scrape.")(metrics.metrics)
    app.command(short_help="Print versions.")(version.version)
    app.command(short_help="List the tokens that the module shows.")(tokens.tokens)
    app.command(short_help="Check a CloudHSM cluster with AWS.")(tokens.cluster)
    keys.app.command(short_help="Put a key on another member, too.")(replicate.replicate)
    app.add_typer(keys.app)
    audit_running.add_to(audit.app)
    app.add_typer(rotate.app)
    app.add_typer(backup.app)
    app.add_typer(audit.app)
    app.add_typer(failover.app)
    app.add_typer(emergency.app)
    return app


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code. An expected error is two lines, never a traceback."""
    as_json = "--json" in arguments
    try:
        configure(json=as_json, level=os.environ.get("HSMCORE_LOG", "WARNING"))
    except ValueError as error:
        return report_usage(f"HSMCORE_LOG: {error}", "Correct the variable, or unset it.", as_json=as_json)
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    see_help = f"See `hsmcore {command} --help`."
    try:
        result = build(command=command)(arguments, prog_name="hsmcore", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is dealt with, and not when the interpreter ends
    except HsmError as error:
        return report(error, see_help, as_json=as_json)
    except BadUsage as error:
        return report_usage(str(error), see_help, as_json=as_json)
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "hsmcore"
        return report_usage(error.format_message(), f"See `{where} --help`.", as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        extra = {
            "hsmcore_bench": "bench",
            "solders": "solana",
            "PyKCS11": "bench",
            "boto3": "aws",
            "obstore": "backup",
            "pyotp": "rotation",
            "starlette": "serve",
            "uvicorn": "serve",
            "hdrh": "bench",
        }.get(package)
        if extra is None:
            raise
        return report_usage(
            f"{package} is not installed", f"Install it with: pip install 'hsmcore[{extra}]'", as_json=as_json
        )
    if result == INTERRUPTED:  # typer turns most interruptions into this result
        note("hsmcore: interrupted")
    return result if isinstance(result, int) else 0


def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _bench_command(name: str) -> typer.Typer:
    """Raise ModuleNotFoundError when the package is not installed."""
    for point in entry_points(group="hsmcore.commands", name=name):
        app: typer.Typer = point.load()
        return app
    raise ModuleNotFoundError(name="hsmcore_bench")


def _nothing() -> None:
    raise typer.Exit(BAD_USAGE)
