"""The probe of a key in AWS KMS: credentials, endpoint, key, public key, one signature; by the client that signs."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, Final, Self, TypeVar

from hsmcore._native import verify
from hsmcore.base.log import printable
from hsmcore.doctor.common import check_configuration
from hsmcore.doctor.public_keys import UNPROVEN_HINT, compare_public_key
from hsmcore.doctor.report import Identity, Step, fail, failed, ok, skipped, warn
from hsmcore.doctor.subject import CheckBegun, Subject
from hsmcore.errors import HsmError
from hsmcore.errors.statuses import STATUSES
from hsmcore.providers.kms.aws import AwsSession, Surroundings, require_installed
from hsmcore.providers.kms.forms import FORMS, Form, decoded, raw_public_key, raw_signature
from hsmcore.providers.kms.settings import AwsKmsSettings
from hsmcore.providers.kms.sigv4 import AwsCredentials

T = TypeVar("T")

_PLAN: Final = ("sdk", "credentials", "endpoint", "key", "public-key", "signature")

_KEY_HINTS: Final = {
    "Disabled": "Enable it: aws kms enable-key.",
    "PendingDeletion": "It is about to be deleted: aws kms cancel-key-deletion, if that was not meant.",
    "PendingImport": "Import its key material first.",
    "Unavailable": "Its custom key store is not connected.",
}


class _Stop(Exception):
    """Carries the failed step that ends the probe."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.name)
        self.step = step


def probe_kms(subject: Subject) -> Generator[Step | CheckBegun, None, Identity | None]:
    """Yield all steps of one KMS key. Each request has the check's timeout; what KMS throttles is repeated in it."""
    done: list[str] = []
    identity: Identity | None = None
    try:
        for event in _steps(subject):
            if isinstance(event, Identity):
                identity = event
                continue
            if isinstance(event, Step):
                done.append(event.name)
            yield event
    except _Stop as stop:
        done.append(stop.step.name)
        yield stop.step
        yield from (skipped(name, f"needs {stop.step.name}") for name in _PLAN if name not in done)
    return identity


def _steps(subject: Subject) -> Iterator[Step | CheckBegun | Identity]:
    settings: AwsKmsSettings = subject.settings
    for step in check_configuration(subject, None):
        if step.outcome == "fail":
            raise _Stop(step)
        yield step
    surroundings, client = yield from _client(subject, settings)
    with client:
        yield from _of_key(client, settings, surroundings)


def _of_key(
    client: _Client, settings: AwsKmsSettings, surroundings: Surroundings
) -> Iterator[Step | CheckBegun | Identity]:
    yield CheckBegun("key")
    described = _described(client, settings, surroundings)
    yield from described
    spec = str(described[0].data["keySpec"])
    form = FORMS[spec]
    yield CheckBegun("public-key")
    step, public_key = _public_key(client, settings, form)
    yield step
    yield CheckBegun("signature")
    yield from _signature(client, settings, form, public_key)
    yield Identity(
        fixed=True,
        algorithm=form.algorithm,
        key_id=described[0].data["arn"],
        label=settings.key_id,
        public_key=public_key.hex(),
        address=step.data.get("address"),
    )


class _Client:
    """The client of the member, for one request at a time. `seconds`: the timeout of each."""

    def __init__(
        self, settings: AwsKmsSettings, found: tuple[Surroundings, AwsCredentials], member: str, seconds: float
    ) -> None:
        from hsmcore.providers.kms.client import connect  # it needs httptools

        self._client = connect(settings, *found, member)
        self._seconds = seconds
        self._runner = asyncio.Runner()
        self._again = ""
        self._client.retried = self._note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._runner:
            self._runner.run(self._client.close())

    @property
    def ahead(self) -> float:
        """Seconds by which KMS's clock is ahead of this machine's, if that matters."""
        return self._client.ahead

    def ask(self, step: str, operation: str, **request: Any) -> dict[str, Any]:
        """Make one request. Raises _Stop if it fails."""
        self._again = ""
        try:
            return self._runner.run(self._within(self._client.call(operation, request)))
        except HsmError as error:
            found = failed("endpoint" if error.status == "TOKEN_LOST" else step, error)
            if (name := re.search(r"\((\w+)\)\.$", str(error.args[0]))) is not None:
                found = found.model_copy(update={"data": {**found.data, "code": name[1]}})
            raise _Stop(found) from None
        except TimeoutError:
            said = f"kms:{operation}: no answer within {self._seconds:g} s"
            if self._again:
                raise _Stop(fail(step, f"{said} but {self._again}", STATUSES["BUSY"].hint, code=self._again)) from None
            raise _Stop(fail("endpoint", said, STATUSES["TOKEN_LOST"].hint)) from None

    async def _within(self, work: Coroutine[Any, Any, T]) -> T:
        async with asyncio.timeout(self._seconds):
            return await work

    def _note(self, name: str) -> None:
        self._again = name


