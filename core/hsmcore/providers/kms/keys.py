"""The keys of one KMS member: found, proven, used for signatures, and proven again after an outage."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from hsmcore._native import Digest, digest_of, verify
from hsmcore.errors import (
    AlgorithmUnsupported,
    HsmError,
    KeyMismatch,
    KeyNotFound,
    KeyUnusable,
    MemberDown,
    PublicKeyMissing,
    SignatureMalformed,
)
from hsmcore.providers.kms.client import Attempt, KmsClient
from hsmcore.providers.kms.forms import FORMS, MAX_RAW_MESSAGE, Form, decoded, raw_public_key, raw_signature
from hsmcore.providers.kms.settings import identity_of

CALL_SECONDS: Final = 30.0
"""Timeout, in seconds, of every operation except a signature for a caller, retries included."""
PROOF: Final = b"hsmcore key test"  # as the native core
MAX_WRONG: Final = 4
"""Wrong signatures after which a key is another one than its public key says; as HSM_MAX_WRONG."""


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A key that was proven. `id` is its KMS id in hexadecimal."""

    arn: str
    id: str
    form: Form
    public_key: bytes


class KmsKeys:
    """The engine's back end, and its keys."""

    def __init__(self, client: KmsClient, concurrency: int, member: str) -> None:
        self.concurrency = concurrency
        self._client, self._member = client, member
        self.by_index: dict[int, KmsKey] = {}
        self._attempts: WeakKeyDictionary[asyncio.Task[Any] | None, Attempt] = WeakKeyDictionary()
        self.retired: Callable[[int], bool] = lambda _index: False
        """Returns whether a key was retired."""

    async def sign(self, key: int, message: bytes | Digest) -> bytes:
        attempt = self._attempts[asyncio.current_task()] = Attempt()
        return await self._sign(self.by_index[key], message, attempt)

    def unsigned(self, call: asyncio.Task[bytes]) -> bool:
        attempt = self._attempts.get(call)
        return attempt is None or attempt.unsigned  # none: it has not begun

    async def _sign(self, held: KmsKey, message: bytes | Digest, attempt: Attempt | None = None) -> bytes:
        kind = "RAW"
        if isinstance(message, Digest) or (len(message) > MAX_RAW_MESSAGE and held.form.order):
            kind, message = "DIGEST", digest_of(message)
        answer = await self._client.call(
            "Sign",
            {
                "KeyId": held.arn,
                "Message": base64.b64encode(message).decode(),
                "MessageType": kind,
                "SigningAlgorithm": held.form.signing,
            },
            attempt,
        )
        if not _names(answer, held.arn):
            mismatch = KeyMismatch("kms:Sign answered for another key", call="kms:Sign", member=self._member)
            mismatch.maybe_signed = True
            raise mismatch
        signature = raw_signature(held.form, decoded(answer.get("Signature")))
        if signature is None:
            raise SignatureMalformed("kms:Sign returned no signature of this key's form", member=self._member)
        return signature

    async def find(self, name: str) -> KmsKey:
        """Find the key of an id, ARN or alias, if it can sign now. Raises KeyNotFound, KeyUnusable,
        AlgorithmUnsupported, PublicKeyMissing."""
        described = (await self.ask("DescribeKey", {"KeyId": name})).get("KeyMetadata")
        described = described if isinstance(described, dict) else {}
        arn, state, usage = described.get("Arn"), described.get("KeyState"), described.get("KeyUsage")
        spec = described.get("KeySpec") or described.get("CustomerMasterKeySpec")
        identity = identity_of(arn) if isinstance(arn, str) else None
        if not isinstance(arn, str) or identity is None:
            raise KeyNotFound(f"kms:DescribeKey named no key for {name!r}", member=self._member)
        if state != "Enabled":
            hint = "Enable the key in KMS or cancel its deletion, or sign with another key."
            raise KeyUnusable(f"key {name!r} is {state}", member=self._member, hint=hint)
        if usage != "SIGN_VERIFY":
            hint = "Make a key for SIGN_VERIFY: the usage of a key cannot be changed."
            raise KeyUnusable(f"key {name!r} is for {usage}", member=self._member, hint=hint)
        form = FORMS.get(spec) if isinstance(spec, str) else None
        if form is None:
            hint = f"Use a key of one of these specs: {', '.join(FORMS)}."
            raise AlgorithmUnsupported(f"key {name!r} is of spec {spec}", member=self._member, hint=hint)
        return KmsKey(arn, identity, form, await self._public_key(arn, form))

    async def prove(self, key: KmsKey) -> None:
        """Make a signature and verify it here: the public key fits, and the policy allows signing."""
        for _ in range(MAX_WRONG):
            # Meaningless and random, so that it cannot pass for a message of the application.
            message = PROOF + secrets.token_bytes(32)
            async with self._within("Sign"):
                signature = await self._sign(key, message)
            if verify(key.form.algorithm, key.public_key, message, signature):
                return
        text = f"key {key.arn} makes signatures that its public key does not verify"
        raise KeyMismatch(text, call="kms:Sign", member=self._member)

    async def _public_key(self, arn: str, form: Form) -> bytes:
        answer = await self.ask("GetPublicKey", {"KeyId": arn})
        algorithms = answer.get("SigningAlgorithms")
        if not isinstance(algorithms, list) or form.signing not in algorithms:
            raise AlgorithmUnsupported(f"key {arn} does not sign with {form.signing}", member=self._member)
        if not _names(answer, arn):
            raise KeyMismatch(f"kms:GetPublicKey answered for another key than {arn}", member=self._member)
        public_key = raw_public_key(form, decoded(answer.get("PublicKey")))
        if public_key is None:
            hint = "Check endpointUrl: this is not what AWS KMS returns."
            raise PublicKeyMissing(f"kms:GetPublicKey returned no {form.algorithm} key", member=self._member, hint=hint)
        return public_key

    async def prove_again(self) -> None:
        """Compare every key that may sign with what it was. Raises KeyMismatch, or the error of a request."""
        for held in [held for index, held in self.by_index.items() if not self.retired(index)]:
            try:
                public_key = await self._public_key(held.arn, held.form)
            except (AlgorithmUnsupported, PublicKeyMissing) as error:
                raise KeyMismatch(f"key {held.arn} is another one than before", member=self._member) from error
            except (KeyUnusable, KeyNotFound):
                continue  # it cannot sign; its requests get that error
            if public_key != held.public_key:
                raise KeyMismatch(f"key {held.arn} is another one than before", member=self._member)

    async def ask(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call any operation, within CALL_SECONDS."""
        async with self._within(operation):
            return await self._client.call(operation, request)

    @asynccontextmanager
    async def _within(self, operation: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                yield
        except TimeoutError as error:
            if isinstance(error, HsmError):
                raise
            text = f"kms:{operation} did not succeed within {CALL_SECONDS:g} s"
            raise MemberDown(text, call=f"kms:{operation}", member=self._member) from None


def _names(answer: dict[str, Any], arn: str) -> bool:
    """Return whether an answer is about that key. AWS returns the ARN, as documented; an emulator may return the id."""
    named = answer.get("KeyId")
    return isinstance(named, str) and named in (arn, arn.rpartition("/")[2])
