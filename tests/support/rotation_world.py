"""A world for rotations in one process: tokens in memory, a chain on LiteSVM, and processes that come and go.

Service, runner, machine, steps, key ring, handover and store are the real ones. Each effect of the world and each point
of a rotation is a *tick*, at which a process can be cut off, as kill -9 does, and at which the law is checked: the key
that the chain obeys exists.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey, VerifyKey
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from tests.support.managers import cut_off
from tests.support.solana import Chain

from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyVersion
from hsmcore.config import load
from hsmcore.errors import HsmError, KeyDeactivated, KeyNotFound, MemberDown
from hsmcore.handover.client import Account, ChainRefused
from hsmcore.handover.solana import MintAuthority, NonceAuthority, ProgramAuthority, SolanaHandover
from hsmcore.manager.keys import KeyOperations
from hsmcore.manager.rotation.service import RotationService
from hsmcore.members.base import TokensTold
from hsmcore.members.control import Deactivation, KeyRecord
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.members.control.keys import NewKeyId, Sweep
from hsmcore.state import Desired, Store

FIRST = "0a0b0c0d"
PROGRAM, MINT, NONCE = (Pubkey(bytes([n]) * 32) for n in (7, 8, 9))
AUTHORITIES = (MintAuthority(MINT), NonceAuthority(NONCE), ProgramAuthority(PROGRAM), MintAuthority(MINT, freeze=True))


class Broken(AssertionError):
    """The law does not hold."""


class CutOff(asyncio.CancelledError):
    """The process has ended here. No error of the code under test, which handles every Exception."""


@dataclass
class Held:
    key: SigningKey
    record: KeyRecord


class Device:
    """A token, as Member, KeyAdmin and ControlPlane of a key manager: also what it does is a tick."""

    level, engine = "primary", None

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.away = world, name, False
        self.held: dict[str, Held] = {}
        self.control = self.token = self

    def put(self, key_id: str, label: str, key: SigningKey) -> KeyRecord:
        record = KeyRecord(key_id, label, "ed25519", bytes(key.verify_key), True, True, True)
        self.held[key_id] = Held(key, record)
        self.world.chain.fund(record.public_key)
        return record

    def _act(self, what: str) -> None:
        self.world.tick(f"{what} on {self.name}")
        if self.away:
            raise MemberDown(f"{self.name} is away", member=self.name)

    async def list_keys(self) -> list[KeyRecord]:
        self._act("list")
        return [held.record for held in self.held.values()]

    async def generate_key(self, algorithm, label, key_id=None, *, extractable=False):
        self._act("generate")
        record = self.put(key_id.hex(), label, SigningKey(self.world.random.randbytes(32)))
        self.world.tick("generated")
        return record

    async def deactivate(self, key_id: str) -> Deactivation:
        self._act("deactivate")
        if key_id not in self.held:
            raise KeyNotFound(key_id)
        self.held[key_id].record = replace(self.held[key_id].record, can_sign=False)
        return Deactivation(key_id, True)

    async def destroy(self, key_id: str) -> None:
        self._act("destroy")
        del self.held[key_id]
        self.world.tick("destroyed")

    async def do(self, verb: Any) -> Any:
        """As ControlPlane.do."""
        if isinstance(verb, NewKeyId):
            return self.world.random.randbytes(16)
        if isinstance(verb, Sweep):
            return 0
        self._act(type(verb).__name__)
        if isinstance(verb, ExportWrapped):
            return verb.key_id.encode() + b" " + self.held[verb.key_id].record.label.encode()
        assert isinstance(verb, ImportWrapped), verb
        key_id, label = verb.backup.decode().split(" ")
        source = next(d for d in self.world.devices if key_id in d.held)
        return self.put(key_id, label, source.held[key_id].key)


class LateChain(Chain):
    """A chain that refuses, loses answers, and executes transactions late or never."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.svm = LiteSVM().with_blockhash_check(False)
        self.refuse = self.settled = 0
        self.in_doubt: list[bytes] = []

    def _may_fail(self) -> None:
        self.world.tick("chain")
        if self.world.trouble and self.world.random.random() < 0.04:
            raise ChainRefused("the node is away", status="TOKEN_LOST")

    async def account(self, address: bytes) -> Any:
        self._may_fail()
        return await super().account(address)

    async def blockhash(self) -> bytes:
        return self.world.random.randbytes(32)

    def land(self, chance: float) -> None:
        """Let transactions in doubt be executed, each by this chance; one that waits is executed at most once."""
        waiting, self.in_doubt = self.in_doubt, []
        for transaction in waiting:
            if self.world.random.random() < chance:
                self.send(transaction)
            else:
                self.in_doubt.append(transaction)

    async def settle(self) -> None:
        self._may_fail()
        self.land(0.5)
        self.in_doubt.clear()  # expired
        self.world.law("settled")
        self._may_fail()

    async def execute(self, transaction: bytes) -> None:
        self._may_fail()
        fate = self.world.random.random() if self.world.trouble else 1.0
        if fate < 0.08:
            raise ChainRefused("refused")
        if fate < 0.2:
            self.in_doubt.append(transaction)
            self.world.tick("sent")
            raise ChainRefused("the transaction was not finalized in time")
        why = self.send(transaction)
        self.world.tick("executed")
        if fate < 0.28:
            raise ChainRefused("the answer was lost", status="TOKEN_LOST")
        if why is not None:
            raise ChainRefused(why)


