"""The load of a failover schedule, and what is counted of it: every request has one answer, and each is judged."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from tests.chaos.failover_site import Attempts
from tests.support.liveness import Liveness

import hsmcore
from hsmcore.errors import AuditUnavailable, HsmError, RequestRejected
from hsmcore.failover.errors import AllLevelsFailed

if TYPE_CHECKING:
    from tests.chaos.failover_schedules import Plan

CALLERS = 8
LATEST = 1.0
"""An answer that comes so many seconds after its deadline counts as a hang."""
BATCH = 12


class Verdict:
    """What became of one schedule."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: Counter[str] = Counter()  # what must be 0
        self.answers: Counter[str] = Counter()  # "signed", or the status of the error
        self.levels: Counter[str] = Counter()
        self.doings: Counter[str] = Counter()
        self.notes: list[str] = []
        self.transitions = self.attempts = self.emergencies = self.records = 0
        self.latest = self.healed = 0.0

    def fault(self, kind: str, note: str, count: int = 1) -> None:
        """Note a fault."""
        if count:
            self.faults[kind] += count
            if self.faults[kind] == count:  # the first of its kind tells enough
                self.notes.append(f"{self.name}: {kind}: {note}")

    def as_dict(self) -> dict[str, Any]:
        """For the process that adds them up."""
        return {
            "faults": self.faults,
            "answers": self.answers,
            "schedules by level used": self.levels,
            "doings": self.doings,
            "notes": self.notes,
            "schedules": 1,
            "transitions": self.transitions,
            "attempts": self.attempts,
            "emergency signatures": self.emergencies,
            "audit records of signatures": self.records,
            "latest": self.latest,
            "slowest to heal": self.healed,
        }