def _client(
    subject: Subject, settings: AwsKmsSettings
) -> Generator[Step | CheckBegun, None, tuple[Surroundings, _Client]]:
    yield CheckBegun("sdk")
    name = subject.provider.name
    try:
        require_installed(name, subject.provider.install_hint)
        import boto3
    except HsmError as error:
        raise _Stop(failed("sdk", error)) from None
    yield ok("sdk", f"boto3 {boto3.__version__}")
    yield CheckBegun("credentials")
    session = AwsSession(settings, name)
    try:
        found = surroundings, _ = session.open()
    except HsmError as error:
        raise _Stop(failed("credentials", error)) from None
    said = f"from {session.method}, region {surroundings.region}"
    yield ok("credentials", said, method=session.method)
    return surroundings, _Client(settings, found, name, subject.options.timeout)


def _described(client: _Client, settings: AwsKmsSettings, surroundings: Surroundings) -> list[Step]:
    begun = time.monotonic()
    key = client.ask("key", "DescribeKey", KeyId=settings.key_id).get("KeyMetadata")
    milliseconds = (time.monotonic() - begun) * 1e3
    key = key if isinstance(key, dict) else {}
    state, usage = key.get("KeyState", "?"), key.get("KeyUsage", "?")
    spec = key.get("KeySpec") or key.get("CustomerMasterKeySpec", "?")
    data = {"arn": key.get("Arn"), "keyState": state, "keySpec": spec, "keyUsage": usage, "origin": key.get("Origin")}
    reached = ok("endpoint", f"{surroundings.url} answers in {milliseconds:.0f} ms")
    if client.ahead:
        off = f"this machine's clock and that of {surroundings.url} differ by {abs(client.ahead):.0f} s"
        reached = warn("endpoint", off, "Correct this machine's clock. hsmcore signs its requests with KMS's time.")
    found = f"{data['arn']}, {spec}, {usage}, {state}"
    if state != "Enabled":
        hint = _KEY_HINTS.get(state, "Look at the key in KMS.")
        raise _Stop(fail("key", f"{found}: it is not enabled", hint, **data))
    if usage != "SIGN_VERIFY":
        raise _Stop(fail("key", f"{found}: it is not for signing", "Use a key whose KeyUsage is SIGN_VERIFY.", **data))
    if spec not in FORMS:
        hint = f"Use a key whose KeySpec is one of {', '.join(FORMS)}."
        raise _Stop(fail("key", f"{found}: it is of a kind that hsmcore does not sign with", hint, **data))
    if settings.algorithm not in (None, FORMS[spec].algorithm):
        hint = "Correct algorithm, or name another key."
        raise _Stop(fail("key", f"{found}, and algorithm says {settings.algorithm}", hint, **data))
    return [ok("key", found, **data), reached, evidence_of(str(data["origin"]))]


def evidence_of(origin: str) -> Step:
    """Warn of a key that was not made in the service. It gives no certificate: all of this is its own word."""
    if origin in ("AWS_KMS", "AWS_CLOUDHSM"):
        return ok("evidence", f"KMS says that the key was made in it ({origin}); it gives no certificate of that")
    said = "the key's material was imported" if origin == "EXTERNAL" else f"KMS names the origin {printable(origin)}"
    return warn("evidence", f"{said}: nothing shows that the key is nowhere else", UNPROVEN_HINT)


def _public_key(client: _Client, settings: AwsKmsSettings, form: Form) -> tuple[Step, bytes]:
    der = decoded(client.ask("public-key", "GetPublicKey", KeyId=settings.key_id).get("PublicKey"))
    key = raw_public_key(form, der)
    if key is None:
        text = f"KMS gave {len(der)} bytes that are no {form.algorithm} key"
        raise _Stop(fail("public-key", text, "Look at the key."))
    step = compare_public_key(form.algorithm, key, settings.public_key)
    if step.outcome == "fail":
        raise _Stop(step)
    return step, key


def _signature(client: _Client, settings: AwsKmsSettings, form: Form, public_key: bytes) -> Iterator[Step]:
    message = b"hsmcore doctor"
    begun = time.monotonic()
    answer = client.ask(
        "signature",
        "Sign",
        KeyId=settings.key_id,
        Message=base64.b64encode(message).decode(),
        MessageType="RAW",
        SigningAlgorithm=form.signing,
    )
    milliseconds = (time.monotonic() - begun) * 1e3
    signature = raw_signature(form, decoded(answer.get("Signature")))
    if signature is None or not verify(form.algorithm, public_key, message, signature):
        raise _Stop(fail("signature", "the signature does not verify", STATUSES["SIGNATURE_INVALID"].hint))
    yield ok("signature", f"verified in software, {milliseconds:.0f} ms", milliseconds=round(milliseconds))
    if milliseconds > 1000:
        yield warn(
            "latency", f"one signature took {milliseconds:.0f} ms", "Use an endpoint in the region of the process."
        )
