"""The provider AWS KMS, and how its key ids are written."""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from pydantic import model_validator

from hsmcore.config.base import EndpointUrl, Text, Whole, clash
from hsmcore.config.descriptor import ProviderDescriptor
from hsmcore.config.pkcs11 import KeyPin, Region, VerifySignatures
from hsmcore.config.secret import AWS_VARIABLES

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MULTI_REGION: Final = re.compile(r"mrk-[0-9a-f]{32}")


class AwsKmsSettings(KeyPin):
    """A signing key in AWS KMS, by id, ARN or alias; credentials come from the AWS SDK's own chain."""

    key_id: Annotated[str, Text(2048)]
    """The key: its id, ARN or alias."""
    region: Region | None = None
    """Default: the AWS SDK's own settings, or the region of a key ARN."""
    endpoint_url: EndpointUrl | None = None
    """Another endpoint than the region's public one, such as that of a VPC endpoint."""
    concurrency: Annotated[int, Whole(1, 1024)] = 64
    """Requests to KMS at once, each on its own connection."""
    max_per_second: Annotated[int, Whole(1, 1_000_000)] | None = None
    """Signing requests to KMS in a second, repeats included: a share of the account's quota. Default: no limit."""
    connect_timeout_ms: Annotated[int, Whole(1, 60_000)] = 2000
    """The longest time to make a connection."""
    verify_signatures: VerifySignatures = "sample"
    """How many signatures are verified in software before they are handed out."""

    @model_validator(mode="after")
    def _one_region(self) -> AwsKmsSettings:
        if self.region is not None and self.arn_region not in (None, self.region):
            raise clash(f"region is {self.region}, but the ARN in keyId says {self.arn_region}")
        return self

    @property
    def arn_region(self) -> str | None:
        """The region that an ARN in keyId names."""
        parts = self.key_id.split(":")
        return parts[3] if len(parts) >= 6 and parts[0] == "arn" and parts[3] else None

    @property
    def name_part(self) -> object:
        return self.key_id

    @property
    def place_part(self) -> object:
        return self.endpoint_url or self.region or self.arn_region

    @property
    def key_alias(self) -> str | None:
        return self.key_id if "alias/" in self.key_id else None

    def pinned(self, key_id: str, public_key: str, algorithm: str, *, configured: bool) -> Self:
        del configured  # an alias may already point to another key, so the first key is named by its id too
        return self.model_copy(
            update={
                "key_id": name_of(bytes.fromhex(key_id)) or self.key_id,
                "region": self.region or self.arn_region,
                "public_key": public_key,
                "algorithm": algorithm,
            }
        )


PROVIDER: Final = ProviderDescriptor(
    "aws-kms",
    AwsKmsSettings,
    "Install what signing with AWS KMS needs.",
    extra="aws",
    note_bytes=4_000,
    patience_ms=2000,  # a service far away
    member="hsmcore.providers.kms.member:KmsMember",
    probe="hsmcore.providers.kms.probe:probe_kms",
    secret_variables=AWS_VARIABLES,
)


def identity_of(arn: str) -> str | None:
    """Return a key's id in hexadecimal, as the key ring has it, from its ARN or KMS id; None if it is neither."""
    name = arn.rpartition("/")[2]
    if _UUID.fullmatch(name):
        return name.replace("-", "")
    return name.encode().hex() if _MULTI_REGION.fullmatch(name) else None


def name_of(identity: bytes) -> str | None:
    """Return the KMS id of an `identity_of`; None if it is not such an id."""
    if len(identity) == 16:
        text = identity.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    name = identity.decode("ascii", "replace")
    return name if _MULTI_REGION.fullmatch(name) else None
