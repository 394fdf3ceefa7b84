"""Puts the simulation under hsmcore, once in a process and before anything imports it: time, chance, threads, engine.

The product has no seam for it and needs none: members, routers and guests take `Engine`, `Routes` and `Guest` from
`hsmcore._native` by name.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from tests.simulation import chance, clock

_OBJECTS: Final = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"


def install() -> None:
    """Raises RuntimeError in a process that has imported what the simulation replaces."""
    for name in ("hsmcore.members.pkcs11", "hsmcore.failover.router", "hsmcore.state.database"):
        if name in sys.modules:
            raise RuntimeError(f"{name} is imported already: a world needs a process of its own")
    clock.install()
    chance.install()
    from tests.simulation import loop, threads

    loop.install()
    threads.install()
    from tests.simulation.engine import Engine, Guest
    from tests.simulation.routes import Routes

    import hsmcore._native as native

    native.Engine, native.Guest, native.Routes = Engine, Guest, Routes
    from tests.simulation.lease import Lease

    native.Lease = Lease
    from tests.simulation import emergency

    emergency.install()
    from tests.simulation import commands, control, database, network

    from hsmcore.base import steady

    steady._boot = clock.boot_name
    commands.install()
    control.install()
    database.install()
    network.install()
    _keep_compiled_statements()
    _keep_schema()
    _walk_through_no_configuration()
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


def _keep_schema() -> None:
    """The tables of a new store are made as the migrations made those of the first one."""
    from hsmcore.state import sqlite
    from hsmcore.state.schema import VERSION

    migrate, made = sqlite.migrate, list[Any]()

    def quick(connection: Any, shown: str, schema: str | None = None) -> None:
        driver = connection.connection.driver_connection
        empty = driver.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        for statement, *values in made if empty else ():
            driver.execute(statement, values)
        if empty and not made:
            migrate(connection, shown, schema)
            made.extend(driver.execute(_OBJECTS))
            known = driver.execute(f"SELECT * FROM {VERSION.name}").fetchall()  # noqa: S608  # our own name
            insert = f"INSERT INTO {VERSION.name} VALUES (?, ?)"  # noqa: S608
            made.extend((insert, *row) for row in known)
        elif not empty:
            migrate(connection, shown, schema)

    sqlite.migrate = quick


def _walk_through_no_configuration() -> None:
    """No child process is started in a world, so no variable is to be kept from one, and no configuration has a
    placeholder. To look for these walks through all of it several times a world."""
    from hsmcore.config import Config

    Config.secret_variables = property(lambda _self: frozenset())
    Config.placeholders = property(lambda _self: ())


def _drop(_logger: object, _method: str, _event: object) -> object:
    import structlog

    raise structlog.DropEvent
