"""How the audit log is kept: `keyManager.audit`, beside `auditLogFile`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from hsmcore.config.base import Model, Text, Whole, clash


class AuditSigningKey(Model):
    """The Ed25519 key that signs checkpoints: in a file (made if it is not there), or on the token by its CKA_ID. One
    that signs messages must not be used: whoever may have messages signed could have checkpoints signed."""

    file: Annotated[str, Text(4096)] | None = None
    hsm_key_id: (
        Annotated[
            str, Text(128, form=r"([0-9A-Fa-f]{2})+", says="a CKA_ID in hexadecimal, as `hsmcore keys` prints it")
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one(self) -> AuditSigningKey:
        if (self.file is None) == (self.hsm_key_id is None):
            raise clash("must name exactly one of file and hsmKeyId")
        return self


class AuditSettings(Model):
    """`audit`: durability, checkpoints, rotation and retention of the audit log."""

    durability: Literal["fsync", "write", "interval"] = "fsync"
    """When an operation counts as recorded: on the disk, with the kernel, or within `flushIntervalMs`."""
    on_failure: Literal["closed", "open"] = "closed"
    """While the log cannot be written: refuse what would go unrecorded, or go on and record how much was lost."""
    flush_interval_ms: Annotated[int, Whole(1, 60_000)] = 50
    """For durability "interval"."""
    wait_ms: Annotated[int, Whole(1, 3_600_000)] = 10_000
    """How long an operation waits for its record before it fails."""
    checkpoint_every_records: Annotated[int, Whole(1, 100_000_000)] = 10_000
    checkpoint_every_seconds: Annotated[int, Whole(1, 86_400)] = 10
    rotate_bytes: Annotated[int, Whole(1 << 16, 1 << 30)] = 256 << 20
    """When a new file is begun."""
    compress: bool = True
    """Whether full files are compressed (Zstandard)."""
    retain_days: Annotated[int, Whole(1, 36_500)] | None = None
    """How long records are kept at least; their hashes are kept for good. Default: for good."""
    signing_key: AuditSigningKey | None = None
    """Default: a key made in `<auditLogFile>.key`."""
    origin: Annotated[str, Text(200, form=r"[^\s+]+", says="a name without spaces and +")] | None = None
    """The log's name in its checkpoints, such as "example.com/sequencer-1". Default: host name and a random number."""
