"""`hsmcore gateway`: opens the key managers of a configuration, and the faces that serve them to other processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from hsmcore.base.listening.door import BACKLOG
from hsmcore.base.log import get_logger, said
from hsmcore.config import Config, Gateway
from hsmcore.config.loading import changed
from hsmcore.errors import ConfigFault, ConfigurationError, HsmError
from hsmcore.gateway.admission import Admission
from hsmcore.gateway.clients import Directory
from hsmcore.gateway.figures import read_gateway
from hsmcore.gateway.fronts import Fronts
from hsmcore.gateway.server import GatewayServer
from hsmcore.gateway.sockets import Bound, assigned, given_sockets
from hsmcore.gateway.tls import require_tls
from hsmcore.manager.key_managers import KeyManagers
from hsmcore.metrics import also

_POLLS: Final = 3
"""Processors with which a worker may poll: one has the event loop, and one a client."""
_TOLD: Final = ("key-generated", "key-changed", "key-deactivated", "failover", "failback", "member-up")
"""Events after which the keys may be others."""


class RunningGateway:
    """A gateway that serves. `addresses`: where, with the ports that were chosen."""

    def __init__(self, managers: KeyManagers, server: GatewayServer, addresses: list[str], settings: Gateway) -> None:
        self.managers, self.server, self.addresses, self.settings = managers, server, addresses, settings
        self._reloading = asyncio.Lock()
        self.fronts: Fronts | None = None
        self.bound: list[Bound] = []

    def keys_changed(self) -> None:
        """The keys may be others: have clients and fronts know."""
        self.server.keys_changed()
        if self.fronts is not None:
            self.fronts.keys_changed()

    async def reload(self, read: Callable[[], Gateway]) -> bool:
        """Follow the clients and tokens of a configuration that is read again. One that cannot be used is logged, and
        changes nothing. Returns whether it is followed."""
        async with self._reloading:
            known, log = self.server.desk.directory.clients, get_logger()
            try:
                settings = await asyncio.to_thread(read)
                unknown = {key for client in settings.clients.values() for key in client.keys} - self.managers.keys()
                if unknown:
                    problem = f"names the key manager {min(unknown)!r}, which this process has not opened"
                    raise ConfigurationError.of([ConfigFault(f"{settings.where}.clients", problem)])
                directory = await asyncio.to_thread(Directory, settings.clients, known)
            except (HsmError, OSError) as error:
                log.warning("the changed configuration cannot be used; the clients stay as they are", error=said(error))
                return False
            self.server.follow(directory, self.settings.drain_ms / 1e3)
            if self.fronts is not None:
                await self.fronts.follow()
            if _without_clients(settings) != _without_clients(self.settings):
                log.warning("of the block gateway, only clients are read again: the rest needs a restart")
            log.info("clients and tokens were read again", clients=list(directory.clients))
            return True

    async def drain(self) -> bool:
        """Take no more requests, and answer the open ones within `drainMs`. Returns whether all were answered."""
        for one in self.bound:
            one.remove()  # so that the next gateway may make its own
        seconds = self.settings.drain_ms / 1e3
        draining = [self.server.drain(seconds, "the gateway ends")]
        if self.fronts is not None:
            draining.append(self.fronts.drain(seconds))
        return all(await asyncio.gather(*draining))


def settings_of(configs: Mapping[str, Config], listen: tuple[str, ...] = ()) -> Gateway:
    """Return the settings of a gateway. `listen`: instead of theirs. Raises ConfigurationError."""
    first = next(iter(configs.values()))
    settings = first.gateway
    if settings is None:
        fault = ConfigFault(f"{first.where}.gateway", "is missing: it says who may have what signed")
        raise ConfigurationError.of([fault], hint="docs/GATEWAY.md has an example.")
    return changed(settings, settings.where, listen=listen) if listen else settings


def _without_clients(settings: Gateway) -> dict[str, Any]:
    return settings.model_dump(exclude={"clients"})


@asynccontextmanager
async def running(configs: Mapping[str, Config], settings: Gateway) -> AsyncIterator[RunningGateway]:
    """Open the key managers and serve them while the block runs. Raises HsmError; then nothing is left open."""
    managers = KeyManagers({name: _beside_clients(config) for name, config in configs.items()})
    async with AsyncExitStack() as rest:
        desk = await asyncio.to_thread(Admission, managers, settings)
        if settings.tls is not None:  # before a PIN is presented
            require_tls(settings.tls, {one.face for one in settings.addresses})
        await rest.enter_async_context(managers)
        await desk.learn_versions()
        server = GatewayServer(desk)
        rest.push_async_callback(server.close)
        addresses: list[str] = []
        served = RunningGateway(managers, server, addresses, settings)
        others: dict[str, list[socket.socket]] = {}
        for one, given in assigned(settings, given_sockets()):
            bound = rest.enter_context(Bound(one, settings, given))
            served.bound.append(bound)
            addresses.append(bound.shown)
            if one.face == "unix":
                server.listen(bound.socket)
            else:
                bound.socket.listen(BACKLOG)  # now: until a front runs, another program could take the address
                others.setdefault(one.face, []).append(bound.socket)
        if others:
            served.fronts = Fronts(server, settings, others)
            rest.push_async_callback(served.fronts.close)
            await served.fronts.start()
        also(next(iter(managers.values())), partial(read_gateway, server=server, fronts=served.fronts))
        for event in _TOLD:
            rest.callback(managers.on(event, lambda _details: served.keys_changed()))
        yield served


def _beside_clients(config: Config) -> Config:
    """Have no worker poll where a client's process needs the processor, unless the configuration says so."""
    rules = config.key_manager
    if "spin_micros" in rules.model_fields_set or len(os.sched_getaffinity(0)) >= _POLLS:
        return config
    return config.model_copy(update={"key_manager": rules.model_copy(update={"spin_micros": 0})})