class Asking:
    """Callers on one key manager. `keys`: the public keys of all members but the emergency one."""

    def __init__(
        self,
        manager: hsmcore.KeyManager,
        plan: Plan,
        verdict: Verdict,
        attempts: Attempts,
        keys: set[bytes],
    ) -> None:
        self.manager, self.plan, self.verdict, self.attempts, self.keys = manager, plan, verdict, attempts, keys
        self.over = False
        self.asked = 0
        self.signed: dict[bytes, tuple[bytes, bytes]] = {}  # message -> (public key, signature)
        self.operations = 0
        self.liveness = Liveness()
        manager.on("emergency-operation", self._operation)

    def _operation(self, _details: object) -> None:
        self.operations += 1

    async def caller(self, number: int) -> None:
        """Ask for one thing after the other, in every way there is."""
        dice = random.Random(self.plan.seed * CALLERS + number)
        while not self.over:
            way = dice.choices(["receipt", "plain", "many", "impatient", "liberal"], [45, 25, 10, 10, 10])[0]
            await getattr(self, f"_{way}")()
            await asyncio.sleep(dice.uniform(0.0, 0.012))

    def _message(self) -> bytes:
        self.asked += 1
        return f"hsmcore {self.plan.seed} {self.asked}".encode()

    async def _receipt(self, *, liberal: bool = False) -> None:
        message = self._message()
        if liberal:
            self.attempts.exempt.add(message)
        begun = time.monotonic()
        try:
            receipt = await self.manager.sign_with_receipt(message, self.plan.timeout, allow_other_key=liberal)
        except HsmError as error:
            self._failed(error)
            self._on_time(begun)
            await self._again(message, liberal=liberal)
        else:
            self._on_time(begun)
            self._good(message, receipt.signature, [receipt.public_key])
            emergency = receipt.level == "emergency"
            if emergency == (receipt.public_key in self.keys):
                self.verdict.fault("wrong", f"a key of another level than {receipt.level}")

    async def _liberal(self) -> None:
        await self._receipt(liberal=True)

    async def _again(self, message: bytes, *, liberal: bool) -> None:
        """The caller asks once more for the same message: what may have been signed must not get a second key."""
        self.asked += 1
        try:
            receipt = await self.manager.sign_with_receipt(message, self.plan.timeout, allow_other_key=liberal)
        except HsmError as error:
            self._failed(error)
        else:
            self._good(message, receipt.signature, [receipt.public_key])

    async def _plain(self) -> None:
        message, begun = self._message(), time.monotonic()
        asked = self.liveness.ask("primary", begun, self.plan.timeout)
        try:
            signature = await self.manager.sign(message, self.plan.timeout)
        except HsmError as error:
            # Only that key may sign it, and its members may be down. The literal mode counts its attempts.
            asked.own = self.attempts.is_bound(message) or self.plan.mode == "literal"
            self.liveness.end(asked, time.monotonic(), error.status)
            self._failed(error)
        else:
            self._good(message, signature, self._any_key())
            # What the emergency level signs shows nothing: its budget ends at any time.
            regular = self.signed[message][0] in self.keys if message in self.signed else True
            self.liveness.end(asked, time.monotonic(), "OK" if regular else "CANCELLED")
        self._on_time(begun)

    async def _many(self) -> None:
        messages, begun = [self._message() for _ in range(BATCH)], time.monotonic()
        results = await self.manager.sign_many(messages, self.plan.timeout, return_exceptions=True)
        self._on_time(begun)
        self.verdict.fault("lost", "a batch came back shorter", len(messages) - len(results))
        for message, result in zip(messages, results, strict=True):
            if isinstance(result, bytes):
                self._good(message, result, self._any_key())
            else:
                self._failed(result)

    async def _impatient(self) -> None:
        """A caller that goes away, and asks again later: what may have been signed must not get a second key."""
        dice = random.Random(self.asked)
        way = dice.choice(["sign", "sign_with_receipt", "sign_many"])
        messages = [self._message() for _ in range(BATCH if way == "sign_many" else 1)]
        asked = messages if way == "sign_many" else messages[0]
        asking = asyncio.ensure_future(getattr(self.manager, way)(asked, self.plan.timeout))
        await asyncio.sleep(dice.choice([0.0, 0.001, 0.01]))
        asking.cancel()
        try:
            results = await asking
        except asyncio.CancelledError:
            self.verdict.answers["CANCELLED"] += len(messages)
        except HsmError as error:
            for _ in messages:
                self._failed(error)
        else:
            signatures = results if way == "sign_many" else [getattr(results, "signature", results)]
            for message, signature in zip(messages, signatures, strict=True):
                self._good(message, signature, self._any_key())
            return
        await asyncio.sleep(dice.choice([0.0, 0.05, 0.2]))
        for message in messages:
            await self._again(message, liberal=False)

    # ---- judging ----

    def _any_key(self) -> list[bytes]:
        return [version.public_key for version in self.manager.keys()]  # noqa: SIM118  # no dict

    def _failed(self, error: HsmError) -> None:
        self.verdict.answers[error.status] += 1
        # RequestRejected: a module refused the same request twice, and no other was there to ask. AuditUnavailable:
        # on a busy machine the disk is late, and what is not recorded is not handed out.
        if not isinstance(error, (AllLevelsFailed, RequestRejected, AuditUnavailable)):
            self.verdict.fault("unfit errors", repr(error))

    def _good(self, message: bytes, signature: bytes, keys: list[bytes]) -> None:
        self.verdict.answers["signed"] += 1
        by = next((key for key in keys if _verifies(key, message, signature)), None)
        if by is None:
            self.verdict.fault("wrong", f"{message!r}")
            return
        before = self.signed.setdefault(message, (by, signature))
        if before[0] != by:
            self.verdict.fault("second key", f"{message!r} was answered under two keys")
        self.verdict.emergencies += by not in self.keys

    def _on_time(self, begun: float) -> None:
        late = time.monotonic() - begun - self.plan.timeout
        self.verdict.latest = max(self.verdict.latest, late)
        self.verdict.fault("hangs", f"answered {late:.2f} s late", late > LATEST)

    async def judge(self) -> None:
        """Check the counts at the end."""
        verdict, manager = self.verdict, self.manager
        answered = sum(verdict.answers.values())
        verdict.fault("lost", f"{self.asked} asked, {answered} answered", max(self.asked - answered, 0))
        verdict.fault("twice", f"{self.asked} asked, {answered} answered", max(answered - self.asked, 0))
        most = self.plan.budget
        verdict.fault("over budget", f"{self.operations} operations of {most}", max(self.operations - most, 0))
        verdict.fault("over budget", f"{verdict.emergencies} signatures of {most}", max(verdict.emergencies - most, 0))
        found = self.liveness.without_need()
        verdict.fault("refused without need", self.liveness.describe(found), sum(map(len, found.values())))
        if not self.plan.emergency:
            verdict.fault("over budget", "there is no emergency level", verdict.emergencies + self.operations)
        if self.plan.audited:
            await self._judge_records(manager)

    async def _judge_records(self, manager: hsmcore.KeyManager) -> None:
        """Each signature that was handed out has one record. A caller that went away may have one, too."""
        found: Counter[str] = Counter()
        async for record in manager.audit.query(match={"operation": "sign", "result": "ok"}):
            found[record["signature"]] += 1
        self.verdict.records += sum(found.values())
        for message, (_, signature) in self.signed.items():
            self.verdict.fault("unrecorded", f"{message!r}", found[signature.hex()] == 0)


def _verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True
