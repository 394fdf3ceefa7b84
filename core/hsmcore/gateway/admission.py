"""Where a client's request meets a key manager: what the client may, how much, when it is its turn, under whose name.

Next: operations.py, what both faces ask for.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Sequence
from itertools import chain
from typing import Final

from hsmcore.config import Gateway
from hsmcore.config.policy import BATCH_ROOT, ORDERED
from hsmcore.errors import EmptyMessage, HsmError, KeyNotFound, MessageTooLarge, PolicyRefused
from hsmcore.errors.statuses import STATUSES
from hsmcore.gateway.clients import Directory, KnownClient, OpenWork
from hsmcore.gateway.jobs import Queue
from hsmcore.gateway.refusals import RefusalLimit, outcome_of_request
from hsmcore.gateway.versions import Versions
from hsmcore.gateway.wire import messages as wire
from hsmcore.manager.key_manager import KeyManager
from hsmcore.manager.key_managers import KeyManagers
from hsmcore.manager.policy.callers import unlisted
from hsmcore.manager.policy.guard import kinds_of

MANAGING: Final = 8
"""Requests to manage keys that a client may have open at a key manager, beside those for signatures: keys are rotated
while as many signatures are open as there may be."""
_FEW: Final = 32
_ALONE: Final = 1024
_OUTCOMES: Final = frozenset({"INTERNAL", *STATUSES})


class ClientKey:
    """What one client may do with one key manager. `slot`: its number for this client."""

    def __init__(self, desk: Admission, client: KnownClient, name: str, slot: int) -> None:
        self.desk, self.client, self.name, self.slot = desk, client, name, slot
        self.manager: KeyManager = desk.managers[name]
        self.queue, self.versions = desk.queues[name], desk.versions[name]
        self.account = OpenWork(client, client.rules.in_flight)
        self.managing = OpenWork(client, MANAGING)
        self.accounts = self.account, self.managing
        self.policy = self.manager.config.key_manager.policy
        self.in_context = self.policy is not None or self.manager.audit.enabled
        """Whether a record or a caller's rules depend on the context that a request begins in."""
        self.timeout = self.manager.config.key_manager.request_timeout_ms / 1e3
        self.longest = max(desk.settings.max_timeout_ms / 1e3, self.timeout)
        """Seconds that a request may take, whatever its client says."""
        self.message_bytes = self.manager.config.key_manager.max_message_bytes

    @property
    def kinds(self) -> int:
        """What may be signed, as bits of wire.KINDS, and wire.BATCHES, wire.TRACES."""
        listed = None if self.policy is None else self.policy.kinds
        allowed = self.account.kinds
        if listed is None and allowed is None:
            return wire.UNLIMITED
        kinds = set(wire.KINDS[1:]).intersection(*(some for some in (listed, allowed) if some is not None))
        found = wire.TRACES + sum(1 << wire.KINDS.index(kind) for kind in kinds)
        batches = self.account.batches and self.policy is not None and BATCH_ROOT in self.policy.kinds
        return found | wire.BATCHES if batches else found

    def require_batches(self) -> None:
        """Raise PolicyRefused, and record it, for a client that may have no batch signed."""
        if (refusal := self.account.refusal(None)) is not None:
            self.refused("batch is not true", "sign")
            raise refusal

    def require_kind(self, message: bytes, kind: str | None) -> None:
        """Raise PolicyRefused, and record it, for a message that this client may not have signed."""
        allowed = self.account.kinds
        if allowed is None or (found := self.desk.look(message).kind) in allowed:
            return
        if (refusal := self._unlisted(found)) is not None:
            if found == "digest32" and kind in ORDERED:
                refusal.hint = "Have hsmcore.payload of the digest signed."
            raise refusal

    def require_listed(self, kind: str) -> None:
        """Raise PolicyRefused, and record it, for a kind that this client may not have signed."""
        if (refusal := self._unlisted(kind)) is not None:
            raise refusal

    def _unlisted(self, kind: str) -> PolicyRefused | None:
        refusal = self.account.refusal(kind)
        if refusal is not None:
            self.refused(f"kind {kind} not listed", "sign")
        return refusal

    def refused(self, why: str, what: str) -> None:
        """Record that the client was refused; as Admission.refused."""
        self.desk.refused(self.client.name, why, f"{what} {self.name}")

    def refusals(self, messages: Sequence[bytes], kind: str | None) -> list[HsmError | None]:
        """Return why each message of a batch is refused, of which `kind` must be the kind: a batch has no positions.
        The key manager would refuse the batch as a whole for one that cannot be signed as it is."""
        judged = self.account.kinds is not None or kind is not None
        found: list[HsmError | None] = []
        for message in messages:
            if not message:
                found.append(EmptyMessage())
            elif len(message) > self.message_bytes:
                found.append(MessageTooLarge(f"the message has {len(message)} bytes; {self.message_bytes} may be"))
            else:
                found.append(self._judged(message, kind) if judged else None)
        return found

    def _judged(self, message: bytes, kind: str | None) -> HsmError | None:
        look, allowed = self.desk.look(message, kind), self.account.kinds
        if allowed is not None and look.kind not in allowed:
            return self._unlisted(look.kind)
        if kind is not None and look.kind != kind:
            self.refused(f"kind {look.kind} claimed as {kind}", "sign")
            return PolicyRefused(look.refusal or "")
        return None


