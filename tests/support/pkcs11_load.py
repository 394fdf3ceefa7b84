"""A program that signs by a PKCS #11 module with several threads until its input ends. It prints a line for each 20
signatures, then what it saw as JSON.

python -m tests.support.pkcs11_load MODULE RESERVED SLOT THREADS PUBLIC_KEY
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from collections import Counter

from nacl.signing import VerifyKey
from tests.support.pkcs11_client import Module

SAID = 20


def main(path: str, reserved: str, label: str, threads: int, public_key: str) -> None:
    """Sign, verify and count."""
    module, key = Module(path), VerifyKey(bytes.fromhex(public_key))
    assert module.initialize(reserved=reserved.encode()) == 0
    slot = module.slots()[0]
    errors: Counter[str] = Counter()
    signed = [0] * threads
    ended = threading.Event()

    def work(number: int) -> None:
        session = module.session(slot)
        handle = module.key(session, label)
        while not ended.is_set():
            message = b"%d %d" % (number, signed[number])
            rv, made = module.sign_once(session, handle, message)
            if rv != 0:
                errors[hex(rv)] += 1
                continue
            key.verify(message, made)
            signed[number] += 1
            if signed[number] % SAID == 0:
                os.write(1, b"%d\n" % sum(signed))  # whole, whatever other threads write

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    ended.set()
    for worker in workers:
        worker.join()
    assert module("C_Finalize", ctypes.c_void_p()) == 0
    os.write(1, json.dumps({"signed": signed, "errors": dict(errors)}).encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
