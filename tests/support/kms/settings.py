"""Shorthands for tests that sign with KMS."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.kms.keys import Key
from tests.support.kms.server import ACCESS_KEY, REGION, SECRET_KEY, KmsServer


def set_credentials(
    patch: pytest.MonkeyPatch, access_key: str | None = ACCESS_KEY, secret_key: str = SECRET_KEY
) -> None:
    """Have the AWS SDK find these credentials and nothing else."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        patch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    if access_key is not None:
        patch.setenv("AWS_ACCESS_KEY_ID", access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)


def config(server: KmsServer, key: Key | str, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
    """A configuration that signs with the key; `settings` goes over the provider's `config`."""
    name = key if isinstance(key, str) else key.id
    given = {"keyId": name, "region": REGION, "endpointUrl": server.url, "concurrency": 8} | (settings or {})
    given = {name: value for name, value in given.items() if value is not None}
    return {"keyManager": {"type": "aws-kms", "config": given, **rules}}