class Admission:
    """Takes clients' requests to the key managers. Belongs to their event loop. Errors are HsmError; one for which
    there is no room now is QueueFull, with `retry_after_ms` where that is known."""

    def __init__(self, managers: KeyManagers, settings: Gateway) -> None:
        """As Directory: may block."""
        self.managers, self.settings = managers, settings
        self.directory = Directory(settings.clients)
        most = settings.in_flight
        enough = {name: _enough_for(manager) for name, manager in managers.items()}
        self.queues = {
            name: Queue(max(_FEW, busy), busy, _ALONE) if most is None else Queue(most, busy)
            for name, busy in enough.items()
        }
        """What is at one key manager, however slow, keeps nothing from another."""
        self.versions = {name: Versions(manager) for name, manager in managers.items()}
        policies = [own.config.key_manager.policy for own in managers.values()]
        self.look = kinds_of(tuple(form for policy in policies if policy for form in policy.formats)).look
        """Says of what `kind` a message is."""
        self._counters = {name: self._counters_of(client) for name, client in self.directory.clients.items()}
        self._former: list[OpenWork] = []
        """Those of clients that are gone, or have other rules now."""
        self.requests: Count[tuple[str, str]] = Count()
        """Answered requests of all faces, by client and outcome; see `count`."""
        self.strangers = 0
        """Connections and requests that were refused because of who or what they are from."""
        self._refusals = RefusalLimit(self._record)

    @property
    def open(self) -> int:
        """Requests of all clients that are not answered; each message of a batch is one."""
        counters = chain.from_iterable(own.values() for own in self._counters.values())
        return sum(one.open for one in chain(self._former, *(counter.accounts for counter in counters)))

    def _counters_of(self, client: KnownClient) -> dict[str, ClientKey]:
        client.sessions.resize(client.rules.in_flight)
        return {name: ClientKey(self, client, name, slot) for slot, name in enumerate(client.rules.keys)}

    def follow(self, directory: Directory) -> None:
        """Serve these clients from now on. What is open goes on as it began."""
        before = self._counters
        gone = [client for client in self.directory.clients.values() if not directory.has(client)]
        self._former = [account for account in self._former if account.open]
        self._former += [one for client in gone for counter in before[client.name].values() for one in counter.accounts]
        self._counters = {
            name: before[name] if self.directory.has(client) else self._counters_of(client)
            for name, client in directory.clients.items()
        }
        self.directory = directory

    def counter(self, client: KnownClient, name: str) -> ClientKey:
        """Return what a client may do with a key manager. Raises PolicyRefused if it may not use it, or it is none."""
        found = self._counters.get(client.name, {}).get(name)
        if found is None:
            raise unlisted(client.name, name)
        return found

    def counters(self, client: KnownClient) -> tuple[ClientKey, ...]:
        """Return those of a client, by slot."""
        return tuple(self._counters.get(client.name, {}).values())

    def keys(self, client: KnownClient) -> tuple[wire.Key, ...]:
        """Return the versions of the keys that a client may use; `slot` counts in the order of its `keys`."""
        return tuple(
            wire.Key(
                slot=counter.slot,
                version=counter.versions.number(version.public_key),
                current=version.public_key == signing and version.state == "active",
                algorithm=version.algorithm,
                id=version.id,
                public_key=version.public_key,
                kinds=counter.kinds,
            )
            for counter in self.counters(client)
            for signing in (_signing(counter.manager),)
            # Members may have one key under several ids.
            for version in reversed({one.public_key: one for one in reversed(counter.manager.keys())}.values())
        )

    async def learn_versions(self) -> None:
        """Read the numbers of versions that are new."""
        for versions in self.versions.values():
            await versions.learn_all()

    def count(self, client: KnownClient, error: HsmError | None) -> None:
        """Count a request that a face has answered; a batch is one. `error`: None is a good answer."""
        self.requests[client.name, outcome_of_request(error)] += 1

    def count_more(self, name: str, outcome: str, count: int) -> None:
        """Count what a front has answered. Raises ValueError for what it cannot have."""
        if name not in self.directory.clients or outcome not in _OUTCOMES or type(count) is not int or count < 1:
            raise ValueError(outcome)
        self.requests[name, outcome] += count

    def refused(self, peer: str, why: str, what: str, count: int = 1) -> None:
        """Record refusals: `peer`, of whom or from where; `why`; `what` was asked for, of the last one. See
        RefusalLimit."""
        self.strangers += count
        self._refusals.add(peer, why, what, count)

    def _record(self, count: int, peer: str, why: str, what: str) -> None:
        self.managers.audit.note("gateway-refused", result="error", label=peer, why=why, command=what, count=count)

    def close(self) -> None:
        """Answer what waits, and record the refusals that have no record yet: the key managers are about to close."""
        for queue in self.queues.values():
            queue.close()
        self._refusals.flush()


def _enough_for(manager: KeyManager) -> int:
    """Return how many messages keep all members busy: one in each session, and one that follows it."""
    members = [provider.config for _, provider in manager.config.key_manager.members()]
    sessions = sum(getattr(member, "sessions", 0) or getattr(member, "concurrency", 0) for member in members)
    return 2 * sessions


def _signing(manager: KeyManager) -> bytes:
    """The public key that signs now; b"": none does."""
    try:
        return manager.public_key
    except KeyNotFound:
        return b""