@dataclass
class World:
    """`seed` determines everything. `folder`: of the store."""

    seed: int
    folder: Path
    random: random.Random = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    cut_at: int | None = None
    """Ticks until the process that acts ends."""
    armed: tuple[str, int] | None = None
    """The step from whose beginning on `cut_at` counts, and its value then."""
    trouble = True
    known: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now, self.step = 0, "any step"
        self.chain = LateChain(self)
        names = ["a", "b"][: self.random.choice([1, 1, 2])]
        self.devices = [Device(self, f"softhsm:{name}") for name in names]
        self.required = self.random.random() < 0.7
        self.authorities = AUTHORITIES[: self.random.randint(1, 4)]
        self.rules = {
            "overlapDays": self.random.choice([0, 1]), "intervalDays": 300,
            "destroyAfterDays": self.random.choice([0, 0, 1, None]), "requireHandover": self.required,
        }  # fmt: skip
        key = SigningKey(self.random.randbytes(32))
        for device in self.devices:
            device.put(FIRST, "key", key)
        public = bytes(key.verify_key)
        self.chain.program(PROGRAM, public)
        self.chain.mint(MINT, public)
        self.chain.nonce(NONCE, public)

    def config(self) -> Any:
        """The configuration of a process that begins now: all devices that are not gone from it."""
        providers = [
            {"type": "softhsm", "config": {"modulePath": "/none.so", "tokenLabel": device.name.partition(":")[2],
                                           "pin": {"env": "NONE"}, "keyId": FIRST}}
            for device in self.devices
        ]  # fmt: skip
        block = {name: value for name, value in self.rules.items() if value is not None}
        rules = {"stateFile": str(self.folder / "state.db"), "keyRotation": block}
        return load({"keyManager": {**providers[0], "failover": {"primary": providers[1:] or None}, **rules}
                     if len(providers) > 1 else {**providers[0], **rules}})  # fmt: skip

    def obeyed(self) -> set[bytes]:
        """The keys that the authorities obey."""
        found = [(authority, self.chain.svm.get_account(authority.address)) for authority in self.authorities]
        return {bytes(each.holder(Account(bytes(raw.owner), bytes(raw.data)))) for each, raw in found}

    def law(self, where: str) -> None:
        """The key that the chain obeys exists. Raises Broken."""
        there = {held.record.public_key for device in self.devices for held in device.held.values()}
        if not self.obeyed() <= there:
            raise Broken(f"at {where}: the chain obeys a key that is destroyed")

    def tick(self, where: str) -> None:
        """A point at which the process may end."""
        self.counts["ticks"] += 1
        if self.trouble and self.chain.in_doubt:
            self.chain.land(0.02)
        self.law(where)
        if self.armed is not None and where == f"{self.armed[0]}:begun":
            self.cut_at, self.armed, self.step = self.armed[1], None, self.armed[0]
        if self.cut_at is not None:
            self.cut_at -= 1
            if self.cut_at <= 0:
                self.cut_at = None
                self.counts[f"cut in {self.step}"] += 1
                raise CutOff

    def disarm(self) -> None:
        """Cut nothing off."""
        self.cut_at, self.armed, self.step = None, None, "any step"

    def clock(self) -> int:
        self.now += 300_000_000
        return self.now


