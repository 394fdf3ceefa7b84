"""What the owner of a fleet's tables does, of `hsmcore fleet`: make them, give a signer its rights, and prune."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.opened import fleet_rules

if TYPE_CHECKING:
    from hsmcore.config import Fleet

UrlOption = Annotated[str | None, "NAME: The environment variable with the owner's URL (default: the configuration's)."]


def add_to(app: typer.Typer) -> None:
    """Add the commands to a group."""
    command(app, "Make or migrate a fleet's tables, and give a signer its rights.")(migrate)
    command(app, "Remove the rows that mean nothing any more.")(prune)


def migrate(
    cli: Invocation,
    role: Annotated[list[str] | None, "NAME: A signer's role, which exists; may be repeated."] = None,
    url_env: UrlOption = None,
    sql: Annotated[bool, "Print the GRANTs only; connect to nothing."] = False,
) -> None:
    """Make the fleet's tables or bring them up to date, as their owner, also in a database that has other fleets. Then
    give each role what a signer needs, and take from it what it has beyond that: it makes no table, and neither changes
    nor removes what is bound. Roles that had a signer's rights keep them. Repeat it with each new version of hsmcore.

    Examples:

      hsmcore fleet migrate --url-env PG_OWNER_URL --role sequencer_signer

      hsmcore fleet migrate --role sequencer_signer --sql
    """
    from hsmcore.state.postgres.database import ServerDatabase
    from hsmcore.state.postgres.place import schema_name
    from hsmcore.state.postgres.rights import grants
    from hsmcore.state.schema import MIGRATIONS

    rules, roles = _as_owner(cli, url_env), role or []
    schema = schema_name(rules.name, rules.manager)
    shown = {"schema": schema, "version": MIGRATIONS[-1].number, "statements": [], "roles": roles}
    statements = [statement for one in roles for statement in grants(schema, one)]
    if sql:
        cli.show(shown | {"statements": statements}, "".join(f"{statement};\n" for statement in statements).rstrip())
        return
    with cli.recorded("fleet migrate", label=", ".join(roles)):
        roles = ServerDatabase(rules, writes=True, begins=True).migrate_for(roles)
    text = f"schema {schema} is of version {MIGRATIONS[-1].number}; roles of signers: {', '.join(roles) or 'none'}"
    cli.show(shown | {"roles": roles}, text)


def prune(cli: Invocation, url_env: UrlOption = None) -> None:
    """Remove the rows of positions at or below the floors, portion by portion. A signer whose role may remove them does
    so itself, each minute; have this run daily where it may not. Floors are raised by `policy.keepPositions`, or by
    `hsmcore policy floor set`.

    Example: hsmcore fleet prune --url-env PG_OWNER_URL
    """
    from hsmcore.manager.policy.watermark import Watermark
    from hsmcore.state import Store

    rules = _as_owner(cli, url_env)

    async def pruned() -> int:
        store = await Store.open(rules, cli.config.state_secret)
        try:
            return await Watermark(store, "").remove()
        finally:
            await store.close()

    with cli.recorded("fleet prune") as entry:
        entry["count"] = gone = asyncio.run(pruned())
    cli.show({"forgotten": gone}, f"{gone} positions are forgotten")


def _as_owner(cli: Invocation, url_env: str | None) -> Fleet:
    """Return the fleet of the configuration, whose URL is perhaps another one."""
    from hsmcore.config import Secret

    rules = fleet_rules(cli.config)
    if url_env is None:
        return rules
    return rules.model_copy(update={"store": rules.store.model_copy(update={"url": Secret.env(url_env)})})
