"""The probe of a key in AWS KMS: credentials, endpoint, key, public key, one signature."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Final

from hsmcore._native import verify
from hsmcore.base.extras import install
from hsmcore.base.log import printable
from hsmcore.doctor.common import UNPROVEN_HINT, check_configuration, compare_public_key
from hsmcore.doctor.report import Identity, Step, fail, ok, skipped, warn
from hsmcore.doctor.subject import CheckBegun, Subject
from hsmcore.errors.statuses import STATUSES
from hsmcore.providers.kms.forms import FORMS, Form, raw_public_key, raw_signature
from hsmcore.providers.kms.settings import AwsKmsSettings

_PLAN: Final = ("sdk", "credentials", "endpoint", "key", "public-key", "signature")

_KEY_HINTS: Final = {
    "Disabled": "Enable it: aws kms enable-key.",
    "PendingDeletion": "It is about to be deleted: aws kms cancel-key-deletion, if that was not meant.",
    "PendingImport": "Import its key material first.",
    "Unavailable": "Its custom key store is not connected.",
}
_DENIED: Final = "Give the signing role kms:DescribeKey, kms:GetPublicKey and kms:Sign on this key, and nothing else."


class _Stop(Exception):
    """Carries the failed step that ends the probe."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.name)
        self.step = step


def probe_kms(subject: Subject) -> Generator[Step | CheckBegun, None, Identity | None]:
    """Yield all steps of one KMS key. Each request has the check's timeout and is not repeated."""
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
    with closing((yield from _client(subject, settings))) as client:
        yield from _of_key(client, settings)


def _of_key(client: Any, settings: AwsKmsSettings) -> Iterator[Step | CheckBegun | Identity]:
    yield CheckBegun("key")
    described = _described(client, settings)
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


def _client(subject: Subject, settings: AwsKmsSettings) -> Generator[Step | CheckBegun, None, Any]:
    yield CheckBegun("sdk")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise _Stop(fail("sdk", "boto3 is not installed", f"Install it with: {install('aws')}")) from None
    yield ok("sdk", f"boto3 {boto3.__version__}")
    yield CheckBegun("credentials")
    seconds = subject.options.timeout
    session = boto3.Session(region_name=settings.region)
    try:
        credentials = session.get_credentials()
    except BotoCoreError as error:
        raise _Stop(fail("credentials", _said(error), "Correct the AWS SDK's settings.")) from None
    if credentials is None:
        hint = "Give the process a role, a profile (AWS_PROFILE) or keys; see the AWS SDK's credential chain."
        raise _Stop(fail("credentials", "the AWS SDK finds none", hint))
    if session.region_name is None:
        raise _Stop(fail("credentials", "no region is configured", "Set region, or AWS_REGION."))
    yield ok("credentials", f"from {credentials.method}, region {session.region_name}", method=credentials.method)
    limits = Config(connect_timeout=seconds, read_timeout=seconds, retries={"total_max_attempts": 1})
    return session.client("kms", config=limits, endpoint_url=settings.endpoint_url)


def _described(client: Any, settings: AwsKmsSettings) -> list[Step]:
    begun = time.monotonic()
    answer = _ask("key", client.describe_key, KeyId=settings.key_id)
    milliseconds = (time.monotonic() - begun) * 1e3
    key = answer["KeyMetadata"]
    state, usage = key.get("KeyState", "?"), key.get("KeyUsage", "?")
    spec = key.get("KeySpec") or key.get("CustomerMasterKeySpec", "?")
    data = {"arn": key.get("Arn"), "keyState": state, "keySpec": spec, "keyUsage": usage, "origin": key.get("Origin")}
    reached = ok("endpoint", f"{client.meta.endpoint_url} answers in {milliseconds:.0f} ms")
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


def _public_key(client: Any, settings: AwsKmsSettings, form: Form) -> tuple[Step, bytes]:
    der = bytes(_ask("public-key", client.get_public_key, KeyId=settings.key_id)["PublicKey"])
    key = raw_public_key(form, der)
    if key is None:
        text = f"KMS gave {len(der)} bytes that are no {form.algorithm} key"
        raise _Stop(fail("public-key", text, "Look at the key."))
    step = compare_public_key(form.algorithm, key, settings.public_key)
    if step.outcome == "fail":
        raise _Stop(step)
    return step, key


def _signature(client: Any, settings: AwsKmsSettings, form: Form, public_key: bytes) -> Iterator[Step]:
    message = b"hsmcore doctor"
    begun = time.monotonic()
    answer = _ask(
        "signature",
        client.sign,
        KeyId=settings.key_id,
        Message=message,
        MessageType="RAW",
        SigningAlgorithm=form.signing,
    )
    milliseconds = (time.monotonic() - begun) * 1e3
    signature = raw_signature(form, bytes(answer["Signature"]))
    if signature is None or not verify(form.algorithm, public_key, message, signature):
        raise _Stop(fail("signature", "the signature does not verify", STATUSES["SIGNATURE_INVALID"].hint))
    yield ok("signature", f"verified in software, {milliseconds:.0f} ms", milliseconds=round(milliseconds))
    if milliseconds > 1000:
        yield warn(
            "latency", f"one signature took {milliseconds:.0f} ms", "Use an endpoint in the region of the process."
        )


def _ask(step: str, call: Any, **arguments: Any) -> dict[str, Any]:
    """Make one request. Raises _Stop, with a hint, if it fails."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError

    try:
        answer: dict[str, Any] = call(**arguments)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "?"))
        hint = _DENIED if "Denied" in code else "Check keyId and region." if "NotFound" in code else ""
        raise _Stop(fail(step, _said(error), hint, code=code)) from None
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        hint = "Check region, VPC endpoint, security groups and proxy."
        raise _Stop(fail("endpoint", _said(error), hint)) from None
    except BotoCoreError as error:
        raise _Stop(fail(step, _said(error), "Correct the AWS SDK's settings, or try again.")) from None
    return answer


def _said(error: Exception) -> str:
    return printable(str(error).removesuffix("."))
