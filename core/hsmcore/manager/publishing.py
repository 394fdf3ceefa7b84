"""Publishes what is bound to positions: a log for each chain, whose leaf i is what position first + i is bound to.

It reads what is bound, in order and behind the signing path, so a kill at any instant leaves a beginning of the log. A
checkpoint is signed by the key that signs, one at a time, and cosigned by witnesses. One process has it signed (in a
fleet the holder); the others write the same files. docs/PUBLIC_LOG.md has the formats, decision 0081 the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Connection

from hsmcore.audit import cosigned
from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.public import GAP, LOST, PAYLOAD, PublicTree, proof_of, published
from hsmcore.audit.record import extra as audit_extra
from hsmcore.audit.witnesses import Witnesses
from hsmcore.base.files import replace
from hsmcore.base.scope import Scope
from hsmcore.base.waiting import whole
from hsmcore.config import Config
from hsmcore.config.publish import Publish
from hsmcore.errors import (
    AlgorithmUnsupported,
    BadArgument,
    ConfigFault,
    ConfigurationError,
    DeadlineExceeded,
    DoubleSign,
    EngineClosed,
    HsmError,
    NotInitialized,
)
from hsmcore.manager.path import OwnTexts
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import MOST, Watermark
from hsmcore.manager.rotation.context import ManagerPort
from hsmcore.members.base import SIGN_SECONDS
from hsmcore.state import Store
from hsmcore.state import published as rows
from hsmcore.state.published import NOTHING, Head, Portion
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import ED25519, Note, VerifierKey, signature_line

_LOOK_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 60.0
_OPENING_SECONDS: Final = 0.02
_KIND: Final = "position-log"
"""What the audit log calls a checkpoint."""
_COPY: Final = "Copy the folder from another host, or from where it was mirrored; see docs/PUBLIC_LOG.md."

T = TypeVar("T")


class PublicLogs:
    """The logs of an open key manager. Belongs to its event loop."""

    def __init__(self, logs: dict[str, PublicLog]) -> None:
        self._logs = logs

    @classmethod
    async def open(cls, config: Config, port: ManagerPort, parts: OwnTexts) -> Self | None:
        """Open, and publish from now on; None: the configuration publishes nothing. Raises HsmError."""
        rules, watermark = config.key_manager, parts.guard.watermark
        if rules.publish is None or rules.policy is None or watermark is None:
            return None
        if parts.path.version.algorithm != "ed25519":
            raise AlgorithmUnsupported("a public log is signed with Ed25519, and the key is of another algorithm")
        made = cls({})
        try:
            for kind in rules.publish.chains:
                store = await Store.open(rules.state_place, config.state_secret)
                made._logs[kind] = log = PublicLog(kind, rules.policy.chain(kind), rules.publish, store, port, parts)
                await log.begin(watermark)
        except BaseException:
            await made.close()
            raise
        watermark.on_bound = made.wake
        return made

    def wake(self) -> None:
        """Something was bound."""
        for log in self._logs.values():
            log.woken.set()

    async def proof(self, domain: str, position: int, timeout: float) -> bytes:
        """As KeyManager.position_proof."""
        for log in self._logs.values():
            if log.domain == domain:
                return await log.proof(position, timeout)
        known = ", ".join(log.domain for log in self._logs.values())
        raise BadArgument(f"{domain} is not published; there is {known}")

    def status(self) -> dict[str, dict[str, Any]]:
        """What is published, by domain, as data for JSON. Any thread."""
        return {log.domain: log.status() for log in self._logs.values()}

    async def close(self) -> None:
        """Stop. What is not published yet is published after the next start. Idempotent."""
        for log in self._logs.values():
            await log.close()


class PublicLog:
    """The log of one chain. Belongs to the event loop; its files are read and written in threads."""

    def __init__(
        self, kind: str, domain: str, settings: Publish, store: Store, port: ManagerPort, parts: OwnTexts
    ) -> None:
        self.domain = domain
        self.woken = asyncio.Event()
        self._chain, self._settings, self._store = settings.chains[kind], settings, store
        self._where = f"{settings.where}.chains.{kind}"
        self._port, self._check, self._have, self._fleet = port, parts.check, parts.sign, parts.fleet
        self._record = parts.record
        self.layout = TreeLayout(Path(settings.folder) / kind)
        self._tree: PublicTree | None = None
        self._head = Head(self._chain.first)
        """The store's row. Read and written under the lock `_one`."""
        self._asked: Checkpoint | None = None
        """What witnesses are asked about; None: another process has that done."""
        self.published: Checkpoint | None = None
        """What is handed out. Replaced, never changed; any thread may read it."""
        self._due: int | None = None
        """Leaves up to the highest position that is bound or given up; None: this process does not look."""
        self._hole: tuple[int, float] = (-1, 0.0)
        """A position that nothing is bound to, and when it was seen first."""
        self._trouble = ""
        self._news, self._one = asyncio.Condition(), asyncio.Lock()
        self._answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._role, self._scope = store.leading(f"public-log-{kind}"), Scope()
        self._witnesses = Witnesses(
            self.layout, settings, lambda: self._asked, partial(_set_from_thread, loop, self._answered)
        )
        self._scope.defer(store.close)
        self._scope.defer(self._role.leave)

    async def begin(self, watermark: Watermark) -> None:
        """Look from now on. Raises HsmError, ConfigurationError."""
        self._watermark = watermark
        self._head = await self._store.run(self._begin)
        signed = Checkpoint.parse(self._head.signed) if self._head.signed else None
        for key, now, was in (
            ("first", self._chain.first, self._head.first),
            ("origin", self._chain.origin, self._chain.origin if signed is None else signed.origin),
        ):
            if now != was:
                raise ConfigurationError.of([ConfigFault(f"{self._where}.{key}", f"is {now}, and was {was}")])
        self.published = await self._read_published()
        await asyncio.to_thread(self._witnesses.start)
        self._scope.defer(partial(asyncio.to_thread, self._witnesses.close))
        pauses: Any = {"retry_seconds": _LOOK_SECONDS, "most_seconds": _MOST_SECONDS}
        failed = f"the public log of {self.domain} does not go on"
        self._scope.every(_LOOK_SECONDS, self._look, failed, wake=self.woken, **pauses)
        self._scope.every(_MOST_SECONDS, self._look_for_news, failed, wake=self._answered, **pauses)

    async def close(self) -> None:
        """Stop. Idempotent."""
        await self._scope.close()

    def status(self) -> dict[str, Any]:
        """As PublicLogs.status."""
        hole, published = self._hole[0], 0 if self.published is None else self.published.size
        asks = self._asked is not None and self._settings.needed
        return {
            "origin": self._chain.origin,
            "first": self._chain.first,
            "signed": self._head.size,
            "published": published,
            "waiting": self._due and max(self._due - published, 0),
            "waitsFor": None if hole < 0 else hole,
            "problem": self._trouble or None,
            "cosignedAt": self._witnesses.quorum_at if asks else None,
            "witnesses": {name: one.as_dict() for name, one in self._witnesses.status.items()},
        }

    async def proof(self, position: int, timeout: float) -> bytes:
        """As KeyManager.position_proof."""
        index = position - self._chain.first
        if not 0 <= index < 1 << 62:
            raise BadArgument(f"the log of {self.domain} begins at position {self._chain.first}")

        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: self._has_published(index + 1))
        except TimeoutError:
            late = [f"{name}: {one.error}" for name, one in self._witnesses.status.items() if one.error]
            why = "; ".join([self._trouble, *late] if self._trouble else late)
            problem = f"position {position} of {self.domain} is not in the public log in time"
            raise DeadlineExceeded(f"{problem} ({why})" if why else problem, maybe_signed=False) from None
        assert self.published is not None  # noqa: S101  # for the type checker
        return await asyncio.to_thread(proof_of, self.layout, self.published, index)

    def _begin(self, connection: Connection) -> Head:
        return rows.begin(connection, self.domain, self._chain.first)

    def _opened(self) -> PublicTree:
        return PublicTree.found(self.layout, (self._head.signed, self._head.cosigned))

    async def _look(self) -> float | None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            self._check()
            await self._go_on()
        except NotInitialized:  # nothing is signed before the key manager is open
            return _OPENING_SECONDS
        except EngineClosed:
            return _MOST_SECONDS
        except Exception as error:
            self._tree, self._trouble = None, str(error)
            await self._role.leave()
            raise
        self._trouble = ""
        await asyncio.sleep(begun + self._settings.every_millis / 1e3 - loop.time())
        return self._settings.gap_seconds if self._hole[0] >= 0 else None

    async def _go_on(self) -> None:
        led, leads = self._role.held, await self._lead()
        if not leads and self._fleet is None:  # the process that leads writes the files
            self.published, self._due = await self._read_published(), None
            return
        tree = self._tree if led or not leads else None  # else another process has written the files
        if tree is None:
            async with self._one:
                self._head = await self._store.run(self._begin)
            self._tree = tree = await self._in_thread(self._opened)
        while True:
            async with self._one:
                found = await self._store.run(partial(self._portion, size=tree.size))
                self._head, self._due = found.head, found.due
            self._require_same(tree)
            entries = [_entry(digest) for digest in found.digests]
            if not leads or tree.size < found.head.size:  # what was signed is met first
                entries = entries[: max(found.head.size - tree.size, 0)]
            if not entries:
                break
            await self._in_thread(tree.append, entries)
        self._require_whole(tree)
        if leads:
            await self._give_up(found)
            if tree.size > found.head.size:
                await self._have_signed(tree)
        self._ask_on()
        await self._hand_out()

    def _portion(self, connection: Connection, size: int) -> Portion:
        return rows.portion(connection, self._store, self.domain, self._chain.first, size)

    def _ask_on(self) -> None:
        """Have witnesses asked about the newest checkpoint, as soon as they are done with the one before: they take one
        at a time, and a quorum is of one and the same."""
        before, head = self._asked, self._head.signed
        newest = Checkpoint.parse(head) if self._role.held and head else None
        done = before is None or self._has_published(before.size) or not self._witnesses.busy
        if newest != before and (done or newest is None):
            self._asked = newest
            self._witnesses.wake()

    def _has_published(self, size: int) -> bool:
        return self.published is not None and self.published.size >= size

    def _require_same(self, tree: PublicTree) -> None:
        """Raise HsmError if the tree is another one than was signed."""
        if self._head.size and tree.size == self._head.size and tree.root != Checkpoint.parse(self._head.signed).root:
            raise HsmError(f"the public log in {self.layout.folder} is another one than was signed", hint=_COPY)

    def _require_whole(self, tree: PublicTree) -> None:
        """Raise HsmError unless the tree has all that was signed, and all that the folder has published."""
        least = max(self._head.size, tree.must_have)
        if tree.size < least:
            problem = f"has {tree.size} leaves where {least} were signed, and the rest is not in the state store"
            raise HsmError(f"the public log in {self.layout.folder} {problem}", hint=_COPY)

    async def _lead(self) -> bool:
        """Whether this process has checkpoints signed: in a fleet the holder, else the first one that can."""
        if self._fleet is not None and self._fleet.state != "holder":
            await self._role.leave()
        else:
            await self._role.take()
        return self._role.held

    async def _give_up(self, found: Portion) -> None:
        """Bind the positions that hold the log up to nothing, once they have done so for long enough."""
        if not found.holes:
            self._hole = (-1, 0.0)
        elif found.holes[0] != self._hole[0]:
            self._hole = (found.holes[0], monotonic())
        elif monotonic() - self._hole[1] >= self._settings.gap_seconds:
            places = [PayloadPlace(self.domain, at, NOTHING) for at in found.holes[:MOST]]
            for outcome in await asyncio.gather(*map(self._watermark.require, places), return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, DoubleSign):
                    raise outcome
            self.woken.set()

    async def _have_signed(self, tree: PublicTree) -> None:
        text = Checkpoint(self._chain.origin, tree.size, tree.root).text
        extra = audit_extra(kind=_KIND) if self._record.enabled else None
        receipt = await self._have(text, SIGN_SECONDS, extra, self._port.signing()[0].public_key)
        note = text + b"\n" + signature_line(self._key(receipt.public_key), receipt.signature)
        note += await self._endorsed(text, receipt.public_key)
        await self._write(size=tree.size, signed=note)

    async def _endorsed(self, text: bytes, current: bytes) -> bytes:
        """Signatures of the keys that signed the checkpoint before, as long as they verify: a witness that does not
        know the new key yet takes theirs."""
        before, lines = self._head.signed and Note.parse(self._head.signed), b""
        for version in self._port.manager.keys():  # noqa: SIM118  # a list
            key = self._key(version.public_key)
            if before and version.state == "active" and version.public_key != current and before.signers([key]):
                with suppress(HsmError):
                    loaded = version if version.index >= 0 else await self._port.load(version.id)
                    lines += signature_line(key, await self._port.sign(loaded, text))
        return lines

    def _key(self, public_key: bytes) -> VerifierKey:
        return VerifierKey(self._chain.origin, ED25519, public_key)

    async def _write(self, **changed: Any) -> None:
        async with self._one:
            head = self._head._replace(**changed)
            await self._store.run(partial(rows.advance, domain=self.domain, was=self._head, now=head))
            self._head = head

    async def _look_for_news(self) -> None:
        self._ask_on()  # if all have answered
        await self._hand_out()
        self._ask_on()  # if a quorum has

    async def _read_published(self) -> Checkpoint | None:
        return await asyncio.to_thread(published, self.layout, self._witnesses.keys, self._settings.needed)

    @staticmethod
    async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
        """Do what writes files. A cancellation waits for its end: the next process may write them."""
        return await whole(asyncio.to_thread(work, *arguments))

    async def _hand_out(self) -> None:
        """Hand out the newest checkpoint that a quorum has cosigned: this process's, or the one of the store."""
        async with self._news:
            own, tree = self._asked, self._tree
            note = self._head.cosigned or None if own is None else own.note
            if own is not None and self._settings.needed:
                note = await asyncio.to_thread(
                    cosigned.with_quorum, self.layout, self._witnesses.keys, self._settings.needed
                )
            found = Checkpoint.parse(note) if note else None
            if found is None or tree is None or found.size > tree.size or found == self.published:
                return
            await self._in_thread(replace, self.layout.checkpoint, found.note)
            self.published = found
            self._news.notify_all()
        if own is not None and self._role.held:
            await self._write(cosigned=found.note)


def _entry(digest: str | None) -> bytes:
    """Return the leaf of a position. Raises ValueError for what no digest is."""
    if digest is None:
        return LOST
    if digest == NOTHING:
        return GAP
    data = bytes.fromhex(digest)
    if len(data) != 32:
        raise ValueError("not a digest")
    return PAYLOAD + data


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(event.set)
