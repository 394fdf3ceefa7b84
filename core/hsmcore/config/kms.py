"""AWS KMS."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from hsmcore.config.base import EndpointUrl, Text, Whole, clash
from hsmcore.config.pkcs11 import KeyPin, Region, VerifySignatures


class AwsKmsSettings(KeyPin):
    """A signing key in AWS KMS, by id, ARN or alias; credentials come from the AWS SDK's own chain."""

    key_id: Annotated[str, Text(2048)]
    region: Region | None = None
    """Default: the AWS SDK's own settings, or what a key ARN says."""
    endpoint_url: EndpointUrl | None = None
    """Another endpoint than the region's public one, such as that of a VPC endpoint."""
    concurrency: Annotated[int, Whole(1, 1024)] = 64
    """Requests to KMS at once, each on a connection of its own."""
    connect_timeout_ms: Annotated[int, Whole(1, 60_000)] = 2000
    verify_signatures: VerifySignatures = "sample"

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
