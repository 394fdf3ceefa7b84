"""Several key managers in one document: their names, the settings that they share, and faults of one against
another, or of members that have one name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Any, Final

from pydantic import model_validator

from hsmcore.config.audit import AuditSettings
from hsmcore.config.base import Model, Text, child_path
from hsmcore.config.failover import CloudWatchLogs
from hsmcore.config.gateway import Gateway, require_keys
from hsmcore.config.placed import LogVariables
from hsmcore.config.policy import OWN, overlap
from hsmcore.config.root import BESIDE_SEVERAL, SINGLE, Config, KeyManagerConfig, require_log
from hsmcore.config.secret import Secret
from hsmcore.errors import ConfigFault, ConfigurationError

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class KeyManagersConfig(Model):
    """A document with `keyManagers`: key managers by name, and the one audit log of all."""

    key_managers: dict[str, KeyManagerConfig]
    """Several key managers, by name. Each has its own key."""
    audit_log_file: Annotated[str, Text(4096), LogVariables] | None = None
    """The one audit log of all key managers. In a file, a relative path starts at the file's folder."""
    audit: AuditSettings | None = None
    """Settings of that log. Default: its defaults."""
    cloud_watch_logs: CloudWatchLogs | None = None
    """Where its records are copied to. Default: nowhere."""
    state_secret: Secret | None = None
    """The secret that seals each state store."""
    gateway: Gateway | None = None
    """Settings of `hsmcore gateway`."""

    @model_validator(mode="after")
    def _has_its_log(self) -> KeyManagersConfig:
        require_log(self.audit_log_file, self.audit, self.cloud_watch_logs)
        require_keys(self.gateway, self.key_managers)
        return self

    def each(self) -> dict[str, Config]:
        """Return the whole configuration of each key manager, by name."""
        beside = {name: getattr(self, name) for name in ("audit_log_file", "audit", "cloud_watch_logs")}
        rules = {name: own.among(name, **beside) for name, own in self.key_managers.items()}

        def made(hidden: frozenset[str]) -> dict[str, Config]:
            secret, gateway = self.state_secret, self.gateway
            return {name: Config.one_of(own, secret, gateway, self.where, hidden) for name, own in rules.items()}

        # The child processes of one key manager must not inherit the secrets of another one.
        return made(frozenset().union(*(config.secret_variables for config in made(frozenset()).values())))


def checked_names(body: dict[Any, Any], path: str) -> tuple[dict[Any, Any], list[ConfigFault]]:
    """Return the document's body without the audit logs of single key managers, and the faults of `keyManagers` that
    the models do not know."""
    where, given = child_path(path, "keyManagers"), body["keyManagers"]
    if not isinstance(given, dict):
        return body, []
    faults = [] if given else [ConfigFault(where, "holds no key manager")]
    blocks: dict[str, Any] = {}
    for name, block in given.items():
        own = child_path(where, str(name))
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            problem = "is no name: a letter, then at most 31 letters, digits and hyphens, all in lower case"
            faults.append(ConfigFault(own, problem))
            continue
        blocks[name] = block
        if isinstance(block, dict):
            extra = [key for key in BESIDE_SEVERAL if key in block]
            problem = "stands once, beside keyManagers: all of them have one audit log"
            faults += [ConfigFault(child_path(own, key), problem) for key in extra]
            blocks[name] = {key: value for key, value in block.items() if key not in extra}
    return {**body, "keyManagers": blocks}, faults


def clashes(configs: Mapping[str, Config]) -> Iterator[ConfigFault]:
    """Yield the faults of members and of key managers against each other."""
    for config in configs.values():
        yield from _names(config.key_manager)
    for one, other in combinations((config.key_manager for config in configs.values()), 2):
        yield from _kinds(one, other)
        yield from _members(one, other)
        if one.fleet is not None or other.fleet is not None:
            continue  # each key manager of a fleet has its own schema
        if os.path.realpath(one.state_path) == os.path.realpath(other.state_path):
            yield ConfigFault(
                f"{other.where}.stateFile", f"is the store of {one.where}.stateFile, too: a store holds one key ring"
            )


def _kinds(one: KeyManagerConfig, other: KeyManagerConfig) -> Iterator[ConfigFault]:
    if one.policy is None or other.policy is None:
        return
    for kind in other.policy.kinds:
        if kind in one.policy.kinds and (kind not in OWN or one.policy.domain == other.policy.domain):
            belongs = "a kind belongs to one key" if kind not in OWN else "give each key a policy.domain of its own"
            problem = f"lists {kind}, as {one.where}.policy.kinds does: {belongs}"
            yield ConfigFault(f"{other.where}.policy.kinds", problem)
    for number, form in enumerate(other.policy.formats):
        for place, before in enumerate(one.policy.formats):
            if overlap(before, form):
                problem = f"a message could be of {one.where}.policy.formats[{place}], too"
                yield ConfigFault(f"{other.where}.policy.formats[{number}]", problem)


def _names(rules: KeyManagerConfig) -> Iterator[ConfigFault]:
    # Numbers would follow the order of the document: after an exchange, the other device would be drained.
    named: dict[str, str] = {}
    for _, member in rules.members():
        if member.name in named:
            problem = f'is named "{member.name}", as {named[member.name]} is: give each a "name" of its own'
            yield ConfigFault(member.where, f'{problem} beside "type"; orders, receipts and the key ring go by it')
        named[member.name] = member.where


def _members(one: KeyManagerConfig, other: KeyManagerConfig) -> Iterator[ConfigFault]:
    held = {member.config.model_dump_json(): member for _, member in one.members() if member.type != "ephemeral"}
    for _, member in other.members():
        before = held.get(member.config.model_dump_json())
        if before is not None and before.type == member.type:
            yield ConfigFault(member.where, f"has the key of {before.where}: each key manager has keys of its own")


def choose(configs: Mapping[str, Config], name: str | None, hint: str) -> Config:
    """Return the configuration of one key manager; None: of the one that stands alone. `hint`: how to name one of
    several. Raises ConfigurationError."""
    first = next(iter(configs.values())).key_manager
    if first.manager is None:
        if name in (None, SINGLE):
            return configs[SINGLE]
        raise ConfigurationError.of([ConfigFault(first.where, f"stands alone: there is no key manager {name!r}")])
    if name is not None and name in configs:
        return configs[name]
    problem = f"there is no {name!r}" if name is not None else "one of them must be named"
    fault = ConfigFault(f"{first.log_where}.keyManagers", f"{problem}; there are {', '.join(configs)}. {hint}")
    raise ConfigurationError.of([fault], hint=hint)
