"""The checks of a fleet's database: whether it answers, and keeps what it confirms. They read, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from hsmcore.base.extras import install
from hsmcore.config import Config
from hsmcore.doctor.report import Step, fail, failed, ok, warn
from hsmcore.errors import HsmError
from hsmcore.state import StoreError

if TYPE_CHECKING:
    from hsmcore.state.postgres.probe import Look

STORE: Final = "fleet-store"
DURABILITY: Final = "fleet-durability"
CERTIFICATE: Final = "fleet-certificate"
POOLER: Final = "fleet-pooler"
_TLS_HINT: Final = "Use sslmode=verify-full with sslrootcert: require encrypts, and believes whichever server answers."
_CERTIFICATE_HINT: Final = (
    "A host whose URL has verify-full or verify-ca connects no more from then on: renew it before."
)
_SOON: Final = timedelta(days=30)
_POOLER_HINT: Final = (
    "PgBouncer tries a server that was away again after server_login_retry, 15 s by default: set it to 1 or less"
)
_STANDBY_HINT: Final = "COMMIT waits for one: start a standby that synchronous_standby_names names."


def check_fleet_store(config: Config) -> Iterator[Step]:
    """Check the database, if there is a fleet."""
    fleet = config.key_manager.fleet
    if fleet is None:
        return
    try:
        try:
            from hsmcore.state.postgres.probe import look_at
        except ImportError:
            raise StoreError("the package psycopg is not installed", hint=f"Run: {install('fleet')}") from None
        look = look_at(fleet)
    except HsmError as error:
        yield failed(STORE, error)
        return
    version = look.facts.version // 10_000
    data = {"system": look.system, "timeline": look.facts.timeline, "version": version, "exists": look.exists}
    if not look.checks_server:
        yield warn(STORE, f"{look.where} is not asked who it is: sslmode=require", _TLS_HINT, **data)
    else:
        made = "answers; `hsmcore fleet migrate` makes the fleet's tables, or the first start, if the role may"
        has = "has the fleet's tables" if look.exists else made
        yield ok(STORE, f"{look.where} {has}", **data)
    yield from _certificates(look)
    if look.pooled:
        yield ok(POOLER, f"the way to {look.where} is by a pooler. {_POOLER_HINT}")
    yield _durability(look, single_node=fleet.single_node)


def _certificates(look: Look) -> Iterator[Step]:
    for name, at in look.certified.ends().items():
        said, left = look.certified.told(name, at), at - datetime.now(UTC)
        if left >= _SOON:
            yield ok(CERTIFICATE, said, expires=at.timestamp())
        else:
            judged = warn if left > timedelta() else fail
            yield judged(CERTIFICATE, said, _CERTIFICATE_HINT, expires=at.timestamp())


def _durability(look: Look, *, single_node: bool) -> Step:
    synchronous, problems = look.facts.synchronous_standby_names, tuple(look.facts.problems(single_node=single_node))
    data = {"synchronousStandbyNames": synchronous, "standbys": look.standbys}
    if problems:
        said = "; ".join(problem for problem, _ in problems)
        return fail(DURABILITY, said, " ".join(hint for _, hint in problems), **data)
    if not synchronous:
        hint = "Add a synchronous standby, and take fleet.singleNode out."
        return warn(DURABILITY, "there is one server: its loss loses what was bound", hint, **data)
    if look.standbys == 0:
        return fail(DURABILITY, "no synchronous standby is connected", _STANDBY_HINT, **data)
    note = " (fleet.singleNode is not needed)" if single_node else ""
    return ok(DURABILITY, f"each commit is on disk here and on a standby ({synchronous}){note}", **data)
