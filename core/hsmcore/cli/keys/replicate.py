"""`hsmcore keys replicate`: copy a key to another member."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.keys.keys import app, is_configured, ring, shown_key
from hsmcore.cli.output import BadUsage
from hsmcore.cli.recorded import key_fields, recorded
from hsmcore.cli.settings import token_settings
from hsmcore.cli.state.opened import in_state, on_token
from hsmcore.errors import KeyAmbiguous

if TYPE_CHECKING:
    from hsmcore.config import Config, Provider
    from hsmcore.members.control import KeyRecord
    from hsmcore.state import Store


@command(app, "Put a key on another member, too.")
def replicate(
    cli: Invocation,
    to: Annotated[str, typer.Option("--to", metavar="MEMBER", help="The member, as in `failover status`.")],
    key_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="CKA_ID (default: the key that signs).")] = None,
) -> None:
    """Copy a key from the first member to another one, wrapped by a key that both hold.

    Example: hsmcore keys replicate --to yubihsm:http://10.0.0.2:12345
    """
    target = pkcs11_member(cli.config, to)
    identity = key_id.lower() if key_id is not None else _current(cli.config)
    with recorded(cli.config.key_manager, "keys replicate", key_id=identity, to_member=to) as entry:
        record, copied = asyncio.run(_replicate(cli.config, target, identity))
        entry.update(key_fields(record))
    cli.show(
        shown_key(record) | {"member": to, "copied": copied},
        f"{to} holds key {record.id}{'' if copied else ' already'}",
    )


def _current(config: Config) -> str:
    found = [key.key_id for key in ring(config) if key.state == "active"]
    settings = token_settings(config)
    if not found:
        records = on_token(config, lambda plane: plane.list_keys())
        found = [record.id for record in records if is_configured(settings, record)]
    if len(found) != 1:
        raise KeyAmbiguous(f"{len(found)} keys may be meant", hint="Give the key's id.")
    return found[0]


def pkcs11_member(config: Config, name: str) -> Provider:
    """Return the PKCS#11 member of that name. Raises BadUsage."""
    from hsmcore.config import Pkcs11Settings

    members = {member.name: member for _, member in config.key_manager.members()}
    found = members.get(name)
    if found is None or not isinstance(found.config, Pkcs11Settings):
        raise BadUsage(f"there is no PKCS#11 member {name!r}; the configuration has {', '.join(members)}")
    return found


async def _replicate(config: Config, target: Provider, key_id: str) -> tuple[KeyRecord, bool]:
    from hsmcore.config import Pkcs11Settings, all_members
    from hsmcore.errors import KeyMismatch, KeyNotFound
    from hsmcore.members.control import ControlPlane
    from hsmcore.members.control.backup import ExportWrapped, ImportWrapped

    [source] = all_members((config.key_manager.own,))[:1]
    if not isinstance(source.config, Pkcs11Settings) or not isinstance(target.config, Pkcs11Settings):
        raise BadUsage("only keys behind PKCS#11 modules are copied")
    # Isolated: two modules may not tolerate each other in one process.
    options: Any = {"log_in": True, "hidden": config.secret_variables, "isolated": True}
    options["refused"] = config.key_manager.refused_logins
    async with (
        ControlPlane.for_settings(source.config, member=source.name, **options) as here,
        ControlPlane.for_settings(target.config, member=target.name, **options) as there,
    ):
        known = {record.id: record for record in await here.list_keys()}
        if key_id not in known:
            raise KeyNotFound(f"{source.name} holds no key {key_id}")
        present = [record for record in await there.list_keys() if record.id == key_id]
        record = present[0] if present else await there.do(ImportWrapped(await here.do(ExportWrapped(key_id))))
        if record.public_key != known[key_id].public_key:
            if not present:
                await there.destroy(key_id)
            raise KeyMismatch(f"{target.name} has another key under the id {key_id}", member=target.name)
    await note_holder(config, key_id, target.name)
    return record, not present


async def note_holder(config: Config, key_id: str, member: str) -> None:
    """Note in the key ring that a member holds a key."""
    from hsmcore.state import Keys

    if config.key_manager.active_rotation is None:
        return

    async def work(store: Store) -> None:
        keys = Keys(store)
        for key in await keys.all():
            if key.key_id == key_id and member not in key.members:
                await keys.change(key.version, members=[*key.members, member])

    await in_state(config, work, absent="empty")
