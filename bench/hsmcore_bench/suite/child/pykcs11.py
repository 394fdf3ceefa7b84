"""PyKCS11. It holds the GIL through every call, so one thread is all it can use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import PyKCS11

from hsmcore_bench.suite.child.protocol import PIN_ENV, Job, check_message
from hsmcore_bench.suite.child.threads import threaded_slice


class PyKCS11Signer:
    def __init__(self, job: Job) -> None:
        self._lib = PyKCS11.PyKCS11Lib()
        self._lib.load(job.module)
        slot = next(
            slot
            for slot in self._lib.getSlotList(tokenPresent=True)
            if self._lib.getTokenInfo(slot).label.strip() == job.token
        )
        self._session = self._lib.openSession(slot)
        self._session.login(os.environ[PIN_ENV])
        (self._key,) = self._session.findObjects(
            [(PyKCS11.CKA_CLASS, PyKCS11.CKO_PRIVATE_KEY), (PyKCS11.CKA_LABEL, job.label)]
        )
        self._message = check_message(job.message_bytes)
        self._hash = job.algorithm != "ed25519"
        self._mechanism = PyKCS11.Mechanism(PyKCS11.CKM_ECDSA if self._hash else PyKCS11.CKM_EDDSA)

    def _sign(self) -> bytes:
        data = hashlib.sha256(self._message).digest() if self._hash else self._message
        return bytes(self._session.sign(self._key, data, self._mechanism))

    def describe(self) -> Mapping[str, Any]:
        return {"signature": self._sign().hex()}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return threaded_slice([self._sign], seconds)

    def close(self) -> None:
        self._session.logout()
        self._session.closeSession()
