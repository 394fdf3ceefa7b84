"""Settings of the audit log: `keyManager.audit`, which goes with `auditLogFile`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from hsmcore.config.base import Model, Text, Whole, as_tuple, clash


class AuditSigningKey(Model):
    """The Ed25519 key that signs checkpoints: in a file (made if it is missing), or on the token by its CKA_ID. It must
    not be a key that signs messages: a caller that has messages signed could have checkpoints signed."""

    PATHS = frozenset({"file"})

    file: Annotated[str, Text(4096)] | None = None
    """The file of the key; made if it is missing."""
    hsm_key_id: (
        Annotated[
            str, Text(128, form=r"([0-9A-Fa-f]{2})+", says="a CKA_ID in hexadecimal, as `hsmcore keys` prints it")
        ]
        | None
    ) = None
    """The CKA_ID of a key on the token of the first member."""

    @model_validator(mode="after")
    def _one(self) -> AuditSigningKey:
        if (self.file is None) == (self.hsm_key_id is None):
            raise clash("must name exactly one of file and hsmKeyId")
        return self


Facility = Literal[
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "audit",
    "alert",
    "clock",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
]
"""In the order of their numbers, 0 to 23 (RFC 5424, table 1)."""


class SyslogTls(Model):
    """Authentication of a receiver at `tls://`, and ours to it."""

    PATHS = frozenset({"certificate_file", "key_file", "ca_file"})

    ca_file: Annotated[str, Text(4096)] | None = None
    """Certificates of the authorities to trust, PEM. Default: those of the system."""
    certificate_file: Annotated[str, Text(4096)] | None = None
    """Our own certificate, PEM, if the receiver asks for one."""
    key_file: Annotated[str, Text(4096)] | None = None
    """Its private key, PEM without a passphrase, if it is not in the same file."""
    server_name: Annotated[str, Text(253, form=r"[A-Za-z0-9.:_-]+", says="a host name or address")] | None = None
    """The name that the receiver's certificate must have. Default: the host of the address."""

    @model_validator(mode="after")
    def _key_of_something(self) -> SyslogTls:
        if self.key_file is not None and self.certificate_file is None:
            raise clash("has keyFile, but no certificateFile that it belongs to")
        return self


class Syslog(Model):
    """A syslog receiver (RFC 5424) to which audit records are copied."""

    address: Annotated[
        str,
        Text(
            1024,
            form=r"unix:///.+|(udp|tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?",
            says="unix:///path of a datagram socket, or udp://, tcp:// or tls:// with host and, if need be, port",
        ),
    ]
    """Ports: 514 for udp (RFC 5426), 601 for tcp (RFC 6587), 6514 for tls (RFC 5425) unless given."""
    facility: Facility = "authpriv"
    """The facility of each message (RFC 5424)."""
    app_name: Annotated[str, Text(48, form=r"[!-~]+", says="1 to 48 printable ASCII characters without spaces")] = (
        "hsmcore"
    )
    """The APP-NAME of each message."""
    enterprise_number: Annotated[int, Whole(1, 2**31 - 1)] = 32473
    """In the name of the structured data; 32473 is reserved for examples (RFC 5612)."""
    max_message_bytes: Annotated[int, Whole(480, 65_507)] = 8192
    """Most bytes of a whole message. For a longer record only its number, time, operation and leaf hash are sent."""
    tls: SyslogTls | None = None
    """Certificates for an address that begins with tls://."""

    @model_validator(mode="after")
    def _tls_where_it_is_used(self) -> Syslog:
        if self.tls is not None and not self.address.startswith("tls:"):
            raise clash("has tls, but address does not begin with tls://")
        return self


class AuditWitness(Model):
    """A witness (C2SP tlog-witness) that cosigns the log's checkpoints: it has seen that the log only grew."""

    PATHS = frozenset({"ca_file"})

    url: Annotated[
        str, Text(1024, form=r"https?://[^\s/?#@]+(/[^\s?#]*)?", says="http:// or https://, a host, and no query")
    ]
    """What stands before `/add-checkpoint`."""
    key: Annotated[
        str,
        Text(
            512,
            form=r"[^\s+]+\+[0-9a-f]{8}\+B[A-P][A-Za-z0-9+/]{42}",
            says="a witness's verifier key, <name>+<key id>+<base64>, of type 4 (cosignatures): a log's key has"
            " another type",
        ),
    ]
    """Its verifier key, as it publishes it."""
    ca_file: Annotated[str, Text(4096)] | None = None
    """Certificates of the authorities to trust at https://, PEM. Default: those of the system."""


class Witnessed(Model):
    """What logs have in common that witnesses cosign."""

    witnesses: Annotated[tuple[AuditWitness, ...], BeforeValidator(as_tuple)] = ()
    """Witnesses that cosign the newest checkpoint, again and again. Their operators have to know the log's verifier
    key."""
    quorum: Annotated[int, Whole(1, 16)] | None = None
    """How many of the witnesses are enough. Default: all."""
    cosign_every_seconds: Annotated[int, Whole(1, 86_400)] = 60
    """How often each witness is asked."""

    @property
    def needed(self) -> int:
        """How many witnesses are enough."""
        return self.quorum or len(self.witnesses)

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Self:
        if len({one.key for one in self.witnesses}) < len(self.witnesses):
            raise clash("names one key in several witnesses: each counts once")
        if (self.quorum or 0) > len(self.witnesses):
            raise clash(f"has a quorum of {self.quorum}, which {len(self.witnesses)} witnesses can never meet")
        return self


class AuditSettings(Witnessed):
    """`audit`: durability, checkpoints, rotation, retention and copies of the audit log."""

    durability: Literal["fsync", "write", "interval"] = "fsync"
    """When an operation counts as recorded: on disk, in the kernel's cache, or within `flushIntervalMs`."""
    on_failure: Literal["closed", "open"] = "closed"
    """While the log cannot be written: refuse operations, or perform them and count the lost records."""
    flush_interval_ms: Annotated[int, Whole(1, 60_000)] = 50
    """For durability "interval"."""
    wait_ms: Annotated[int, Whole(1, 3_600_000)] = 10_000
    """The longest wait of an operation for its record, in milliseconds; then it fails."""
    checkpoint_every_records: Annotated[int, Whole(1, 100_000_000)] = 10_000
    """Records after which a checkpoint is signed."""
    checkpoint_every_seconds: Annotated[int, Whole(1, 86_400)] = 10
    """The longest time between a record and a checkpoint that contains it."""
    rotate_bytes: Annotated[int, Whole(1 << 16, 1 << 30)] = 256 << 20
    """The size at which a new file begins."""
    compress: bool = True
    """Whether full files are compressed (Zstandard)."""
    retain_days: Annotated[int, Whole(1, 36_500)] | None = None
    """The shortest time that records are kept; their hashes are kept forever. Default: forever."""
    signing_key: AuditSigningKey | None = None
    """Default: a key made in `<auditLogFile>.key`."""
    origin: Annotated[str, Text(200, form=r"[^\s+]+", says="a name without spaces and +")] | None = None
    """The log's name in its checkpoints, such as "example.com/sequencer-1". Default: host name and a random number."""
    syslog: Syslog | None = None
    """A further destination of copies, in addition to `cloudWatchLogs`."""
