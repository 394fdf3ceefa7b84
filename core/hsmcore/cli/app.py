"""The commands, and the report of their errors. A command imports its dependencies when it runs."""

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
    fleet,
    gateway,
    init,
    keys,
    metrics,
    policy,
    replicate,
    rotate,
    serve,
    signing,
    state,
    tokens,
    version,
)
from hsmcore.cli.invocation import command
from hsmcore.cli.output import BAD_USAGE, FAILED, INTERRUPTED, BadUsage, note, report, report_usage
from hsmcore.errors import HsmError
from hsmcore.log import configure

# The base of typer's usage errors, which has no public name of its own.
_UsageError: Final[Any] = typer.BadParameter.__base__
# The commands of the package hsmcore-bench, found by entry points: this package does not import that one.
_BENCH_COMMANDS: Final = {
    "demo": "Run an example sequencer on Solana's own runtime.",
    "bench": "Measure signing beside raw C and other libraries.",
    "load": "Load a token at a given rate, with faults, and judge how it did.",
    "tune": "Find how many sessions a device can use.",
}
# The extra of hsmcore that brings a package which may be missing.
_EXTRAS: Final = {
    "hsmcore_bench": "bench",
    "PyKCS11": "bench",
    "hdrh": "bench",
    "solders": "solana",
    "boto3": "aws",
    "psycopg": "fleet",
    "obstore": "backup",
    "pyotp": "rotation",
    "starlette": "serve",
    "uvicorn": "serve",
}


def build(*, bench: str) -> typer.Typer:
    """Return the application. Of the package hsmcore-bench, whose commands load slowly, load only `bench`."""
    app = typer.Typer(
        name="hsmcore",
        help="Sign with hardware security modules, at the speed of the hardware.",
        epilog="Start with: hsmcore init, then: hsmcore demo",
        pretty_exceptions_enable=False,  # a pretty one prints local variables, and one of them may hold a PIN
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_no_command)
    app.command(short_help="Make a SoftHSM token, a key and a configuration.")(init.init)
    command(app, "Check every provider, step by step.")(doctor.doctor)
    command(app, "Sign one message.")(signing.sign)
    command(app, "Verify a signature in software.")(signing.verify)
    command(app, "Show a key manager to Prometheus, supervisors and people.")(serve.serve)
    command(app, "Serve key managers to programs in other processes.")(gateway.gateway)
    for name, short_help in _BENCH_COMMANDS.items():
        if name == bench:
            app.add_typer(_bench_command(name))
        else:
            app.command(name, short_help=short_help)(_nothing)
    app.command(short_help="List metrics; print alert rules and dashboard; scrape.")(metrics.metrics)
    app.command(short_help="Print versions.")(version.version)
    command(app, "List the tokens that the module shows.")(tokens.tokens)
    command(app, "Check a CloudHSM cluster with AWS.")(tokens.cluster)
    command(keys.app, "Put a key on another member, too.")(replicate.replicate)
    app.add_typer(keys.app)
    audit_running.add_to(audit.app)
    for group in (rotate, backup, audit, failover, fleet, emergency, policy, state):
        app.add_typer(group.app)
    return app


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. An expected error is two lines, never a traceback."""
    as_json = "--json" in arguments
    try:
        configure(json=as_json, level=os.environ.get("HSMCORE_LOG", "WARNING"))
    except ValueError as error:
        return report_usage(f"HSMCORE_LOG: {error}", "Correct the variable, or unset it.", as_json=as_json)
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    see_help = f"See `hsmcore {name} --help`."
    try:
        result = build(bench=name)(arguments, prog_name="hsmcore", standalone_mode=False)
        sys.stdout.flush()  # here, where BrokenPipeError is handled, and not when the interpreter ends
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
        # The reader of the output has closed the pipe; the rest of the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(package)
        if extra is None:
            raise
        hint = f"Install it with: pip install 'hsmcore[{extra}]'"
        return report_usage(f"{package} is not installed", hint, as_json=as_json)
    if result == INTERRUPTED:  # typer turns most interruptions into this result
        note("hsmcore: interrupted")
    return result if isinstance(result, int) else 0


def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _bench_command(name: str) -> typer.Typer:
    """Return a command of hsmcore-bench. Raises ModuleNotFoundError if that package is not installed."""
    for point in entry_points(group="hsmcore.commands", name=name):
        app: typer.Typer = point.load()
        return app
    raise ModuleNotFoundError(name="hsmcore_bench")


def _nothing() -> None:
    raise typer.Exit(BAD_USAGE)
