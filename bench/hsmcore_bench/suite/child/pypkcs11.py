"""python-pkcs11 at its best: as shipped, and on a module that was made thread-safe first."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pkcs11
from pkcs11 import _pkcs11

from hsmcore_bench.suite.child.module import Module
from hsmcore_bench.suite.child.protocol import PIN_ENV, Job, check_message
from hsmcore_bench.suite.child.tasks import event_loop, loop_name, saturate
from hsmcore_bench.suite.child.threads import threaded_slice


class AdoptingLib(_pkcs11.lib):
    """python-pkcs11's library object for a module that is initialized already."""

    def initialize(self) -> None:
        pass


class Sessions:
    """The library, opened for one job: private keys, each on a session of its own or all on one."""

    def __init__(self, job: Job, count: int, locking: bool) -> None:
        self._module: Module | None = None
        if locking:
            self._module = Module(job.module)
            self._module.initialize()
        self.lib = AdoptingLib(job.module) if locking else pkcs11.lib(job.module)
        token = self.lib.get_token(token_label=job.token)
        # The first session logs the application in; a second C_Login would be refused.
        self._sessions = [token.open(user_pin=os.environ[PIN_ENV])]
        self._sessions += [token.open() for _ in range(count - 1)]
        ecdsa = job.algorithm != "ed25519"
        mechanism = pkcs11.Mechanism.ECDSA if ecdsa else pkcs11.Mechanism.EDDSA
        make = _ecdsa_signer if ecdsa else _signer
        self.signers = [
            make(session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=job.label), mechanism)
            for session in self._sessions
        ]

    @property
    def module_name(self) -> str:
        version = ".".join(str(part) for part in self.lib.library_version)
        return f"{self.lib.manufacturer_id.strip()}: {self.lib.library_description.strip()} {version}"

    def close(self) -> None:
        if self._module is not None:
            self._module.finalize()
        else:
            self.lib.finalize()


def _signer(key: Any, mechanism: pkcs11.Mechanism) -> Callable[[bytes], bytes]:
    return partial(key.sign, mechanism=mechanism)


def _ecdsa_signer(key: Any, mechanism: pkcs11.Mechanism) -> Callable[[bytes], bytes]:
    def sign(message: bytes) -> bytes:
        signature: bytes = key.sign(hashlib.sha256(message).digest(), mechanism=mechanism)
        return signature

    return sign


class ThreadSigner:
    """Plain threads. As shipped they must share one session: with one each, SoftHSM crashes."""

    def __init__(self, job: Job) -> None:
        shared = job.kind == "pkcs11-shared"
        self._sessions = Sessions(job, 1 if shared else job.sessions, locking=not shared)
        self._message = check_message(job.message_bytes)
        signers = self._sessions.signers * job.in_flight if shared else self._sessions.signers
        self._calls = [partial(sign, self._message) for sign in signers]

    def describe(self) -> Mapping[str, Any]:
        return {"signature": self._calls[0]().hex(), "module": self._sessions.module_name}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return threaded_slice(self._calls, seconds)

    def close(self) -> None:
        self._sessions.close()


class ExecutorSigner:
    """What an asyncio program does with it: a thread pool, a session for each of its threads, run_in_executor."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sessions = Sessions(job, job.sessions, locking=True)
        self._message = check_message(job.message_bytes)
        self._own = threading.local()
        self._unused: Iterator[Callable[[bytes], bytes]] = iter(self._sessions.signers)
        self._pool = ThreadPoolExecutor(job.sessions, initializer=self._claim)
        self._runner = asyncio.Runner(loop_factory=event_loop())

    def _claim(self) -> None:
        self._own.sign = next(self._unused)

    def _sign(self, message: bytes) -> bytes:
        signature: bytes = self._own.sign(message)
        return signature

    async def _await(self, message: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._sign, message)

    def describe(self) -> Mapping[str, Any]:
        signature = self._runner.run(self._await(self._message))
        return {"signature": signature.hex(), "module": self._sessions.module_name, "loop": loop_name()}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return self._runner.run(
            saturate(
                self._await,
                [[self._message]] * self._job.in_flight,
                seconds,
                timed_every=self._job.timed_every,
                watch_lag=self._job.watch_lag,
            )
        )

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._sessions.close)
            stack.callback(self._runner.close)
            stack.callback(self._pool.shutdown)
