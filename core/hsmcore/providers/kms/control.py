"""Management of KMS keys: make, list, disable, schedule for deletion."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from hsmcore.base.keyring import canonical
from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError, KeyNotFound
from hsmcore.members.control import ControlError, Deactivation, KeyRecord
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.faults import no_such_key
from hsmcore.providers.kms.forms import FORMS, SPEC_OF
from hsmcore.providers.kms.keys import KmsKeys
from hsmcore.providers.kms.settings import identity_of, name_of

APPEAR_SECONDS: Final = 20.0
"""Seconds until every part of KMS knows a new key, at most; KMS developer guide, "Eventual consistency"."""
DELETION_DAYS: Final = 30
"""The longest waiting period that KMS has, and its default. Until its end the deletion can be cancelled."""


class KmsControl:
    """A KeyAdmin (see base.py). Every method but `list_keys` needs rights that a signer should not have."""

    def __init__(self, keys: KmsKeys, member: str) -> None:
        self._keys, self._member = keys, member

    async def list_keys(self) -> list[KeyRecord]:
        """Return the account's keys for signatures, without public keys, by label (alias or else description), then
        id."""
        labels: dict[str, str] = {}
        for alias in await self._all("ListAliases", "Aliases"):
            labels.setdefault(str(alias.get("TargetKeyId")), str(alias.get("AliasName")).removeprefix("alias/"))
        records = []
        for entry in await self._all("ListKeys", "Keys"):
            name = str(entry.get("KeyId"))
            described = (await self._keys.ask("DescribeKey", {"KeyId": name})).get("KeyMetadata", {})
            form = FORMS.get(str(described.get("KeySpec")))
            identity = identity_of(name)
            if described.get("KeyUsage") == "SIGN_VERIFY" and identity is not None:
                can_sign = described.get("KeyState") == "Enabled"
                algorithm = None if form is None else form.algorithm
                # A key whose creation was interrupted has a description but no alias.
                label = labels.get(name) or str(described.get("Description") or "")
                records.append(KeyRecord(identity, label, algorithm, None, can_sign, True, False))
        return sorted(records, key=lambda record: (record.label, record.id))

    async def _all(self, operation: str, member: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        request: dict[str, Any] = {}
        while True:
            answer = await self._keys.ask(operation, request)
            found += answer.get(member, [])
            marker = answer.get("NextMarker")
            if not answer.get("Truncated") or not marker:
                return found
            request = {"Marker": marker}

    async def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        """Make a key with an alias. KMS chooses the id, and no key is extractable."""
        del key_id, extractable
        made = await self._keys.ask(
            "CreateKey",
            {
                "KeySpec": SPEC_OF[algorithm],
                "KeyUsage": "SIGN_VERIFY",
                "Description": label,
                "Tags": [{"TagKey": "created-by", "TagValue": "hsmcore"}],
            },
        )
        arn = str(made.get("KeyMetadata", {}).get("Arn"))
        identity = identity_of(arn)
        if identity is None:
            raise ControlError("kms:CreateKey named no key", member=self._member)
        alias = re.sub(r"[^A-Za-z0-9/_-]", "-", label.removeprefix("alias/"))
        try:
            await self._keys.ask("CreateAlias", {"AliasName": f"alias/{alias}", "TargetKeyId": arn})
        except HsmError as error:
            get_logger().warning("the new key has no alias", member=self._member, key=identity, error=str(error))
        key = await self._appeared(arn)
        return KeyRecord(identity, alias, algorithm, key, True, True, False)

    async def _appeared(self, arn: str) -> bytes:
        loop = asyncio.get_running_loop()
        until = loop.time() + APPEAR_SECONDS
        pause = 0.05
        while True:
            try:
                return (await self._keys.find(arn)).public_key
            except KeyNotFound:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def deactivate(self, key_id: str) -> Deactivation:
        """Disable the key: from now on KMS refuses every request to sign with it."""
        await self._keys.ask("DisableKey", {"KeyId": self._name(key_id)})
        return Deactivation(canonical(key_id), True)

    async def destroy(self, key_id: str) -> None:
        """Schedule the key for deletion in DELETION_DAYS; until then that can be cancelled. It signs no more.
        Idempotent."""
        name = self._name(key_id)
        described = (await self._keys.ask("DescribeKey", {"KeyId": name})).get("KeyMetadata", {})
        if described.get("KeyState") != "PendingDeletion":
            await self._keys.ask("ScheduleKeyDeletion", {"KeyId": name, "PendingWindowInDays": DELETION_DAYS})

    async def move_alias(self, alias: str, key_id: str) -> None:
        """Point an alias at another key. Every client that signs or verifies by the alias follows."""
        name = "alias/" + alias.partition("alias/")[2]
        await self._keys.ask("UpdateAlias", {"AliasName": name, "TargetKeyId": self._name(key_id)})

    def _name(self, key_id: str) -> str:
        try:
            name = name_of(bytes.fromhex(key_id))
        except ValueError:
            name = None
        if name is None:
            raise no_such_key(key_id)
        return name
