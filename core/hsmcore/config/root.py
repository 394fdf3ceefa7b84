"""The key manager's configuration and the document around it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

import orjson
from pydantic import (
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import core_schema

from hsmcore.base.receipt import LevelName
from hsmcore.config.audit import AuditSettings
from hsmcore.config.base import Model, Text, Whole, clash, is_placeholder, located
from hsmcore.config.failover import CloudWatchLogs, Failover, require_lasting
from hsmcore.config.fleet import Fleet
from hsmcore.config.gateway import Gateway, require_keys
from hsmcore.config.monitoring import Monitoring
from hsmcore.config.placed import LogVariables, StateVariables
from hsmcore.config.policy import BATCH_ROOT, KEY_SET, MOST_ROOT_BYTES, Batching, Policy
from hsmcore.config.providers import Provider, all_members
from hsmcore.config.publish import Publish
from hsmcore.config.rotation import KeyRotation, Notices, StateBackup
from hsmcore.config.secret import AWS_VARIABLES, Secret
from hsmcore.errors import ConfigFault, ConfigurationError

SINGLE = "default"
"""The name of a key manager that stands alone, at `keyManager`."""
STATE_FILE = "hsmcore-state.db"
"""The store that all configurations of a folder shared before each got its own."""
BESIDE_SEVERAL = ("auditLogFile", "audit", "cloudWatchLogs")
"""The keys of a key manager that stand once, at the level of `keyManagers`, where there are several."""
MAX_MESSAGE_BYTES = 1_048_575
MAX_QUEUE_SIZE = 65_536
# The rings are one mapping of queueSize * maxMessageBytes: a larger one is a mistake.
MAX_RING_BYTES = 4 << 30
_PROVIDER: Final = tuple(Provider.model_fields)

T = TypeVar("T")


def default_state() -> Path:
    """hsmcore's folder under the user's state directory."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "hsmcore"


def default_register() -> Path:
    """The folder that remembers which store keeps a key's promises (state/register.py)."""
    return default_state() / "stores"