class Signing:
    """As SigningPath, over the devices of a world."""

    failover = None

    def __init__(self, world: World, current: KeyVersion, members: list[Device]) -> None:
        self.world, self.version, self._members = world, current, members
        self._loaded: dict[str, set[bytes]] = {device.name: set() for device in members}
        self._retired: set[bytes] = set()

    def lasting(self) -> list[Device]:
        return [device for device in self._members if not device.away]

    def holders(self, public_key: bytes | None = None) -> list[Device]:
        key = public_key or self.version.public_key
        return [device for device in self.lasting() if key in self._loaded[device.name]]

    def signing(self) -> list[KeyVersion]:
        return [self.version]

    async def load_key(self, identity: bytes) -> KeyVersion:
        self.world.tick("load")
        found = [(d, d.held[identity.hex()].record) for d in self.lasting() if identity.hex() in d.held]
        if not found:
            raise KeyNotFound(f"no member holds {identity.hex()}")
        for device, record in found:
            self._loaded[device.name].add(record.public_key)
        record = found[0][1]
        return KeyVersion(record.id, record.label, "ed25519", record.public_key, 0)

    async def sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        self.world.tick("sign")
        if version.public_key in self._retired:
            raise KeyDeactivated(version.id)
        for device in self.lasting():
            held = device.held.get(version.id)
            if held is not None and held.record.can_sign:
                return bytes(held.key.sign(message).signature)
        raise KeyNotFound(version.id)

    def use(self, version: KeyVersion) -> None:
        self.version = version

    def retire_key(self, version: KeyVersion) -> None:
        self._retired.add(version.public_key)

    forget = retire_key

    async def deactivate(self, version: KeyVersion) -> TokensTold:
        self.retire_key(version)
        for device in self.lasting():
            if version.id in device.held:
                await device.deactivate(version.id)
        untold = tuple(device.name for device in self._members if device.away)
        return TokensTold(not untold, untold)


class Silent:
    """An audit log that keeps nothing."""

    enabled = False

    def note(self, *_arguments: Any, **_details: Any) -> None: ...

    record = note


class Service(RotationService):
    """A service whose turns the test takes."""

    async def _look(self) -> float:
        return 3600.0

    async def turn(self) -> None:
        """One look."""
        try:
            try:
                await self._work()
            finally:
                await self._see()
        except HsmError as error:
            self._answer(error)


class Process:
    """A key manager of some kind: "application" (with the handover), "late" (registers it after its first turns),
    "bare" (leads, without a handover) or "serve" (follows)."""

    def __init__(self, world: World, kind: str) -> None:
        self.world, self.kind = world, kind

    async def begin(self) -> None:
        """Start with the ring's current key. Raises HsmError if no member has it."""
        world = self.world
        config = world.config()
        self.store = await Store.open(config.key_manager.state_path)
        rules = config.key_manager.active_rotation

        async def announce(*_notice: Any) -> bool:
            return True

        clocks = {"clock": staticmethod(world.clock), "boot": staticmethod(lambda: world.now)}
        own = type("Own", (Service,), {**clocks, "trace": staticmethod(world.tick)})
        self.service = service = own(config, rules, self.store, announce, 0, rotates=self.kind != "serve")
        if self.kind == "application":
            self.register()
        current = await service.keys.current()
        self.path = Signing(world, None, world.devices)
        self.path.version = await self.path.load_key(bytes.fromhex(FIRST if current is None else current.key_id))
        keys = KeyOperations(self.path, service, config.key_manager, Silent(), Events())
        keys.ring.add(self.path.version)
        keys.ring.make_current(self.path.version.id)
        await service.begin(keys.port(None), self.path.version)

    def register(self) -> None:
        """As KeyManager.on_rotation."""
        self.service.handover = SolanaHandover(self.world.chain, self.world.authorities)

    async def signs(self) -> None:
        """A signature of the current key. Raises HsmError."""
        message = self.world.random.randbytes(16)
        version = self.path.version
        VerifyKey(version.public_key).verify(message, await self.path.sign_as(version, message))

    async def wish(self, name: str) -> None:
        await Desired(self.store).set(name, "now", "asked for")

    async def end(self, *, killed: bool) -> None:
        """End in order, or as by kill -9: the lock goes, and nothing is said."""
        self.world.disarm()
        if killed:
            await cut_off(self.service._scope)
            await self.service._role.leave()
        else:
            await self.service.close()
        await self.store.close()
