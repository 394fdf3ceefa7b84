"""The simulated engine: the request table in front of workers that call a device; and one without workers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from tests.simulation.device import Call, Device, Key
from tests.simulation.requests import Ask, Requests
from tests.simulation.threads import worlds

from hsmcore.errors import HsmError, NotInitialized, error_of
from hsmcore.errors.statuses import STATUSES

devices: dict[str, Device] = {}
"""By the label of the token, of the world that runs."""
_REPAIRED: Final = frozenset({"RETRY", "RESET", "REOPEN", "RELOGIN", "REFIND"})
_REPAIRS: Final = 2
_REPAIR_NS: Final = 5_000_000
_WAKE_NS: Final = 20_000


class _Worker:
    __slots__ = ("ask", "since", "stuck")

    def __init__(self) -> None:
        self.ask: Ask | None = None
        self.since = 0
        self.stuck = False


class Engine(Requests):
    """As the class of this name in bindings/. Its module is a Device."""

    host_fd = -1
    host_pid = None
    hardening = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.most_workers = options["max_workers"]
        self.device: Device | None = None
        self.workers: list[_Worker] = []
        self.ring: deque[Ask] = deque()
        self.found: dict[int, Key] = {}
        self.stopped = False
        self.patience_ns = self.verify_every = 0
        self.counts: Counter[str] = Counter()
        self.times: Counter[int] = Counter()

    # ---- the member's thread ---------------------------------------------------------------------------------------

    def start(self, **options: Any) -> None:
        device = devices[options["token_label"]]
        if self.stopped:
            raise self._failure("CLOSED")
        if device.is_gone:
            raise error_of("TOKEN_LOST", ckr=0x30, call="C_OpenSession", member=self.member)
        self.device = device
        self.patience_ns = int(options["patience_seconds"] * 1e9)
        self.verify_every = options["verify_every"]
        self.workers = [_Worker() for _ in range(options["workers"])]

    def add_key(
        self,
        *,
        label: str | None = None,
        id: bytes | None = None,  # noqa: A002  # as the binding
        handle: int = -1,
        algorithm: str | None = None,
        public_key: bytes | None = None,
    ) -> dict[str, Any]:
        del handle, algorithm
        if self.device is None:
            raise NotInitialized("the engine is not started", member=self.member)
        if self.device.is_gone:
            raise error_of("TOKEN_LOST", ckr=0x30, call="C_FindObjectsInit", member=self.member)
        key = self.device.find(label, id)
        if key is None:
            raise self._failure("KEY_NOT_FOUND")
        if public_key is not None and public_key != key.public_key:
            raise self._failure("KEY_MISMATCH")
        known = next((at for at, one in self.found.items() if one is key and at not in self.retired), None)
        index = len(self.found) if known is None else known
        self.found[index] = key
        self.keys[index] = {"algorithm": "ed25519"}
        return {
            "index": index,
            "label": key.label,
            "id": key.id,
            "algorithm": "ed25519",
            "public_key": key.public_key,
        }

    def token(self) -> dict[str, Any]:
        assert self.device is not None
        said = {"label": self.device.name, "serial": self.device.name, "manufacturer": "simulated", "model": "one"}
        return {"slot_id": 0, "flags": 0, "max_sessions": 0, **said, "library": "simulated", "quirks": "generic"}

    def stop(self, _timeout: float) -> int:
        self.stopped = True
        left = sum(worker.ask is not None for worker in self.workers)
        while self.ring:
            self.ended(self.ring.popleft(), ("CLOSED", 0, ""))
        return left

    # ---- workers ---------------------------------------------------------------------------------------------------

    def publish(self, one: Ask) -> None:
        self.ring.append(one)
        worlds[0].happens(worlds[0].chance.time.randrange(_WAKE_NS), self._serve)

    def _serve(self) -> None:
        """A worker looks for the next request, if one is idle."""
        worker = next((one for one in self.workers if one.ask is None and not one.stuck), None)
        if worker is None or self.stopped:
            return
        while self.ring:
            one = self.ring.popleft()
            refused = self._refusal(one)
            if refused is not None:
                self.counts["expired" if refused == "DEADLINE_EXCEEDED" else "cancelled"] += 1
                self.ended(one, (refused, 0, ""))
                continue
            one.stage, worker.ask, worker.since = "begun", one, monotonic_ns()
            self._enter(worker, one, 0)
            return

    def _refusal(self, one: Ask) -> str | None:
        if one.stage == "cancelled":
            return "CANCELLED"
        if one.key in self.retired:
            return "KEY_DEACTIVATED"
        return "DEADLINE_EXCEEDED" if one.deadline <= monotonic_ns() else None

    def _enter(self, worker: _Worker, one: Ask, repairs: int) -> None:
        device, key, begun = self.device, self.found[one.key], monotonic_ns()
        assert device is not None
        call = device.call(key, one.message)

        def leave() -> None:
            if call.signs:
                device.note(begun, key, one.message, call)
            self._leave(worker, one, call, repairs)

        worlds[0].happens(call.takes_ns, leave)

    def _leave(self, worker: _Worker, one: Ask, call: Call, repairs: int) -> None:
        answer, now = call.answer, monotonic_ns()
        if isinstance(answer, tuple):
            if one.deadline <= now:
                answer = "DEADLINE_EXCEEDED", 0, ""
            elif STATUSES[answer[0]].class_ in _REPAIRED and repairs < _REPAIRS and not self.stopped:
                worlds[0].happens(_REPAIR_NS, lambda: self._enter(worker, one, repairs + 1))
                return
        elif self.verify_every and not call.signs:  # as if it was verified
            self.counts["wrong"] += 1
            answer = "SIGNATURE_INVALID", 0, ""
        self.counts["signatures" if isinstance(answer, bytes) else "failures"] += 1
        if isinstance(answer, bytes):
            self.times[1 << (now - worker.since).bit_length()] += 1
        worker.ask, worker.since, worker.stuck = None, 0, False
        self.ended(one, answer)
        self._serve()

    def supervise(self) -> tuple[int, int]:
        now = monotonic_ns()
        for worker in [*self.workers]:
            one = worker.ask
            hangs = one is not None and now > max(one.deadline, worker.since + self.patience_ns)
            if hangs and not worker.stuck:
                worker.stuck = True
                if len(self.workers) < self.most_workers:
                    self.workers.append(_Worker())
                    self._serve()
        stuck = sum(worker.stuck for worker in self.workers)
        return stuck, len(self.workers) - stuck

    # ---- the loop --------------------------------------------------------------------------------------------------

    def retire_key(self, index: int) -> None:
        if index in self.keys:
            self.retired.add(index)
            self.cached.clear()

    def release(self) -> None:
        self.open = False

    def kill_host(self) -> None:
        """There is none."""

    def recover(self) -> int:
        return 0

    def stats(self) -> dict[str, Any]:
        since = [worker.since for worker in self.workers if worker.ask is not None]
        return {
            **{name: self.counts[name] for name in ("signatures", "failures", "expired", "cancelled", "wrong")},
            "workers": len(self.workers),
            "busy": len(since),
            "stuck": sum(worker.stuck for worker in self.workers),
            "down": self.down is not None,
            "queued": len(self.ring),
            "oldest_call_ns": monotonic_ns() - min(since) if since else 0,
            "oldest_queued_ns": 0,
            "hsm_ns": sorted(self.times.items()),
            "recoveries": {},
            "failed": {},
            "refused": self.refused,
            "in_flight": self.used,
            "waiting": len(self.queue),
        }


class Guest(Requests):
    """As the class of this name in bindings/: an OffloadEngine's runners serve it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pump: Callable[[], None] = lambda: None
        self.ring: deque[Ask] = deque()
        self.running: dict[int, Ask] = {}
        self.counts: Counter[str] = Counter()

    def serve(self, runners: int, verify_every: int, pump: Callable[[], None]) -> None:
        del runners, verify_every
        self.pump = pump

    def pin(self, algorithm: str, public_key: bytes, max_message: int | None = None, limit: str = "its limit") -> int:
        index = len(self.keys)
        self.keys[index] = {"algorithm": algorithm, "public_key": public_key}
        return index

    def publish(self, one: Ask) -> None:
        self.ring.append(one)

    def _pump(self) -> None:
        if self.ring:
            self.pump()

    def begin(self, runner: int) -> tuple[int, Any] | None:
        while self.loop is not None and self.ring:
            one = self.ring.popleft()
            refused = "CANCELLED" if one.stage == "cancelled" else None
            if one.deadline <= monotonic_ns():
                refused = "DEADLINE_EXCEEDED"
            if refused is None:
                one.stage = "begun"
                self.running[runner] = one
                return one.key, one.message
            self.done.append((one, (refused, 0, "")))
            self.loop.call_soon(self._take)
        return None

    def end(self, runner: int, result: bytes | HsmError) -> None:
        one = self.running.pop(runner, None)
        if one is not None:
            self.counts["signatures" if isinstance(result, bytes) else "failures"] += 1
            self.done.append((one, result))

    def deliver(self) -> None:
        if self.loop is not None:
            self._take()

    def overran(self, runner: int) -> bool:
        one = self.running.get(runner)
        return one is not None and one.deadline <= monotonic_ns() and not any(x.claimed for x in one.followers)

    def refuse_queued(self, status: str) -> None:
        while self.ring:
            self.done.append((self.ring.popleft(), (status, 0, "")))
        self.deliver()

    def retire_key(self, index: int) -> None:
        self.retired.add(index)
        self.cached.clear()

    def release(self) -> None:
        self.open = False

    def stats(self) -> dict[str, Any]:
        return {
            **{name: self.counts[name] for name in ("signatures", "failures", "expired", "cancelled", "wrong")},
            "workers": 1,
            "busy": len(self.running),
            "stuck": 0,
            "down": False,
            "queued": len(self.ring),
            "oldest_call_ns": 0,
            "oldest_queued_ns": 0,
            "hsm_ns": [],
            "recoveries": {},
            "failed": {},
            "refused": self.refused,
            "in_flight": self.used,
            "waiting": len(self.queue),
        }
