"""A server for a key manager that runs in this application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from hsmcore.base.version import __version__
from hsmcore.base.waiting import shielded
from hsmcore.config import Config, Monitoring
from hsmcore.config.loading import changed
from hsmcore.errors import BadArgument
from hsmcore.serve.site import Site
from hsmcore.serve.source import ManagerSource, Source

if TYPE_CHECKING:
    from hsmcore.manager.key_manager import KeyManager


@asynccontextmanager
async def attached(
    manager: KeyManager, listen: str | None = None, settings: Monitoring | None = None
) -> AsyncIterator[Site]:
    """Watch `manager`, which belongs to this event loop, while the block runs; it need not be open yet.

    `settings`: instead of the configuration's `monitoring`; `listen`: instead of theirs: "127.0.0.1:9464",
    "127.0.0.1:0", "unix:/path". The server is a child process. While a page is open it asks the key manager for its
    state once a second, which costs the manager's loop about 0.1 ms for each member. Raises ConfigurationError, and
    BadArgument for several key managers: attach a server to each.
    """
    given: object = manager
    if isinstance(given, Mapping):
        raise BadArgument('a server shows one key manager: attach one to each, as in attached(managers["blocks"])')
    source = ManagerSource(manager, asyncio.get_running_loop())
    async with _running(source, settings_of(manager.config, listen, settings), __version__) as site:
        yield site


@asynccontextmanager
async def watching(config: Config, settings: Monitoring | None = None) -> AsyncIterator[Site]:
    """Show the key managers of a configuration that run in other processes; see WatchSource."""
    from hsmcore.serve.watch import WatchSource

    async with _running(WatchSource(config), settings_of(config, None, settings), __version__) as site:
        yield site


@asynccontextmanager
async def _running(source: Source, settings: Monitoring, version: str) -> AsyncIterator[Site]:
    loop = asyncio.get_running_loop()
    site = await loop.run_in_executor(None, Site, source, settings, version)
    try:
        await loop.run_in_executor(None, site.start)
        yield site
    finally:
        # In a thread: the server may be waiting for an answer of this loop.
        await shielded(loop.run_in_executor(None, site.close))


def settings_of(config: Config, listen: str | None, settings: Monitoring | None = None) -> Monitoring:
    """Return the settings to use. Raises ConfigurationError if `listen` contradicts the rest of them."""
    rules = config.key_manager
    chosen = settings or rules.monitoring or Monitoring()
    return chosen if listen is None else changed(chosen, f"{rules.where}.monitoring", listen=listen)
