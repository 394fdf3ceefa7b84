"""Puts the simulation under hsmcore, once in a process and before anything imports it: time, chance, threads, engine.

The product has no seam for it and needs none: members, routers and guests take `Engine`, `Routes` and `Guest` from
`hsmcore._native` by name.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.simulation import chance, clock


def install() -> None:
    """Raises RuntimeError in a process that has imported what the simulation replaces."""
    for name in ("hsmcore.members.pkcs11", "hsmcore.failover.router", "hsmcore.state.database"):
        if name in sys.modules:
            raise RuntimeError(f"{name} is imported already: a world needs a process of its own")
    clock.install()
    chance.install()
    from tests.simulation import threads

    threads.install()
    from tests.simulation.engine import Engine, Guest
    from tests.simulation.routes import Routes

    import hsmcore._native as native

    native.Engine, native.Guest, native.Routes = Engine, Guest, Routes
    from tests.simulation.lease import Lease

    native.Lease = Lease
    from tests.simulation import emergency

    emergency.install()
    from tests.simulation import database

    database.install()
    _keep_compiled_statements()
    import structlog

    structlog.configure(processors=[_drop])


def _keep_compiled_statements() -> None:
    """Each world opens a store at the same path: with the same engine of SQLAlchemy, which has compiled the statements.
    To compile them is most of a world's time."""
    from hsmcore.state import sqlite

    create, made = sqlite.create_engine, {}

    def create_engine(url: Any, **options: Any) -> Any:
        return made.get(url) or made.setdefault(url, create(url, **options))

    sqlite.create_engine = create_engine


def _drop(_logger: object, _method: str, _event: object) -> object:
    import structlog

    raise structlog.DropEvent
