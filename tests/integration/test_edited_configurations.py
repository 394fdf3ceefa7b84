"""Edits of a configuration between two lives of a key manager. Whatever is edited, no second payload is signed at a
position that is bound, and after a rotation the replaced key does not sign as the current one: an edit is harmless, or
the start is refused, and what its hint says is the way on.

Two edits at once may take away all that connects the two lives; then the second one is another key manager. So is one
with another key and another place for store and log, and, without `requireState`, one with another home and nothing but
the home that names the store.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import Command, commands
from tests.support.loops import one_loop
from tests.support.policed import ordered
from tests.support.size import FULL
from tests.support.softhsm import RFC8032_PUBLIC, RFC8032_SEED, Token

import hsmcore
from hsmcore.config import load
from hsmcore.errors import DoubleSign, HsmError, PolicyRefused

pytestmark = [pytest.mark.integration]

SAME = {"name": "ed25519", "kind": "ed25519", "seed": RFC8032_SEED, "public_key": RFC8032_PUBLIC}
FORMAT = {
    "kind": "block",
    "prefix": "4c32424b",
    "length": 44,
    "position": {"offset": 4, "bytes": 8, "order": "little"},
}
Document = dict[str, Any]


@dataclass
class Place:
    """What an edit may touch."""

    folder: Path
    tokens: list[Token]
    setenv: Callable[[str, str], None]
    document: Document = field(default_factory=dict)
    name: str | None = None
    """The key manager's name, where there are several."""

    @property
    def path(self) -> Path:
        return self.folder / "config.json"

    @property
    def manager(self) -> dict[str, Any]:
        """The block of the key manager."""
        return self.document["keyManager"] if self.name is None else self.document["keyManagers"][self.name]

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` of its provider."""
        found: dict[str, Any] = self.manager["config"]
        return found

    def provider(self, number: int) -> dict[str, Any]:
        """A provider of another token."""
        made = self.tokens[number].config()["sequencer"]["keyManager"]
        return {"type": made["type"], "config": made["config"]}

    def write(self) -> None:
        """Write the document where the key manager reads it."""
        self.folder.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.document))

    @property
    def store(self) -> Path:
        """Where the store is."""
        return load(self.path, self.name).key_manager.state_path

    def rows(self, query: str) -> list[Any]:
        """What the store has."""
        with closing(sqlite3.connect(self.store)) as connection:
            return connection.execute(query).fetchall()


Change = Callable[[Place], object]


def rules(**changes: Any) -> Change:
    """Change keys of the key manager; None takes one out."""

    def change(place: Place) -> None:
        place.manager.update(changes)
        for name, value in changes.items():
            if value is None:
                del place.manager[name]

    return change


def settings(**changes: Any) -> Change:
    """Change keys of the provider's `config`."""

    def change(place: Place) -> None:
        place.settings.update(changes)
        for name, value in changes.items():
            if value is None:
                del place.settings[name]

    return change


def policy(**changes: Any) -> Change:
    """Change keys of the policy."""
    return lambda place: place.manager["policy"].update(changes)


def both(*changes: Change) -> Change:
    """One change after the other."""
    return lambda place: [change(place) for change in changes]


def nothing(_: Place) -> None:
    """Change nothing."""


def home(place: Place) -> None:
    """Another home of the user's state."""
    place.setenv("XDG_STATE_HOME", str(place.folder.parent / "other-home"))


def absolute(key: str) -> Change:
    """A path from the root in place of a relative one."""
    return lambda place: place.manager.update({key: str(place.folder / place.manager[key])})


def moved(place: Place) -> None:
    """Move the whole folder."""
    place.folder = place.folder.rename(place.folder.with_name("moved"))


def copied(place: Place) -> None:
    """Go on with a copy of the whole folder."""
    place.folder = Path(shutil.copytree(place.folder, place.folder.with_name("copied")))


def alone(place: Place) -> None:
    """Go on with the configuration's file alone in another folder."""
    place.folder = place.folder.with_name("alone")


def linked(place: Place) -> None:
    """Name the log's folder by a link."""
    (place.folder / "link").symlink_to(place.folder / "audit")
    place.manager["auditLogFile"] = "link/audit.log"


def secret(name: str) -> Change:
    """Have a seal of that secret."""

    def change(place: Place) -> None:
        path = place.folder / name
        path.write_text(name * 32)
        path.chmod(0o600)
        place.document["stateSecret"] = {"file": name}

    return change


def one_of_several(name: str) -> Change:
    """Have the key manager as one of several."""

    def change(place: Place) -> None:
        block = place.manager
        log = block.pop("auditLogFile", None) or place.document["auditLogFile"]
        place.name, place.document = name, {"auditLogFile": log, "keyManagers": {name: block}}

    return change


def single(place: Place) -> None:
    """Have one key manager again."""
    block = place.manager | {"auditLogFile": place.document.pop("auditLogFile")}
    place.name = None
    del place.document["keyManagers"]
    place.document["keyManager"] = block


def uri(place: Place) -> None:
    """The same token and key by a URI."""
    token = place.tokens[0]
    place.manager["type"] = "pkcs11"
    place.settings.update(uri=f"pkcs11:token={token.label};object={token.keys['ed25519'].label};type=private")
    del place.settings["tokenLabel"], place.settings["keyLabel"]


def serial(place: Place) -> None:
    """The same token by its serial number."""
    command = ["pkcs11-tool", "--module", place.tokens[0].module, "--list-slots"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    [of_token] = [slot for slot in shown.split("Slot ") if place.tokens[0].label in slot]
    settings(tokenLabel=None, tokenSerial=re.search(r"serial num *: (\w+)", of_token)[1])(place)


def key_id(place: Place) -> None:
    """The same key by its id."""
    place.settings["keyId"] = place.tokens[0].keys["ed25519"].id
    del place.settings["keyLabel"]


def other_key(place: Place) -> None:
    """Another key of the token."""
    place.settings["keyLabel"] = place.tokens[0].keys["second"].label


def pin(name: str) -> Change:
    """Pin a public key."""
    return lambda place: place.settings.update(publicKey=place.tokens[0].keys[name].public_key.hex())


def secondary(place: Place) -> None:
    """Another token with the same key."""
    place.manager["failover"] = {**place.manager.get("failover", {}), "secondary": [place.provider(1)]}


def exchanged(place: Place) -> None:
    """The second token first."""
    [second] = place.manager["failover"]["secondary"]
    first = {key: place.manager[key] for key in ("type", "config")}
    place.manager.update(second)
    place.manager["failover"]["secondary"] = [first]


def listed(place: Place) -> None:
    """The provider stands in failover.primary."""
    place.manager["failover"] = {"primary": [{key: place.manager.pop(key) for key in ("type", "config")}]}


def current_key(place: Place) -> None:
    """Name the key that signs since the rotation."""
    [now] = [row[0] for row in place.rows("SELECT key_id FROM key_version WHERE state = 'active'")]
    place.settings["keyId"] = now
    del place.settings["keyLabel"]


@dataclass(frozen=True)
class Case:
    """One edit. `first`: what the first life has besides."""

    edit: Change
    first: Change = nothing
    refused: str = "never"
    """Whether the start is refused: never, always, rotated (after a rotation)."""
    tried: tuple[bool, ...] = (False, True)
    """Whether a rotation came before the edit."""
    ordered: bool = True
    """Whether positions are bound."""
    signs: bool = True
    """Whether the payload that was signed is signed once more."""
    key: str = ""
    """The key that signs if nothing was rotated, where the edit names another one."""
    says: str = ""
    """A hint in words, which `mends` follows."""
    mends: Change = nothing


NO_LOG = rules(auditLogFile=None)
KEPT = rules(stateFile="state.db")
EMERGENCY = rules(failover={"emergencyModeEnabled": True})
TWO = rules(auditLogFile="two/audit.log")
ROTATES = rules(keyRotation={"overlapDays": 1})
UNROTATED, ROTATED = (False,), (True,)
CASES = {
    # places
    "log moved": Case(TWO, refused="always"),
    "log moved, absolute": Case(both(TWO, absolute("auditLogFile")), refused="always"),
    "log taken out": Case(NO_LOG, refused="always"),
    "log added": Case(rules(auditLogFile="audit/audit.log"), NO_LOG, refused="always"),
    "log absolute": Case(absolute("auditLogFile")),
    "log by a link": Case(linked),
    "log renamed": Case(rules(auditLogFile="audit/other.log")),
    "state file added": Case(KEPT, refused="always"),
    "state file added without log": Case(KEPT, NO_LOG, refused="always"),
    "state file that is the default": Case(lambda place: place.manager.update(stateFile=str(place.store))),
    "state file moved": Case(rules(stateFile="other/state.db"), KEPT, refused="always"),
    "state file absolute": Case(absolute("stateFile"), KEPT),
    "state file taken out": Case(rules(stateFile=None), KEPT, refused="always"),
    "state file taken out, log too": Case(rules(stateFile=None, auditLogFile=None), KEPT, refused="always"),
    "log moved, state file kept": Case(TWO, KEPT),
    "folder moved": Case(moved),
    "folder copied": Case(copied, refused="always"),
    "configuration alone elsewhere": Case(alone, refused="always"),
    "another home, log": Case(home),
    "another home, state file": Case(home, both(KEPT, NO_LOG)),
    "another home, requireState": Case(
        both(home, rules(requireState=True)), NO_LOG, "always", says="is its volume mounted?",
        mends=lambda place: place.setenv("XDG_STATE_HOME", str(place.folder.parent / "state-home")),
    ),
    # types
    "softhsm to pkcs11": Case(rules(type="pkcs11"), refused="always"),
    "softhsm to pkcs11, state file": Case(rules(type="pkcs11"), KEPT),
    "softhsm to pkcs11, no log": Case(rules(type="pkcs11"), NO_LOG, "always"),
    "softhsm to pkcs11, log moved": Case(both(rules(type="pkcs11"), TWO), refused="always"),
    "a uri": Case(uri, refused="always"),
    "token by its serial number": Case(serial, refused="always"),
    # names, order, levels
    "name added": Case(rules(name="rack-1")),
    "name changed": Case(rules(name="rack-2"), rules(name="rack-1")),
    "provider listed": Case(listed),
    "emergency added": Case(EMERGENCY),
    "emergency taken out": Case(rules(failover=None), EMERGENCY),
    "secondary added": Case(secondary, tried=UNROTATED),
    "secondary taken out": Case(rules(failover=None), secondary, tried=UNROTATED),
    "members exchanged": Case(exchanged, secondary, "always", UNROTATED),
    "members exchanged, state file": Case(exchanged, both(KEPT, secondary), tried=UNROTATED),
    "first member replaced": Case(lambda place: place.manager.update(place.provider(1)), nothing, "always", UNROTATED),
    "one of several": Case(one_of_several("a"), refused="always"),
    "one of several alone": Case(single, one_of_several("a"), "always"),
    "one of several renamed": Case(one_of_several("b"), one_of_several("a"), "always"),
    # policy
    "domain changed": Case(policy(domain="other"), refused="always", signs=False),
    "domain changed, log moved": Case(both(policy(domain="other"), TWO), refused="always", signs=False),
    "domain added": Case(policy(domain="default")),
    "kind added": Case(policy(kinds=["block", "state-root"])),
    "kind exchanged": Case(policy(kinds=["state-root"]), refused="always", signs=False),
    "format added": Case(policy(formats=[FORMAT])),
    "format taken out": Case(policy(formats=[]), policy(formats=[FORMAT]), "always"),
    "format added, log taken out": Case(both(policy(formats=[FORMAT]), NO_LOG), refused="always"),
    "maxAhead changed": Case(policy(maxAhead=1)),
    # seal
    "secret added": Case(secret("one"), refused="always"),
    "secret taken out": Case(
        lambda place: place.document.pop("stateSecret"), secret("one"), "always",
        says="Give this process the stateSecret", mends=secret("one"),
    ),
    "secret exchanged": Case(secret("two"), secret("one"), "always"),
    "secret added, log moved": Case(both(secret("one"), TWO), refused="always"),
    # keys
    "key by its id": Case(key_id),
    "key by its id, log moved": Case(both(key_id, TWO), refused="always"),
    "another key": Case(
        other_key, refused="rotated", key="second",
        says="Name the key that the ring began with", mends=lambda place: place.settings.update(keyLabel="ed25519-key"),
    ),
    "key pinned": Case(pin("ed25519")),
    "another key pinned": Case(
        pin("second"), refused="always", says="Find out who replaced the key", mends=settings(publicKey=None)
    ),
    "current key named": Case(current_key, tried=ROTATED),
    "current key named, rotation taken out": Case(both(current_key, rules(keyRotation=None)), tried=ROTATED),
    # rotation
    "rotation added": Case(ROTATES, tried=UNROTATED),
    "rotation taken out": Case(rules(keyRotation=None), ROTATES, "rotated"),
    "rotation switched off": Case(rules(keyRotation={"enabled": False}), refused="rotated"),
    "rotation taken out, log moved": Case(both(rules(keyRotation=None), TWO), ROTATES, "always"),
    "rotation alone taken out": Case(rules(keyRotation=None), rules(policy=None), "always", ROTATED, ordered=False),
    "rotation alone taken out, log moved": Case(
        both(rules(keyRotation=None), TWO), rules(policy=None), "always", ROTATED, ordered=False
    ),
    "overlap changed": Case(rules(keyRotation={"overlapDays": 7})),
    # the rest
    "cache and queue": Case(rules(maxCacheSize=16, queueSize=16)),
    "requireState": Case(rules(requireState=True)),
    "requireState, log moved": Case(rules(requireState=True, auditLogFile="two/audit.log"), refused="always"),
}  # fmt: skip
PAIRS = [(name, rotated) for name, case in CASES.items() for rotated in case.tried]
TRIED = random.Random(7).sample(PAIRS, len(PAIRS) if FULL else 12)


def created(place: Place) -> hsmcore.KeyManager:
    """A key manager with the document as it is."""
    place.write()
    return hsmcore.create_key_manager(load(place.path, place.name))


async def first_life(place: Place, *, rotates: bool) -> bytes:
    """Sign payload A at position 7. Returns the key that signs at the end."""
    async with created(place) as manager:
        await manager.sign(ordered(7, b"A"))
        if rotates:
            await manager.rotate_key()
        return manager.public_key


async def second_life(place: Place, case: Case, key: bytes) -> None:
    """Sign nothing else at position 7, and with no other key."""
    async with created(place) as manager:
        assert manager.public_key == key
        if case.ordered:
            with pytest.raises(DoubleSign if case.signs else PolicyRefused):
                await manager.sign(ordered(7, b"B"))
        if case.signs:
            assert await manager.verify(ordered(7, b"A"), await manager.sign(ordered(7, b"A")))


async def refusal(life: Coroutine[Any, Any, None]) -> HsmError | None:
    """The error that ends a life."""
    try:
        await life
    except HsmError as error:
        return error
    return None


async def follow(place: Place, case: Case, hint: str, command: Command) -> None:
    """Do what a hint says."""
    more = () if place.name is None else ("--key-manager", place.name)
    if found := re.search(r"`hsmcore policy rebind ([0-9a-f]+) ", hint):
        rebind = ("policy", "rebind", found[1], "--reason", "it is meant")
        assert (await asyncio.to_thread(command, *rebind, *more))[0] == 0
    elif found := re.search(r'"stateFile": "([^"]+)"', hint):
        place.manager["stateFile"] = found[1]
    elif found := re.search(r'"keyId": "([0-9a-f]+)"', hint):
        settings(keyId=found[1], keyLabel=None)(place)
    elif "what `hsmcore state seal` shows" in hint:
        _, shown, _ = await asyncio.to_thread(command, "state", "seal", *more)
        assert (await asyncio.to_thread(command, "state", "seal", "--adopt", shown["digest"], *more))[0] == 0
    else:
        assert case.says, hint
        assert case.says in hint
        case.mends(place)


@one_loop
@pytest.mark.parametrize(("name", "rotated"), TRIED)
async def test_no_edit_signs_twice_or_with_the_replaced_key(
    name, rotated, fresh_token, tmp_path, monkeypatch, capfdbinary
):
    case = CASES[name]
    tokens = [fresh_token(SAME, {"name": "second", "kind": "ed25519"})]
    tokens += [fresh_token(SAME)] if case.tried == UNROTATED else []
    place = Place(tmp_path / "place", tokens, monkeypatch.setenv)
    place.folder.mkdir()
    rules = {"policy": {"kinds": ["block"]}, "auditLogFile": "audit/audit.log", "maxCacheSize": 0}
    place.document = tokens[0].config(**rules)["sequencer"]
    if rotated:
        ROTATES(place)
    case.first(place)
    key = await first_life(place, rotates=rotated)
    if case.key and not rotated:
        key = tokens[0].keys[case.key].public_key
    case.edit(place)
    followed = 0
    while (refused := await refusal(second_life(place, case, key))) is not None:
        followed += 1
        with commands(place.folder, capfdbinary) as command:
            await follow(place, case, str(refused.hint), command)
    assert followed <= 3
    assert bool(followed) == (case.refused == "always" or (case.refused == "rotated" and rotated))