class KeyManagerConfig(Provider):
    """`keyManager`: the provider that signs, and how requests, cache, audit, failover and rotation behave."""

    PATHS = frozenset({"audit_log_file", "state_file"})

    max_cache_size: Annotated[int, Whole(0, 100_000_000)] = 10_000
    """Signatures kept in memory; 0: no cache."""
    single_flight: bool = Field(default_factory=lambda fields: bool(fields.get("max_cache_size", 0)))
    """Whether identical requests in flight share one signature. Default: if there is a cache."""
    cache_non_deterministic: bool = False
    """Whether signatures that differ each time (ECDSA) are served from the cache too."""
    request_timeout_ms: Annotated[int, Whole(1, 86_400_000)] = 10_000
    """The deadline of a request that names none."""
    queue_size: Annotated[int, Whole(1, MAX_QUEUE_SIZE)] = 4096
    """Requests in flight at most; beyond it callers wait."""
    max_message_bytes: Annotated[int, Whole(1, MAX_MESSAGE_BYTES)] = 16_384
    """The longest message."""
    wake_coalesce_micros: Annotated[int, Whole(0, 1_000_000)] = 2000
    """The age of a finished request at which it wakes the event loop; 0: at once."""
    spin_micros: Annotated[int, Whole(0, 100_000)] = 50
    """The time that an idle worker of a module faster than this polls before it sleeps; 0: none."""
    audit_log_file: Annotated[str, Text(4096), LogVariables] | None = None
    """The audit log. In a file, a relative path starts at the file's folder. Default: no log is kept."""
    audit: AuditSettings | None = None
    """Settings of the audit log. Default: its defaults."""
    state_file: Annotated[str, Text(4096), StateVariables] | None = None
    """The store of what survives a crash: key ring, rotations, emergency budget, history of failovers. In a file, a
    relative path starts at the file's folder. Default: `hsmcore-state-TOKEN.db` in the folder of auditLogFile, or in
    the user's state folder (see `state_path`)."""
    require_state: bool = False
    """Whether a start with an empty store is refused until `hsmcore state begin`: in a container, a volume may not be
    mounted."""
    state_backup: StateBackup | None = None
    """Backups of that store on schedule. Default: none."""
    cloud_watch_logs: CloudWatchLogs | None = None
    """Where audit records are copied to. Default: nowhere."""
    failover: Failover | None = None
    """Levels of members. Default: there is only the provider."""
    key_rotation: KeyRotation | None = None
    """When the key is replaced. Default: never."""
    policy: Policy | None = None
    """What the key may sign. Default: anything."""
    batching: Batching | None = None
    """Settings of `sign_batched`. Default: their defaults."""
    publish: Publish | None = None
    """A public log of what is bound to positions. Default: there is none."""
    fleet: Fleet | None = None
    """Hosts that share this key. Default: there is one host."""
    notices: Notices | None = None
    """Receivers of notices of rotations and failovers. Default: none."""
    monitoring: Monitoring | None = None
    """Settings of `hsmcore serve` and `hsmcore.serve.attached`. Default: their defaults."""

    _first_is_listed: bool = PrivateAttr(default=False)
    _manager: str | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _none_that_is_gone(cls, value: Any) -> Any:
        if isinstance(value, dict) and "warmMicros" in value:
            raise clash("warmMicros is gone: no thread keeps a processor awake any more. Leave the key out")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _first_of_primary(
        cls, value: Any, handler: ModelWrapValidatorHandler[KeyManagerConfig], info: ValidationInfo
    ) -> KeyManagerConfig:
        # Without its own provider, the key manager has the first one of failover.primary, which is checked at its own
        # path. A provider without faults takes its place until then.
        if not isinstance(value, dict) or value.keys() & {"type", "config", "name"} or not _lists_primary(value):
            return handler(value)
        cls.note_known_keys(value, info)
        made = handler({**value, "type": "ephemeral", "config": {"allowEphemeralPrimary": True}})
        return made.with_first_listed()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON Schema, in which failover.primary may name the provider."""
        made = super().__get_pydantic_json_schema__(schema, handler)
        whole = handler.resolve_ref_schema(made)
        listed = {"properties": {"failover": {"required": ["primary"]}}, "required": ["failover"]}
        whole["anyOf"] = [{"required": [*whole.pop("required")]}, listed]
        return made

    @model_validator(mode="after")
    def _possible(self) -> KeyManagerConfig:
        if self.queue_size * self.max_message_bytes > MAX_RING_BYTES:
            raise clash(
                f"queueSize times maxMessageBytes is {self.queue_size * self.max_message_bytes} bytes of memory; "
                f"at most {MAX_RING_BYTES} are allowed"
            )
        require_log(self.audit_log_file, self.audit, self.cloud_watch_logs)
        if self.fleet is not None and self.state_file is not None:
            raise clash("has stateFile and fleet: the fleet's database is the state store")
        if self.fleet is not None and self.fleet.unordered == "any":
            _require_safe_anywhere(self.policy)
        if self.require_state and (self.fleet is not None or not self.keeps_state):
            raise clash("has requireState, but keeps nothing in a state store of this host")
        if self.publish is not None:
            self.publish.require_in(self.policy)
        if self.batching is not None and (self.policy is None or BATCH_ROOT not in self.policy.kinds):
            raise clash(f'has batching, but policy.kinds does not list "{BATCH_ROOT}"')
        if self.policy is not None and KEY_SET in self.policy.kinds and self.active_rotation is None:
            raise clash(f'policy.kinds lists "{KEY_SET}", but keyRotation is not enabled: a set is of the key ring')
        good_for = None if self.key_rotation is None else self.key_rotation.key_set_good_for_hours
        if good_for is not None and (self.policy is None or KEY_SET not in self.policy.kinds):
            raise clash(f'has keyRotation.keySetGoodForHours, but policy.kinds does not list "{KEY_SET}"')
        if self.policy is not None and BATCH_ROOT in self.policy.kinds and self.max_message_bytes < MOST_ROOT_BYTES:
            raise clash(f'maxMessageBytes must be {MOST_ROOT_BYTES} at least: policy.kinds lists "{BATCH_ROOT}"')
        require_lasting(self, "the key manager's own provider")
        consents = self.failover is not None and "primary" in self.failover.accept_other_keys
        if consents and self._first_is_listed and len(self._listed_primary) == 1:
            raise clash('failover.acceptOtherKeys names "primary", but failover.primary lists only one member')
        return self

    @model_validator(mode="after")
    def _each_member_once(self) -> KeyManagerConfig:
        seen: list[tuple[Provider, str]] = []
        for name in ("primary", "secondary"):
            own = [(self, "the key manager itself")] if name == "primary" and not self._first_is_listed else []
            listed = getattr(self.failover, name, None) or ()
            for member, where in (*own, *((m, f"failover.{name}[{i}]") for i, m in enumerate(listed))):
                for other, there in seen:
                    if (other.type, other.config) == (member.type, member.config):
                        raise clash(f"{where} is the same member as {there}: it would fail together with itself")
                seen.append((member, where))
        return self

    @property
    def manager(self) -> str | None:
        """Its name in `keyManagers`; None: it is `keyManager`."""
        return self._manager

    def among(self, name: str, **beside: object) -> KeyManagerConfig:
        """Return a copy that has this name in `keyManagers`, with the fields that stand at their level."""
        own = {} if self.fleet is None else {"fleet": self.fleet.among(name)}
        copy = self.model_copy(update=beside | own)
        copy._manager = name  # noqa: SLF001  # a copy of our own
        return copy

    @property
    def log_where(self) -> str:
        """The JSON path of the object in which auditLogFile, audit and cloudWatchLogs stand."""
        return self.where if self.manager is None else self.where.rpartition(".keyManagers")[0]

    def with_parts(self, changes: Mapping[str, Any]) -> Self:
        """As of a Model; a provider that failover.primary lends is the one of the new list."""
        copy = super().with_parts(changes)
        return copy.with_first_listed() if self._first_is_listed else copy

    @property
    def state_path(self) -> Path:
        """The path of the state store. By default it lies in the folder of auditLogFile, or in the user's state folder,
        and is named after the token that signs, not after its key: a configuration that names another key must meet the
        ring that it leaves. One of several key managers has its name in front: each has its own store. A store of the
        name that all shared is used on: it may hold the ring and the budget."""
        if self.state_file is not None:
            return Path(self.state_file)
        folder = default_state() if self.audit_log_file is None else Path(self.audit_log_file).parent
        if self.manager is not None:
            return folder / f"hsmcore-state-{self.manager}-{_file_name(self.own)}.db"
        own = folder / f"hsmcore-state-{_file_name(self.own)}.db"
        shared = folder / STATE_FILE
        return shared if os.path.isfile(shared) and not os.path.isfile(own) else own  # noqa: PTH113  # never raises

    @property
    def state_place(self) -> Path | Fleet:
        """Where the state store is: a fleet's database, or the file at `state_path`."""
        return self.fleet or self.state_path

    @property
    def state_name(self) -> str:
        """The state store's name for people."""
        return str(self.state_path.absolute()) if self.fleet is None else f"the database of fleet {self.fleet.name}"

    @property
    def refused_logins(self) -> Path:
        """The file that remembers which PINs tokens have refused (members/control/refused.py): in the folder of the
        state store, also if there is no store. All key managers of a folder share it."""
        return (self.state_path.parent / "hsmcore-refused-logins.json").absolute()

    @property
    def keeps_state(self) -> bool:
        """Whether a state store is used."""
        counts = self.policy is not None and self.policy.needs_store
        return bool(self.has_levels or self.active_rotation or self.notices or self.fleet or counts)

    @property
    def active_failover(self) -> Failover | None:
        """The rules of failover, if it is on."""
        return self.failover if self.failover is not None and self.failover.enabled else None

    @property
    def active_rotation(self) -> KeyRotation | None:
        """The rules of key rotation, if it is on."""
        return self.key_rotation if self.key_rotation is not None and self.key_rotation.enabled else None

    @property
    def has_levels(self) -> bool:
        """Whether failover is on, or the provider has several members."""
        return self.active_failover is not None or len(all_members((self.own,))) > 1

    @property
    def own(self) -> Provider:
        """The provider that signs first, as it stands in the document: this one, or the first one of failover.primary
        if the key manager names none."""
        return self._listed_primary[0] if self._first_is_listed else self

    @property
    def primary(self) -> tuple[Provider, ...]:
        """The members of the primary level: those of this provider first, then those that failover.primary adds."""
        if self.active_failover is None:
            return all_members((self.own,))
        return all_members(self._listed_primary if self._first_is_listed else (self, *self._listed_primary))

    def members(self) -> tuple[tuple[LevelName, Provider], ...]:
        """Return every member with its level, in the order of the levels. Names are distinct: the loader refuses
        others."""
        failover = self.active_failover
        found: list[tuple[LevelName, Provider]] = [("primary", member) for member in self.primary]
        if failover is not None:
            found += [("secondary", member) for member in all_members(failover.secondary or ())]
            if failover.emergency_mode_enabled:
                level = failover.emergency_level
                if failover.emergency is None and level[0].name in {member.name for _, member in found}:
                    level = (level[0].named(f"{level[0].name}#2"),)  # it stands in no list, so its number is no order
                found += [("emergency", member) for member in level]
        return tuple(found)

    def with_first_listed(self) -> Self:
        """Return a copy whose provider is the first one of failover.primary."""
        self._first_is_listed = True
        first = self._listed_primary[0]
        return self.model_copy(update={name: getattr(first, name) for name in _PROVIDER})

    @property
    def _listed_primary(self) -> tuple[Provider, ...]:
        return (self.failover.primary if self.failover is not None else None) or ()

    def parts(self) -> Iterator[tuple[str, str, object]]:
        """Yield as Model.parts, without the provider's own if failover.primary has them."""
        borrowed = _PROVIDER if self._first_is_listed else ()
        return (part for part in super().parts() if part[0] not in borrowed)


