"""Checks AWS Signature Version 4 as the AWS general reference describes it; shares no code with what signs."""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import re
from collections.abc import Mapping

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>(?P<day>\d{8})/(?P<region>[^/]+)/kms/aws4_request), "
    r"?SignedHeaders=(?P<signed>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


TOLERANCE = 300.0
"""Seconds by which a request's time may differ from the service's."""


def refusal(
    secrets: Mapping[str, str], region: str, headers: Mapping[str, str], body: bytes, now: float | None = None
) -> str | None:
    """Which error of AWS the request earns; None if its signature is good. Header names are in small letters. `now` is
    the service's time; None: any time will do."""
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None:
        return "MissingAuthenticationTokenException"
    if found["key"] not in secrets:
        return "UnrecognizedClientException"
    names = found["signed"].split(";")
    if found["region"] != region or not {"host", "x-amz-date", "x-amz-target"} <= set(names):
        return "IncompleteSignatureException"
    values = (f"{name}:{headers.get(name, '').strip()}" for name in names)
    digest = hashlib.sha256(body).hexdigest()
    canonical = "\n".join(["POST", "/", "", *values, "", found["signed"], digest])
    moment = headers.get("x-amz-date", "")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{found['scope']}\n{digest}"
    signature = hmac.digest(_signing_key(secrets[found["key"]], found["day"], region), text.encode(), "sha256").hex()
    if not moment.startswith(found["day"]) or not hmac.compare_digest(signature, found["signature"]):
        return "InvalidSignatureException"
    signed = datetime.datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()
    if now is not None and abs(now - signed) > TOLERANCE:
        return "InvalidSignatureException"
    return None


@functools.cache
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "kms", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
