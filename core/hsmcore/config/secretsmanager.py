"""Secrets from AWS Secrets Manager, with boto3 (extra hsmcore[aws]).

A fetched secret lies in a bytearray, which the caller wipes. Copies that cannot be wiped stay in this process's memory
until that is used again: the response in the buffers of TLS and HTTP, the string or bytes that boto3 makes of it, and
with `key` the JSON object around the secret.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from typing import Any, Final

from hsmcore.base.extras import install
from hsmcore.base.log import muted

MAX_SECRET_BYTES: Final = 4096
_ARN: Final = re.compile(r"arn:[^:]+:secretsmanager:([^:]+):")
_SDK: Final = ("boto3", "botocore", "urllib3")
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 5
_ATTEMPTS: Final = 3
_HINTS: Final = {
    "ResourceNotFoundException": "there is no such secret in this region",
    "AccessDeniedException": "access is denied: allow secretsmanager:GetSecretValue on it, and kms:Decrypt on its key",
    "DecryptionFailure": "its KMS key cannot be used",
    "InvalidRequestException": "it is marked for deletion or cannot be read",
    "UnrecognizedClientException": "the AWS credentials are not valid",
    "InvalidSignatureException": "the AWS credentials are not valid",
    "ExpiredTokenException": "the AWS credentials have expired",
}


class SecretProblem(Exception):
    """Why a secret cannot be had. Holds no value, and is never raised with a context."""


def fetch(secret_id: str, *, key: str | None = None, region: str | None = None) -> bytearray:
    """The current version of a secret, as bytes that the caller wipes. Blocks for up to half a minute.

    `secret_id` is a name or ARN; `key` names a string in the JSON object that the secret is. The region is that of the
    ARN or of the AWS SDK's own configuration unless given. Raises SecretProblem.
    """
    if importlib.util.find_spec("boto3") is None:
        raise SecretProblem(f"boto3 is not installed: {install('aws')}")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    if region is None and (arn := _ARN.match(secret_id)):
        region = arn[1]
    problem = ""
    try:
        limits = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        # A separate session: boto3's default one is not thread-safe.
        client = boto3.session.Session().client("secretsmanager", region_name=region, config=limits)
        try:
            # At level DEBUG the SDK logs whole responses.
            with muted(name for name in [*logging.root.manager.loggerDict] if name.partition(".")[0] in _SDK):
                response = client.get_secret_value(SecretId=secret_id)
        finally:
            client.close()
        return _value(response, key)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        problem = f"{_HINTS.get(code, 'AWS refuses')} ({code})"
    except BotoCoreError as error:
        problem = _of_sdk(type(error).__name__)
    raise SecretProblem(problem)


def _of_sdk(name: str) -> str:
    """Return the problem of an SDK's error by its class: its own text may quote a response."""
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return f"there are no AWS credentials ({name}): give the process a role, or set AWS_PROFILE"
    if name == "NoRegionError":
        return "the AWS region is not known: give region, the secret's ARN, or AWS_REGION"
    return f"AWS Secrets Manager cannot be reached ({name})"


def _value(response: dict[str, Any], key: str | None) -> bytearray:
    text = response.get("SecretString")
    value: bytes | str = text if isinstance(text, str) else response.get("SecretBinary") or b""
    problem = ""
    if key is not None:
        try:
            inner = json.loads(value)
        except ValueError:
            inner = None
        if not isinstance(inner, dict):
            problem = f"it is no JSON object, so it has no key {key!r}"
        elif not isinstance(inner.get(key), str):
            problem = f"it has no string under the key {key!r}"
        else:
            value = inner[key]
    if problem:
        raise SecretProblem(problem)
    found = bytearray(value.encode() if isinstance(value, str) else value)
    if len(found) > MAX_SECRET_BYTES:
        found[:] = bytes(len(found))
        raise SecretProblem(f"it is longer than {MAX_SECRET_BYTES} bytes")
    return found
