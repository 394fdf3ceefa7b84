"""`hsmcore state`: the seal of the state store; its backups (recovery.py) and its positions (positions.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import FAILED, BadUsage, plain, print_fields, print_json, print_table
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import RequiredReason
from hsmcore.cli.state import positions
from hsmcore.cli.state import restore as recovery
from hsmcore.cli.state.opened import on_state
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.state import Store

app = typer.Typer(
    name="state", help="Back up, restore, reconcile the state store; look at its seal.", no_args_is_help=True
)
recovery.add_to(app)
positions.add_to(app)


@command(app, "Show what the state store says, or adopt it.")
def seal(
    cli: Invocation,
    adopt: Annotated[
        str | None, typer.Option("--adopt", metavar="DIGEST", help="Seal the rows with this digest, as it was shown.")
    ] = None,
) -> None:
    """Show whether the seal of the state store holds, and what the store says: keys, open rotations, emergency budget,
    orders. Ends with 1 if a row is not one that hsmcore has sealed.

    Compare what is shown with what you know. Then adopt it: the rows that have that digest are sealed as they are. Do
    this once when stateSecret is given to a store that has rows, and after an incident.

    Example: hsmcore state seal --adopt 6254f205b2cac161a3fe70252976e5620c5480cdb054b39bbc0e1d22ff997482
    """
    config = cli.config
    if config.state_secret is None:
        raise ConfigurationError.of(
            [ConfigFault(f"{config.where}.stateSecret", "is missing, so the state store has no seal")],
            hint='Make one: `openssl rand -hex 32`; then name it, such as "stateSecret": {"file": "…/state-secret"}.',
        )
    if adopt is not None:
        digest = adopt
        with recorded(config.key_manager, "state seal", sha256=digest):
            on_state(config, lambda store: store.adopt(digest))
    found = on_state(config, _read, shows=True)
    if cli.as_json:
        print_json(found)
    else:
        _print(found)
    if found["problems"]:
        raise typer.Exit(FAILED)


@command(app, "Let another store begin in the place of one that is lost.")
def begin(
    cli: Invocation,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The public key, as the refused start names it.")],
    reason: RequiredReason,
) -> None:
    """Let the store that the configuration names go on, or begin with nothing, although this host knows another one
    that keeps what the key has promised: positions, key ring, budget, orders. What only that one knows is forgotten:
    compare with the chain first, and raise what can be raised (`state restore`, `state reconcile`, `policy floor set`).
    Run it as the key manager's user.

    Example: hsmcore state begin 5c0fae23d9bd… --reason "the disk is gone, and the chain is at 4711"
    """
    from hsmcore.recovery.own_store import register

    rules = cli.config.key_manager
    if rules.fleet is not None or not rules.keeps_state:
        raise ConfigurationError.of([ConfigFault(rules.where, "keeps nothing in a state store of this host")])
    with recorded(rules, "state begin", reason=reason, public_key=_key(key)) as entry:
        before = register().begin(_key(key), rules.state_path)
        entry["previous"] = str(before.store)
    shown = {"publicKey": key, "store": rules.state_name, "formerStore": str(before.store), "reason": reason}
    cli.show(shown, f"the store at {rules.state_name} may begin; {before.store} no longer counts for the key")


def _key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadUsage(f"{text!r} is no public key in hexadecimal") from None


async def _read(store: Store) -> dict[str, Any]:
    """Return the rows as they are: any of them may be forged."""
    from sqlalchemy import select

    from hsmcore.state import StoreError, schema

    status = await store.seal_status()
    if status is None:
        raise StoreError("the seal cannot be checked without the secret", hint="Give this process the stateSecret.")

    async def rows(query: Any) -> list[dict[str, Any]]:
        known = (str, int, type(None))
        found = await store.rows(query)
        return [{name: v if isinstance(v, known) else ascii(v) for name, v in row.items()} for row in found]

    keys, rotations, episodes = schema.KEY_VERSION, schema.ROTATION, schema.EMERGENCY_EPISODE
    open_ = rotations.c.status.in_(("running", "undoing", "overlap"))
    return {
        "sealed": status.sealed,
        "problems": dict(status.problems),
        "counter": status.counter,
        "digest": status.digest,
        "keys": await rows(select(keys).order_by(keys.c.id)),
        "openRotations": await rows(select(rotations).where(open_).order_by(rotations.c.id)),
        "budget": await rows(select(episodes).where(episodes.c.ended_ns.is_(None))),
        "orders": await rows(select(schema.DESIRED_STATE).order_by(schema.DESIRED_STATE.c.name)),
    }


def _print(found: dict[str, Any]) -> None:
    state = "holds" if found["sealed"] and not found["problems"] else "does not hold" if found["sealed"] else "none"
    print_fields({"seal": state, "counter": found["counter"], "digest": found["digest"]})
    for scope, problem in found["problems"].items():
        print(f"NOT GENUINE: {scope}: {plain(problem)}")
    tables = {
        "keys": ("id", "key_id", "state", "public_key", "members", "note"),
        "openRotations": ("id", "cause", "status", "step", "old_version", "new_version"),
        "budget": ("id", "reserved", "max_transactions", "max_seconds"),
        "orders": ("name", "value", "reason"),
    }
    for name, columns in tables.items():
        print(f"\n{name}:")
        print_table(columns, [[str(row[column]) for column in columns] for row in found[name]])
