"""A fleet: hosts that share one logical key and one database, of which one signs at a time."""

from __future__ import annotations

import socket
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from hsmcore.config.base import Model, Text, Whole, as_tuple, each_once
from hsmcore.config.secret import Secret

_NAME = Text(32, form=r"[a-z](-?[a-z0-9])*", says="a lower-case letter, then letters, digits and single dashes")

HostName = Annotated[str, Text(64)]


class FleetStore(Model):
    """The database that the hosts share, instead of `stateFile`."""

    url: Secret
    """`postgresql://user:password@host:port/database?sslmode=verify-full`. Without TLS only to this host."""


class Fleet(Model):
    """`fleet`: the hosts of one name share key ring, rotation, budgets and positions; the one that holds the epoch
    signs."""

    store: FleetStore
    """The database that the hosts share."""
    name: Annotated[str, _NAME]
    """The fleet's name; hosts of one name share one key."""
    host: HostName = Field(default_factory=socket.gethostname)
    """This host's name in the fleet: no other one has it. Default: the machine's."""
    ttl_ms: Annotated[int, Whole(200, 600_000)] = 2000
    """The time after which another host may take over from one that no longer renews its lease."""
    unordered: Literal["lease", "strict", "any"] = "lease"
    """When payloads without a position are handed out: "lease": while the lease is confirmed; "strict": after the
    database has said, for each group, that the epoch is still this host's; "any": on each host, whoever holds it."""
    single_node: bool = False
    """Whether a database without a synchronous standby will do: its loss loses positions."""
    claim: Literal["auto", "manual"] = "auto"
    """Whether this host claims the epoch without an operator when no host holds it."""
    prefer: Annotated[tuple[HostName, ...], BeforeValidator(as_tuple), each_once("host")] | None = None
    """The hosts that claim a free epoch of this key manager first, in this order; others come after them. Default: of
    several key managers, each epoch begins on a host that is drawn."""

    _manager: str | None = PrivateAttr(default=None)

    @property
    def manager(self) -> str | None:
        """The key manager's name, where there are several: each has its own tables."""
        return self._manager

    def among(self, manager: str) -> Fleet:
        """Return a copy for one of several key managers."""
        copy = self.model_copy()
        copy._manager = manager  # noqa: SLF001  # a copy of our own
        return copy
