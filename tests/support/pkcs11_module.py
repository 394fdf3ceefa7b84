"""A gateway with a key manager for each algorithm, and programs that use it by libhsmcore_pkcs11.so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support.gateways import GatewayProcess

import hsmcore

if TYPE_CHECKING:
    from tests.support.softhsm import Token

MODULE = str(Path(hsmcore.__file__).parent / "_bin" / "libhsmcore_pkcs11.so")
SLOTS = {"ed25519": "ed25519", "p256": "ecdsa-p256", "k1": "ecdsa-secp256k1"}
"""Key managers, and the keys of the world that they sign with."""


@dataclass
class Site:
    """Where it is."""

    gateway: GatewayProcess
    address: str
    log: Path
    world: Token

    def pem(self, slot: str, folder: Path) -> str:
        """The public key of a slot as a file, made of what SoftHSM said."""
        key = self.world.keys[SLOTS[slot]]
        found: Any = None
        if slot == "ed25519":
            found = Ed25519PublicKey.from_public_bytes(key.public_key)
        else:
            curve = SECP256R1() if slot == "p256" else SECP256K1()
            found = EllipticCurvePublicKey.from_encoded_point(curve, key.public_key)
        file = folder / f"{slot}.pem"
        file.write_bytes(found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return str(file)

    @property
    def environment(self) -> dict[str, str]:
        """What a program is started with."""
        return {**os.environ, "HSMCORE_PKCS11_ADDRESS": self.address}


def document(world: Token, folder: Path, slots: Iterable[str] = SLOTS, **gateway: Any) -> dict[str, Any]:
    """A configuration that lets this user sign with every key."""
    rules = {"p256": {"policy": {"kinds": ["raw", "digest32", "prehashed"]}}}
    managers = {
        name: world.config(SLOTS[name], maxCacheSize=0, **rules.get(name, {}))["sequencer"]["keyManager"]
        for name in slots
    }
    client = {"uid": [os.getuid()], "keys": list(slots), "inFlight": 1024}
    listen = [f"unix:{folder}/sign.sock"]
    log = str(folder / "audit.log")
    return {
        "keyManagers": managers,
        "auditLogFile": log,
        "gateway": {"listen": listen, "clients": {"test": client}} | gateway,
    }


@asynccontextmanager
async def served(world: Token, folder: Path, slots: Iterable[str] = SLOTS, **gateway: Any) -> AsyncIterator[Site]:
    """A gateway on a Unix socket in this folder."""
    process = GatewayProcess(folder, document(world, folder, slots, **gateway))
    await process.start()
    try:
        yield Site(process, process.addresses[0], folder / "audit.log", world)
    finally:
        await process.end()


async def tool(site: Site, *command: str, given: bytes = b"", status: int = 0, **environment: str) -> str:
    """Run a program to its end. Returns what it wrote."""
    pipe = asyncio.subprocess.PIPE
    nothing = asyncio.subprocess.DEVNULL
    where = {"stdin": pipe if given else nothing, "stdout": pipe, "stderr": asyncio.subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, env=site.environment | environment, **where)
    shown, _ = await process.communicate(given or None)
    assert process.returncode == status, shown.decode(errors="replace")
    return shown.decode(errors="replace")
