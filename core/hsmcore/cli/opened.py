"""Work on the token and on the state store that a configuration names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from hsmcore.cli.output import note
from hsmcore.cli.settings import misconfigured, token_settings
from hsmcore.errors import HsmError, SecretUnavailable

if TYPE_CHECKING:
    from hsmcore.config import Config, Fleet, KeyRotation, Pkcs11Settings
    from hsmcore.members.control import ControlPlane
    from hsmcore.state import Store

T = TypeVar("T")


_FIRST: Final = (
    "This needs the token of the first member, {}: bring it back, or name a configuration that begins with another one."
)


async def with_token(
    config: Config, work: Callable[[ControlPlane], Awaitable[T]], settings: Pkcs11Settings | None = None
) -> T:
    """Run `work` with a token, logged in. `settings`: another member's than the first."""
    from hsmcore.members.control import ControlPlane

    settings = settings or token_settings(config)
    members = [member for _, member in config.key_manager.members()]
    name = next((member.name for member in members if member.config is settings), None)
    options: Any = {"hidden": config.secret_variables, "refused": config.key_manager.refused_logins}
    try:
        async with ControlPlane.for_settings(settings, member=name, log_in=True, **options) as plane:
            return await work(plane)
    except HsmError as error:
        if error.may_pass and len(members) > 1 and name == members[0].name:
            error.hint = f"{_FIRST.format(name)} {error.hint}"
        raise


Absent = Literal["refused", "made", "empty"]
"""What a store that is missing is: an error; made now; nothing, as far as the work of the command goes."""


async def in_state(
    config: Config, work: Callable[[Store], Awaitable[T]], *, shows: bool = False, absent: Absent = "refused"
) -> T:
    """Run `work` with the state store. `shows`: it only shows what is there, also if it is not genuine, or missing.
    Raises StoreError also where key managers run on another file than this one."""
    from hsmcore.state.backup import folder

    with ExitStack() as temporary:
        place = config.key_manager.state_place
        missing = isinstance(place, Path) and not place.is_file()
        if missing or not shows:
            is_attended(config)
        if missing and (shows or absent == "empty"):
            note(f"there is no state store yet: {place}")
            place = temporary.enter_context(folder()) / "state.db"  # it goes away
            absent = "made"
        return await _in_state(config, place, work, shows=shows, makes=absent == "made")


async def _in_state(
    config: Config, place: Path | Fleet, work: Callable[[Store], Awaitable[T]], *, shows: bool, makes: bool
) -> T:
    from hsmcore.state import Store, StoreNotGenuine

    try:
        store = await Store.open(place, config.state_secret, shows=shows, makes=makes)
    except SecretUnavailable as error:
        if not shows:
            raise
        note(f"the seal of the state store is not checked: {error}")
        store = await Store.open(place, makes=makes)
    try:
        return await work(store)
    except (ValueError, TypeError, LookupError):
        if not shows or not store.problems:
            raise
        raise StoreNotGenuine(f"{store.name}: a forged row cannot be shown") from None
    finally:
        await store.close()


def is_attended(config: Config) -> bool:
    """As hsmcore.recovery.own_store.is_attended."""
    from hsmcore.recovery.own_store import is_attended

    return is_attended(config.key_manager)


async def not_genuine(store: Store) -> dict[str, str]:
    """Return why rows of the store are not genuine, by scope."""
    status = await store.seal_status()
    return {} if status is None else dict(status.problems)


def print_not_genuine(problems: dict[str, str]) -> None:
    """Say that rows are not genuine."""
    for scope, problem in problems.items():
        print(f"NOT GENUINE: {scope}: {problem}: nothing is done for it; see: hsmcore state seal")


def fleet_rules(config: Config) -> Fleet:
    """Return the fleet. Raises ConfigurationError without one."""
    rules = config.key_manager
    if rules.fleet is None:
        hint = 'Add "fleet": {"store": {"url": {"env": "PG_URL"}}, "name": "…"} to it; see docs/FLEET.md.'
        raise misconfigured(f"{rules.where}.fleet", "is missing, so one host signs", hint)
    return rules.fleet


def rotation_rules(config: Config) -> KeyRotation:
    """Return the rules of key rotation. Raises ConfigurationError without an enabled keyRotation."""
    rules = config.key_manager
    if rules.active_rotation is None:
        problem = "is missing or not enabled, so no key is rotated"
        hint = 'Add "keyRotation": {"intervalDays": 30} to the configuration.'
        raise misconfigured(f"{rules.where}.keyRotation", problem, hint)
    return rules.active_rotation


async def rotates_somewhere(store: Store) -> bool:
    """Return whether a running key manager rotates the keys of this store."""
    from hsmcore.state import Desired

    return any("rotation" in report for report in await Desired(store).running())