class Config(Model):
    """A whole configuration. Make one with `hsmcore.config.load`."""

    key_manager: KeyManagerConfig
    """The key manager, if there is one."""
    state_secret: Secret | None = None
    """The secret of the state store's seal, 32 bytes at least: without it a writer of the store is believed."""
    gateway: Gateway | None = None
    """Settings of `hsmcore gateway`."""
    _hidden: frozenset[str] = PrivateAttr(default=frozenset())

    @classmethod
    def one_of(
        cls, rules: KeyManagerConfig, secret: Secret | None, gateway: Gateway | None, where: str, hidden: frozenset[str]
    ) -> Config:
        """Return the configuration of one of several key managers. `hidden`: the variables with secrets of all."""
        fields: dict[str, Any] = {"keyManager": rules, "stateSecret": secret, "gateway": gateway}
        made = cls.model_construct(**fields)
        made.locate(where)
        made._hidden = hidden  # noqa: SLF001  # made here
        return made

    @model_validator(mode="after")
    def _clients_have_keys(self) -> Config:
        require_keys(self.gateway, (SINGLE,))
        return self

    @property
    def has_emergency(self) -> bool:
        """Whether there is an emergency level, and so a budget."""
        failover = self.key_manager.active_failover
        return failover is not None and failover.emergency_mode_enabled

    def redacted(self) -> dict[str, Any]:
        """Return everything, defaults included, as JSON-ready data with the document's keys and without secrets."""
        borrowed = set(_PROVIDER) if self.key_manager.own is not self.key_manager else set()
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"key_manager": borrowed})

    def sha256(self) -> str:
        """Return the digest of `redacted()`, in hexadecimal."""
        return hashlib.sha256(orjson.dumps(self.redacted(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The JSON paths of an example's blanks, such as `<cluster-ip>`."""
        rules = self.key_manager
        beside = tuple(f"{rules.where}.{key}" for key in BESIDE_SEVERAL)
        found = [*_placeholders(rules, rules.where), *_placeholders(self.state_secret, f"{self.where}.stateSecret")]
        found += _placeholders(self.gateway, f"{self.where}.gateway")
        return tuple(rules.log_where + p.removeprefix(rules.where) if p.startswith(beside) else p for p in found)

    @property
    def plain_secrets(self) -> tuple[str, ...]:
        """The JSON paths of the secrets that stand in the document itself, without placeholders."""
        plain = (one.where for one in _all(Secret, self) if one.kind == "plain" and not one.is_placeholder)
        return tuple(dict.fromkeys(plain))

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that hold secrets of this configuration. No child process may inherit them. AWS
        credentials are among them if this process uses them itself: the modules in child processes need none."""
        secrets = list(_all(Secret, self))
        found = self._hidden.union(secret.variable for secret in secrets if secret.variable is not None)
        found = found.union(*(provider.descriptor.secret_variables for provider in _all(Provider, self)))
        rotation, backups = self.key_manager.key_rotation, self.key_manager.state_backup
        asks_aws = (
            any(secret.kind == "awsSecretsManager" for secret in secrets)
            or self.key_manager.cloud_watch_logs is not None
            or (rotation is not None and (rotation.backup_location or "").startswith("s3:"))
            or (backups is not None and backups.location.startswith("s3:"))
        )
        return found | AWS_VARIABLES if asks_aws else found

    def require_complete(self) -> None:
        """Raise ConfigurationError if placeholders are left. Called before connecting."""
        if self.placeholders:
            raise ConfigurationError.of(
                ConfigFault(path, "is a placeholder: put in the real value") for path in self.placeholders
            )


def require_log(file: str | None, settings: AuditSettings | None, copies: CloudWatchLogs | None) -> None:
    """Raise a fault for settings of an audit log that is not kept."""
    if settings is not None and file is None:
        raise clash("has audit, but no auditLogFile to keep it in")
    if copies is not None and file is None:
        raise clash("has cloudWatchLogs, but no auditLogFile, whose records are what is copied there")


def _require_safe_anywhere(policy: Policy | None) -> None:
    """Raise a fault for what rests on one host that signs, where each host does."""
    told = 'has fleet.unordered "any", by which each host signs what has no position'
    if policy is None:
        raise clash(f"{told}, but no policy: without one a block has none either; add policy with its kinds")
    if policy.transactions is not None and policy.transactions.owned is not None:
        raise clash(
            f"{told}, and policy.transactions.owned, which each host counts alone, so that n hosts would let n times "
            'perMinute leave: take owned out, or set fleet.unordered to "lease"'
        )


def _file_name(provider: Provider) -> str:
    part = provider.config.place_part
    name = provider.type if part is None else f"{provider.type}:{part}"
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:48]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _lists_primary(value: dict[Any, Any]) -> bool:
    failover = value.get("failover")
    listed = failover.get("primary") if isinstance(failover, dict) else None
    return isinstance(listed, (list, tuple)) and len(listed) > 0


def _all(kind: type[T], value: object) -> Iterator[T]:
    """Yield every part of that class."""
    return (part for _, part in located(value, "$") if isinstance(part, kind))


def _placeholders(value: object, path: str) -> Iterator[str]:
    for where, part in located(value, path):
        if is_placeholder(part):
            yield where
        elif isinstance(part, Secret) and part.is_placeholder:
            yield part.where
