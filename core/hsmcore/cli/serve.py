"""The `serve` command."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import starting

if TYPE_CHECKING:
    from hsmcore.config import Monitoring
    from hsmcore.serve import Site


def serve(
    cli: Invocation,
    listen: Annotated[
        str | None,
        "ADDRESS: host:port, [address]:port or unix:/path (default: monitoring.listen, else 127.0.0.1:9464).",
    ] = None,
    watch: Annotated[bool, "Open no key manager: show those that run, by their state store."] = False,
) -> None:
    """Open the key manager of the configuration and show its state: /metrics for Prometheus, /healthz and /readyz for
    the supervisor, and a console at /. Ends with Ctrl-C, SIGTERM or SIGHUP.

    A sequencer that runs a key manager attaches the same server to it: `hsmcore.serve.attached(km)`. For one that does
    not, --watch shows levels, history, rotation and audit log from outside if it has failover, without rates and
    metrics; an operator's actions reach it, too.

    Beyond this machine, monitoring.tls and monitoring.viewerToken are required in the configuration. The token of
    monitoring.operatorToken allows its holder to drain members, force a level and rotate; each such action is recorded.
    Keys are rotated by the key manager of an application, never by this command.

    Examples:

      hsmcore serve

      hsmcore serve --listen 127.0.0.1:0 --json

      hsmcore serve --watch --config sequencer.json

      hsmcore serve --listen unix:/run/hsmcore/console.sock --config sequencer.json
    """
    from hsmcore.serve.attach import settings_of

    with starting():
        settings = settings_of(cli.config, listen)
    asyncio.run((_watch if watch else _serve)(cli, settings))


async def _serve(cli: Invocation, settings: Monitoring) -> None:
    from hsmcore.audit.lock import FolderInUse
    from hsmcore.errors import AuditUnavailable
    from hsmcore.manager.key_managers import create_key_manager
    from hsmcore.serve import attached

    manager = create_key_manager(cli.config, rotates=False)
    async with AsyncExitStack() as rest:
        with starting():
            try:
                await manager.initialize()
            except FolderInUse as error:
                hint = "A key manager runs: show that one with `hsmcore serve --watch`, or attach the server to it."
                raise AuditUnavailable(str(error.args[0]), hint=hint) from None
            rest.push_async_callback(manager.close)
            site = await rest.enter_async_context(attached(manager, settings=settings))
        await _until_told(cli, site)


async def _watch(cli: Invocation, settings: Monitoring) -> None:
    from hsmcore.serve.attach import watching

    async with AsyncExitStack() as rest:
        with starting():
            site = await rest.enter_async_context(watching(cli.config, settings))
        await _until_told(cli, site)


async def _until_told(cli: Invocation, site: Site) -> None:
    from hsmcore.base.listening.service import Reports

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        loop.add_signal_handler(number, stop.set)
    cli.show({"address": site.address, "name": cli.config.key_manager.name}, site.address)
    cli.note("the console is at /, then /metrics, /healthz and /readyz; Ctrl-C ends it")
    sys.stdout.flush()  # a supervisor may wait for the line
    with Reports():
        await stop.wait()
