"""The `serve` command."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hsmcore.cli.output import note, print_json
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config

if TYPE_CHECKING:
    from hsmcore.config import Config, Monitoring
    from hsmcore.serve import Site


def serve(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="host:port, [address]:port or unix:/path (default: monitoring.listen, else 127.0.0.1:9464).",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Open no key manager: show those that run, by their state store.")
    ] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open the key manager of the configuration and show how it stands: /metrics for Prometheus, /healthz and /readyz
    for the supervisor, and a console for people at /. Ends with Ctrl-C or SIGTERM.

    A sequencer that runs a key manager itself attaches the same server to it: `hsmcore.serve.attached(km)`. With
    --watch one that does not is shown from outside, if it has failover: its levels, history, rotation and audit log,
    without rates and metrics; what an operator asks for reaches it, too.

    Beyond this machine, monitoring.tls and monitoring.viewerToken are required in the configuration. Whoever has the
    token of monitoring.operatorToken may drain members, force a level and rotate; all of that is recorded.
    Keys are rotated by the key manager of an application, never by this command.

    Examples:

      hsmcore serve

      hsmcore serve --listen 127.0.0.1:0 --json

      hsmcore serve --watch --config sequencer.json

      hsmcore serve --listen unix:/run/hsmcore/console.sock --config sequencer.json
    """
    from hsmcore.serve.attach import settings_of

    loaded = load_config(config, state)
    settings = settings_of(loaded, listen)
    asyncio.run((_watch if watch else _serve)(loaded, settings, as_json=as_json))


async def _serve(config: Config, settings: Monitoring, *, as_json: bool) -> None:
    from hsmcore.audit.lock import FolderInUse
    from hsmcore.errors import AuditUnavailable
    from hsmcore.manager.key_manager import create_key_manager
    from hsmcore.serve import attached

    manager = create_key_manager(config, rotates=False)
    try:
        await manager.initialize()
    except FolderInUse as error:
        hint = "It is a key manager that runs: show that one with `hsmcore serve --watch`, or attach the server to it."
        raise AuditUnavailable(str(error.args[0]), hint=hint) from None
    try:
        async with attached(manager, settings=settings) as site:
            await _until_told(site, config, as_json=as_json)
    finally:
        await manager.close()


async def _watch(config: Config, settings: Monitoring, *, as_json: bool) -> None:
    from hsmcore.serve.attach import watching

    async with watching(config, settings) as site:
        await _until_told(site, config, as_json=as_json)


async def _until_told(site: Site, config: Config, *, as_json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if as_json:
        print_json({"address": site.address, "name": config.key_manager.name})
    else:
        print(site.address)
        note("  the console is at /, then /metrics, /healthz and /readyz; Ctrl-C ends it")
    sys.stdout.flush()  # whoever started this waits for the line
    await stop.wait()
