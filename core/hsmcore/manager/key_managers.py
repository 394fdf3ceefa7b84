"""Several key managers of one application, by what their keys are for: opened and closed together, with one audit
log."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import combinations
from types import TracebackType
from typing import Any, Self

from hsmcore._native import freeze
from hsmcore.audit.shared import LogPart, SharedLog
from hsmcore.base.events import Callback, EventName
from hsmcore.config import Config, Provider, load, load_each
from hsmcore.config.loading import Source
from hsmcore.config.policy import OWN
from hsmcore.errors import BadArgument, ConfigFault, ConfigurationError, HsmError, PolicyRefused
from hsmcore.manager.key_manager import KeyManager
from hsmcore.manager.lifecycle import Lifecycle
from hsmcore.manager.policy.guard import kinds_of
from hsmcore.members.control.softhsm import use_token_beside

Message = bytes | bytearray | memoryview


def create_key_manager(config: Source, *, rotates: bool = True) -> KeyManager:
    """Check a configuration and make its key manager; nothing is opened before `initialize()`.

    `config` is a dict, the path of a JSON file, or a Config; `create_key_managers` takes one with `keyManagers`.
    `rotates`: False leaves `keyRotation` to other processes and only follows the key ring, as the commands that sign,
    verify and show do. If a softhsm2.conf lies beside the file, SOFTHSM2_CONF is set to it in this process. Raises
    ConfigurationError, which names each fault by its JSON path.
    """
    made = KeyManager(load(config), rotates=rotates)
    _use_token_of(config)
    return made


def create_key_managers(config: Source, *, rotates: bool = True) -> KeyManagers:
    """Check a configuration and make the key managers of its `keyManagers`; nothing is opened before `initialize()`.

    A configuration with `keyManager` gives one, named "default". `config`, `rotates`, SOFTHSM2_CONF and
    errors: as `create_key_manager`.
    """
    made = KeyManagers(load_each(config), rotates=rotates)
    _use_token_of(config)
    return made


def _use_token_of(config: Source) -> None:
    if isinstance(config, (str, os.PathLike)):
        use_token_beside(config)


class KeyManagers(Mapping[str, KeyManager]):
    """Key managers by name, in the order of the configuration.

    Each is a whole key manager; only the audit log, `audit`, is that of all, and its records name the key manager in
    the field `manager`. Belongs to the event loop that runs `initialize()`.
    """

    def __init__(self, configs: Mapping[str, Config], *, rotates: bool = True) -> None:
        rules = {name: config.key_manager for name, config in configs.items()}
        self.audit = SharedLog(next(iter(rules.values())))
        # Known to all: else a key that signs raw bytes would sign what another key's format calls a block.
        formats = tuple(form for own in rules.values() if own.policy for form in own.policy.formats)
        self._kinds = kinds_of(formats)
        self._managers = {
            name: KeyManager(config, rotates=rotates, audit=LogPart(self.audit, rules[name]), formats=formats)
            for name, config in configs.items()
        }
        self._owners: dict[str, KeyManager] = {
            kind: self._managers[name]
            for name, own in rules.items()
            if own.policy
            for kind in own.policy.kinds
            if kind not in OWN
        }
        self._life = Lifecycle(self._open, lambda: None, self._close)

    def __getitem__(self, name: str) -> KeyManager:
        return self._managers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._managers)

    def __len__(self) -> int:
        return len(self._managers)

    async def initialize(self) -> None:
        """Open the audit log, then all key managers at once; those with a token in common one after another, since
        each presents the PIN, and a wrong one must not be presented twice. Raises HsmError, which names the key
        manager that cannot be opened; then nothing is left open."""
        await self._life.open()

    async def close(self) -> None:
        """Close all key managers, whatever one of them raises, then the audit log. As KeyManager.close."""
        await self._life.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> None:
        try:
            await self.audit.open()
            await self._open_all()
            self._require_own_keys()
            await self.audit.begin()
        except BaseException:
            await self._close()
            raise

    async def _open_all(self) -> None:
        turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        failures: list[HsmError] = []
        tasks = [asyncio.create_task(self._open_one(name, turns, failures)) for name in self]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in [*failures, *ended]:
            if isinstance(error, BaseException):
                raise error

    async def _open_one(self, name: str, turns: Mapping[str, asyncio.Lock], failures: list[HsmError]) -> None:
        manager = self[name]
        places = {_place(provider) for _, provider in manager.config.key_manager.members()}
        async with AsyncExitStack() as held:
            for place in sorted(places):  # in one order, so that no two wait for each other
                await held.enter_async_context(turns[place])
            if failures:
                return
            try:
                await manager.initialize()
            except HsmError as error:
                failures.append(_named(error, name))
                raise

    def _require_own_keys(self) -> None:
        for one, other in combinations(self.values(), 2):
            rings = [{version.public_key for version in ring} for ring in map(KeyManager.keys, (one, other))]
            if shared := rings[0] & rings[1]:
                where = one.config.key_manager.where
                problem = f"has a key of {where}, {min(shared).hex()}: each key manager has keys of its own"
                raise ConfigurationError.of([ConfigFault(other.config.key_manager.where, problem)])

    async def _close(self) -> None:
        self.audit.end()
        try:
            ended = await asyncio.gather(*(manager.close() for manager in self.values()), return_exceptions=True)
        finally:
            await self.audit.close()
        for name, error in zip(self, ended, strict=True):
            if isinstance(error, BaseException):
                raise _named(error, name) if isinstance(error, HsmError) else error

    def for_kind(self, kind: str) -> KeyManager:
        """Return the key manager whose policy lists this kind; the only one, if there is one. Raises PolicyRefused."""
        owner = self._owners.get(kind)
        if owner is not None:
            return owner
        if len(self) == 1:
            return next(iter(self.values()))  # its own policy decides
        hint = "List the kind in the policy of the key manager that is to sign it."
        raise PolicyRefused(f"no key manager signs a message of kind {kind!r:.40}", hint=hint)

    async def sign(
        self, message: Message, timeout: float | None = None, kind: str | None = None, position: int | None = None
    ) -> bytes:
        """Sign one message with the key manager whose policy lists its kind: `kind` if it is given. As KeyManager.sign;
        raises PolicyRefused if there is none."""
        try:
            found = self._kinds.look(message, kind).kind
            manager = self.for_kind(found if kind is None else kind)
        except (BadArgument, PolicyRefused) as error:
            self._life.check()
            self.audit.note("sign", message=freeze(message), result="error", error=error.status)
            await asyncio.sleep(0)
            raise
        return await manager.sign(message, timeout, kind=kind, position=position)

    def on(self, event: EventName, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` for each `event` of any key manager, whose name is `details["manager"]`. Returns
        how to unsubscribe."""
        ends = [manager.on(event, partial(_tell, callback, name)) for name, manager in self.items()]

        def off() -> None:
            for end in ends:
                end()

        return off

    def describe(self) -> dict[str, Any]:
        """The state of each key manager by name, as KeyManager.describe, and of the audit log."""
        return {
            "life": self._life.state,
            "keyManagers": {name: manager.describe() for name, manager in self.items()},
            "audit": self.audit.describe(),
            "auditConfigured": self.audit.enabled,
        }


def _place(provider: Provider) -> str:
    """The token or service that a provider logs in to, as far as its settings tell."""
    part = provider.config.place_part
    return provider.type if part is None else str(part)


def _named(error: HsmError, name: str) -> HsmError:
    """The error, with the key manager's name in front."""
    error.args = (f"key manager {name}: {error.args[0] if error.args else ''}", *error.args[1:])
    return error


def _tell(callback: Callback, name: str, details: Mapping[str, Any]) -> None:
    callback({**details, "manager": name})
