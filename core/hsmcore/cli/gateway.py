"""The `gateway` command."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage, note, starting
from hsmcore.cli.settings import load_configs

if TYPE_CHECKING:
    from hsmcore.manager.key_manager import KeyManager


_SIGNALS: Final = {signal.SIGHUP: True, signal.SIGUSR1: False, signal.SIGUSR2: False}
"""Those that do not end the gateway, and whether the clients are read again."""


def gateway(
    cli: Invocation,
    listen: Annotated[
        list[str] | None,
        "ADDRESS: unix:/path, tls:host:port or https:host:port, any number of times (default: gateway.listen).",
    ] = None,
) -> None:
    """Open the key managers of the configuration and serve them to other processes: hsmcore-wire/1 on Unix sockets and
    TLS, Vault Transit's API on HTTPS. Ends with Ctrl-C, SIGTERM or SIGQUIT, after the answers of open requests. SIGHUP
    has gateway.clients and their tokens read again.

    Who may have what signed stands in the configuration, in gateway.clients. A key manager with `monitoring` has the
    console and the metrics of `hsmcore serve` there. Sockets of a service manager (LISTEN_FDS) are used.

    Examples:

      hsmcore gateway --config sequencer.json

      hsmcore gateway --listen unix:/run/hsmcore/sign.sock --config sequencer.json

      hsmcore gateway --listen tls:0.0.0.0:7443 --listen https:0.0.0.0:8200 --json
    """
    import uvloop

    if cli.key_manager is not None:
        raise BadUsage("a gateway serves every key manager of the configuration: --key-manager chooses none")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(cli, tuple(listen or ())))


async def _serve(cli: Invocation, listen: tuple[str, ...]) -> None:
    from hsmcore.base.heap import settle
    from hsmcore.base.listening.service import Reports
    from hsmcore.gateway.gateway import running, settings_of

    _allow_descriptors()
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number, told in _SIGNALS.items():
        loop.add_signal_handler(number, again.set if told else _nothing)
    async with AsyncExitStack() as rest:
        with starting():
            configs = cli.configs
            served = await rest.enter_async_context(running(configs, settings_of(configs, listen)))
            watched = [one for one in served.managers.values() if one.config.key_manager.monitoring is not None]
            consoles = [await _console(rest, one) for one in watched]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, stop.set)
        tokens = [_token_uri(name) for name in served.managers]
        shown = {"addresses": served.addresses, "keyManagers": list(served.managers), "pkcs11": tokens}
        cli.show(shown | {"consoles": consoles}, "\n".join([*served.addresses, *tokens, *consoles]))
        sys.stdout.flush()  # a supervisor may wait for the lines
        settle()
        with Reports() as reports:
            while not stop.is_set():
                await _either(stop, again)
                if again.is_set() and not stop.is_set():
                    again.clear()
                    await served.reload(lambda: settings_of(load_configs(cli.config_path, cli.state), listen))
            reports.stopping()
            if not await served.drain():
                note("  not every request was answered in time")


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)


def _nothing() -> None:
    """For signals that ask for nothing here, and would end the process without the answers of open requests."""


def _token_uri(name: str) -> str:
    """The token of a key manager as libhsmcore_pkcs11.so shows it (RFC 7512); a label has at most 32 bytes."""
    return f"pkcs11:token={quote(name.encode()[:32], safe='')};manufacturer=hsmcore"


async def _console(rest: AsyncExitStack, manager: KeyManager) -> str:
    from hsmcore.serve import attached

    return (await rest.enter_async_context(attached(manager))).address


def _allow_descriptors() -> None:
    """As many as this process may have: each connection needs one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
