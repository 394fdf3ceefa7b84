"""Make an Ed25519 key in a new SoftHSM token, sign with it, and verify the signature twice: with hsmcore, and with
PyNaCl, which knows nothing of hsmcore.

    scripts/sign_once.py FOLDER MODULE [PYTHON]

It runs where a wheel is installed, and imports nothing of this checkout. FOLDER gets the token. PYTHON starts hsmcore's
children, if the interpreter itself cannot, as one for another processor.
"""

import asyncio
import platform
import sys
from pathlib import Path

import nacl.signing

import hsmcore
from hsmcore.members.control.softhsm import StateFolder


async def sign(config: str) -> bytes:
    """Sign and verify with the key manager of a configuration."""
    async with hsmcore.create_key_manager(config) as manager:
        signature = await manager.sign(b"state root", timeout=60)
        if not await manager.verify(b"state root", signature) or await manager.verify(b"another", signature):
            raise SystemExit("the key manager's own verification is wrong")
        return signature


folder, module, sys.executable = Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [sys.executable])[0]
state = StateFolder(folder)
key = state.create(module_path=module, token_label="t", key_label="k", algorithm="ed25519", sessions=1)
signed = asyncio.run(sign(str(state.config)))
nacl.signing.VerifyKey(key.public_key).verify(b"state root", signed)  # refuses by an exception
library = " ".join(platform.libc_ver())
print(
    f"{platform.machine()}, {library}, CPython {platform.python_version()}: signed and verified, {signed.hex()[:16]}…"
)
