"""Health monitoring in the background: watch members, probe those out of service, start and stop the emergency level,
and follow the operators' orders in the state store."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Any, Final

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError, KeyMismatch, KeyNotFound, SignatureInvalid
from hsmcore.failover.breaker import SECOND, kind_of
from hsmcore.failover.emergency import EmergencyLevel
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.latency import FACTOR, FLOOR_NS
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.router import Router
from hsmcore.members.snapshot import MemberSnapshot
from hsmcore.state import Desired, StoreNotGenuine, Wish
from hsmcore.state.desired import DRAIN, own_report

TICK_S: Final = 0.1
"""Seconds between two looks at the members."""
STALL_NS: Final = SECOND // 4
"""A member hangs if it has begun requests and ends none for the longest of: this time, the patience of its kind of
device, and 20 times its 99th percentile; and if a call has been inside the module for as long, or requests were put
aside. Workers that wait for a processor are neither."""
PROBE_S: Final = 2.0
"""The most seconds that a probe may take."""
FOLLOW_S: Final = 1.0
"""Seconds between two reads of the orders in the state store."""
REPORT_S: Final = 5.0
"""Seconds between two reports to the state store, if nothing changes."""
PROBE_PREFIX: Final = b"\xffhsmcore probe\x00"
"""A Solana message begins with a count of signatures below 0x80, or with 0x80 plus its version (0 or 1 so far); an
off-chain message with 0xff and "solana offchain". No probe is one of these."""

NOT_GENUINE: Final = "the state store is not genuine"

Verify = Callable[[KeyVersion, bytes, bytes], Awaitable[bool]]


def probe_message() -> bytes:
    """The message of a probe: new each time, so that no cache answers it."""
    return PROBE_PREFIX + secrets.token_bytes(16)


class HealthMonitor:
    """Monitors the members of a router. Belongs to the event loop."""

    def __init__(
        self,
        router: Router,
        verify: Verify,
        desired: Desired,
        name: str,
        permitted: bool,
        each_second: Callable[[], Awaitable[None]],
    ) -> None:
        self._router = router
        self._levels = router.levels
        self._verify = verify
        self._desired = desired
        self._report_name = own_report(name)
        self._permitted = permitted
        self._each_second = each_second
        self._scope = Scope()
        self._looked = monotonic_ns()
        self._reported = 0
        self._reported_version = -1
        self._orders: dict[str, str] = {}
        self._obeyed = False
        self.emergency = EmergencyLevel(router, self._scope.start)
        self._ended = False
        for endpoint in self._levels.members:
            endpoint.lost = self._host_lost
            endpoint.refused = self._login_refused
            endpoint.renewed = self._credentials_renewed
            endpoint.gives_way = self._gives_way
            endpoint.signs = self._levels.progressed

    async def begin(self) -> None:
        """Follow the present orders, then look at the members every TICK_S."""
        # Orders that earlier processes have followed.
        self._orders = {name: wish.value for name, wish in (await self._genuine_wishes() or {}).items()}
        await self._follow()
        self._scope.every(TICK_S, self._tick, "the members were not looked at", at_once=False)
        self._scope.every(FOLLOW_S, self._follow_and_report, "the state store cannot be followed", at_once=False)

    async def end(self) -> None:
        """Stop, and wait for the cancelled tasks. The members stay as they are; those that are being stopped end.
        Idempotent."""
        self._ended = True
        await self._scope.close()
        await self.emergency.end()

    async def report_end(self) -> None:
        """Remove the report from the store: it is that of a key manager which runs. Raises StoreError."""
        await self._desired.report(self._report_name, None)

    async def _tick(self) -> None:
        now = monotonic_ns()
        # After a stall of the loop itself, members that answered look as if they had not.
        late = now - self._looked > 3 * TICK_S * SECOND
        self._looked = now
        for endpoint in self._levels.members:
            if endpoint.member is not None:
                self._look(endpoint, now, judge=not late)
        self._levels.tick(now)
        if not self._router.closing:  # a member that is being closed is not down, and none is to start
            for endpoint in self._levels.probes_due(now):
                if not endpoint.probing and self._levels.levels[endpoint.level].name != EMERGENCY:
                    endpoint.probing = True
                    self._scope.start(self._probe(endpoint))
            self.emergency.supervise(now)
        self._router.forget_bindings(now)
        self._router.settle()

    def _look(self, endpoint: Endpoint, now: int, *, judge: bool) -> None:
        stats = endpoint.signing.stats()
        signed, done = stats["signatures"], stats["signatures"] + stats["failures"]
        if signed != endpoint.signed:
            self._levels.progressed(endpoint)
        begun = stats["in_flight"] - stats["queued"]
        if done != endpoint.done or begun <= 0 or not judge:
            endpoint.busy_since = now
        endpoint.signed, endpoint.done = signed, done
        if not endpoint.trusted:
            return
        if endpoint.watch.look(stats["hsm_ns"]):
            endpoint.watch.forget_outliers()
            self._levels.failed(endpoint, "slow", "its signatures take far longer than they used to", now)
        limit = max(STALL_NS, endpoint.patience, 20 * endpoint.watch.p99)
        inside = stats["oldest_call_ns"] > limit or begun > stats["busy"]
        if now - endpoint.busy_since > limit and inside:
            self._levels.stalled(endpoint, now)
            self._router.settle()
            if self._levels.pick_for(endpoint.key, [endpoint]) is not None:
                endpoint.engine.move()

    def _host_lost(self, endpoint: Endpoint) -> None:
        """The supervisor restarts the host process; other members can answer its requests sooner."""
        if not self._ended and self._levels.pick_for(endpoint.key, [endpoint]) is not None:
            self._levels.failed(endpoint, "down", "its host process ended", monotonic_ns())
            self._router.settle()
            endpoint.engine.move()

    def _login_refused(self, endpoint: Endpoint, error: HsmError) -> None:
        """Probes cannot bring the member back; another PIN does, or an operator."""
        if not self._ended:
            self._levels.failed(endpoint, "auth", str(error.args[0]), monotonic_ns())
            self._router.settle()

    def _gives_way(self, endpoint: Endpoint, error: HsmError) -> bool:
        """Count what the member could wait with, if another member can sign. Returns whether that one takes it."""
        kind = kind_of(error)
        if self._ended or kind is None:
            return False
        if self._levels.mode == "literal":
            return kind == "access"  # its retries are its own
        others = (one for one in self._levels.members if one is not endpoint and one.level_name != EMERGENCY)
        if not any(one.trusted and self._levels.usable(one, None) for one in others):
            return False
        if endpoint.trusted:
            self._levels.failed(endpoint, kind, str(error.args[0]), monotonic_ns())
            self._router.settle()
        return not endpoint.trusted

    def _credentials_renewed(self, endpoint: Endpoint) -> None:
        """The next probe is due at once if the old credentials were refused."""
        if "access" in endpoint.breakers:
            endpoint.breakers["access"].hasten(monotonic_ns())
        if not self._ended and "auth" in endpoint.breakers:
            self._levels.readmit(endpoint, "its login was accepted again", monotonic_ns())
            self._router.settle()

    async def _probe(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.member is None:
                await self.start(endpoint)
            await self._try(endpoint)
        except HsmError as error:
            if self._router.closing:
                return
            lacks_key = endpoint.lacks_key and isinstance(error, KeyNotFound)
            kind = "down" if lacks_key else kind_of(error) or "down"
            reason = str(error.args[0])
            if kind in ("auth", "key", "fatal"):
                self._levels.failed(endpoint, kind, reason, monotonic_ns())
            self._levels.probed(endpoint, False, reason, monotonic_ns(), kind)
        else:
            self._levels.probed(endpoint, True, "", monotonic_ns())
        finally:
            endpoint.probing = False
            if not self._ended:
                self._router.settle()

    async def start(self, endpoint: Endpoint) -> None:
        """Start a member that is not running. Raises HsmError."""
        configured = await endpoint.start()
        try:
            version = await self._current_key(endpoint, configured)
        except BaseException:
            await endpoint.stop()  # or no probe would start it again, nor find a key to sign with
            raise
        endpoint.lacks_key = False
        if version.public_key in self._router.retired:
            endpoint.signing.retire_key(version.index)
        self._levels.started(endpoint, version.public_key, monotonic_ns())
        self._router.on_key(endpoint)
        if self._levels.key == version.public_key:
            self._router.current = version
        self._router.settle()
        if endpoint.fenced:
            raise KeyMismatch(endpoint.reason, member=endpoint.name)

    async def _current_key(self, endpoint: Endpoint, configured: KeyVersion) -> KeyVersion:
        """The current key, if a member that starts late holds it; else the member's configured key."""
        current = self._router.current
        if current is None or current.public_key == configured.public_key or endpoint.member is None:
            return configured
        try:
            found = await endpoint.member.load_key(bytes.fromhex(current.id))
        except (KeyNotFound, ValueError):
            return configured
        if found.public_key != current.public_key:
            return configured
        endpoint.use(found)
        return found

    async def _try(self, endpoint: Endpoint) -> None:
        """Sign once, and verify in software. Raises HsmError."""
        version = endpoint.key_version
        message, begun = probe_message(), monotonic_ns()
        seconds = max(0.05, min(endpoint.interval / SECOND, PROBE_S))
        signed = endpoint.signing.submit(message, seconds, version.index, b"", own=True)
        signature = signed if isinstance(signed, bytes) else await signed
        took = monotonic_ns() - begun
        if not await self._verify(version, message, signature):
            raise SignatureInvalid("a probe's signature does not verify", member=endpoint.name)
        if "slow" in endpoint.breakers and endpoint.watch.p99 and took > max(FLOOR_NS, FACTOR * endpoint.watch.p99):
            raise HsmError("a probe took far longer than signatures used to", status="BUSY", member=endpoint.name)

    async def readmit(self, endpoint: Endpoint, reason: str) -> None:
        """Probe a member that is out of service at once. A fenced member logs in and proves its key again."""
        if endpoint.fenced and endpoint.member is not None and endpoint.level_name != EMERGENCY:
            self._levels.stopped(endpoint, monotonic_ns())
            self._router.settle()
            await endpoint.stop()
        self._levels.readmit(endpoint, reason, monotonic_ns())
        self._router.settle()

    async def _follow_and_report(self) -> None:
        now = monotonic_ns()
        await self._follow()
        if self._levels.version != self._reported_version or now - self._reported >= REPORT_S * SECOND:
            self._reported, self._reported_version = now, self._levels.version
            await self._desired.report(self._report_name, self.describe())

    async def _follow(self) -> None:
        now = monotonic_ns()
        wishes = await self._genuine_wishes()
        if wishes is not None:
            await self._obey(wishes, now)
        elif not self._obeyed:  # an operator may have disabled it
            self._levels.permit_emergency(False, NOT_GENUINE, now)
        self._router.settle()  # the store is read again below, which may take its time: a drained member must not sign
        if any(level.name == EMERGENCY for level in self._levels.levels):
            spent = self._levels.emergency_spent
            try:
                usable, why = (await self._router.budget.status()).usable, "its budget or time is used up"
            except StoreNotGenuine:
                usable, why = False, NOT_GENUINE
            if not usable or spent == self._levels.emergency_spent:  # what was used up meanwhile is not in the answer
                self._levels.emergency_used_up(not usable, why, now)
        await self._each_second()
        self._router.settle()

    async def _genuine_wishes(self) -> dict[str, Wish] | None:
        """Return the orders; None if another writer than hsmcore has changed them: what was obeyed before stays."""
        try:
            return await self._desired.all()
        except StoreNotGenuine:  # the store has told of it
            return None

    async def _obey(self, wishes: dict[str, Wish], now: int) -> None:
        if not self._obeyed:
            self._tell_of_strangers(wishes)
        self._obeyed = True
        nothing = Wish("", "")
        for endpoint in self._levels.members:
            wish = wishes.get(f"drain:{endpoint.name}")
            self._levels.drain(endpoint, wish is not None, (wish or nothing).reason, now)
            order = wishes.get(f"readmit:{endpoint.name}", nothing)
            if order.value != self._orders.get(f"readmit:{endpoint.name}", ""):
                self._orders[f"readmit:{endpoint.name}"] = order.value
                await self.readmit(endpoint, order.reason)
        forced = wishes.get("force", nothing)
        names = [level.name for level in self._levels.levels]
        self._levels.force(names.index(forced.value) if forced.value in names else None, forced.reason, now)
        emergency = wishes.get("emergency", nothing)
        self._levels.permit_emergency(self._permitted and emergency.value != "disabled", emergency.reason, now)

    def _tell_of_strangers(self, wishes: dict[str, Wish]) -> None:
        drained = {name.removeprefix(DRAIN) for name in wishes if name.startswith(DRAIN)}
        for name in sorted(drained - {endpoint.name for endpoint in self._levels.members}):
            get_logger().warning("a member that is to be drained is not in the configuration", member=name)

    def members(self) -> tuple[MemberSnapshot, ...]:
        """Every member, in the order of the levels. Any thread."""
        ready = self._levels.ready
        return tuple(endpoint.snapshot(signs=endpoint in ready) for endpoint in self._levels.members)

    def describe(self) -> dict[str, Any]:
        """The state of levels and members as data for JSON."""
        return {**self.describe_levels(), "members": [member.to_json() for member in self.members()]}

    def describe_levels(self) -> dict[str, Any]:
        """The state of the levels as data for JSON."""
        levels = self._levels
        names = [level.name for level in levels.levels]
        version = self._router.version
        return {
            "process": os.getpid(),
            "mode": levels.mode,
            "active": None if levels.active is None else names[levels.active],
            "forced": None if levels.forced is None else names[levels.forced],
            "publicKey": None if version is None else version.public_key.hex(),
            "emergency": {"permitted": levels.emergency_permitted, "usedUp": levels.emergency_spent},
            "atNs": time.time_ns(),
        }
