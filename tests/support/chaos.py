"""The fault-injecting module (docs/CHAOS.md) for tests: what it wraps, how to configure a key manager for it, and its
control socket. Every test has a configuration of its own; a process holds one at a time of each copy of the module."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import CHAOS, NOOP
from tests.support.softhsm import Token
from tests.support.wrapper import compile_wrapper

import hsmcore


@dataclass(frozen=True)
class Wrapped:
    """A module to put faults before: the settings that name its token and key, and the public key where it is known."""

    module: str
    settings: Mapping[str, Any]
    public_key: bytes = b""


def wrap(token: Token, key: str = "ed25519") -> Wrapped:
    """A SoftHSM token and one of its keys."""
    names = {"tokenLabel": token.label, "keyId": token.keys[key].id, "pin": {"file": str(token.pin_file)}}
    return Wrapped(token.module, {**names, "quirks": "softhsm"}, token.keys[key].public_key)


def wrap_noop() -> Wrapped:
    """The module that does nothing. It signs what begins with "hsmcore" and has at most 64 bytes, and nothing else."""
    return Wrapped(str(NOOP), {"tokenLabel": "noop", "keyLabel": "noop-key", "pin": "1234", "quirks": "softhsm"})


class Chaos:
    """One configuration of the module. `fields` go into it (`faults`, `random`, `latency`, `capacity`, …)."""

    def __init__(self, folder: Path, wrapped: Wrapped, *, module: Path = CHAOS, **fields: Any) -> None:
        self.folder, self.wrapped, self.module = folder, wrapped, str(module)
        self.path, self.socket, self.log = folder / "chaos.json", folder / "chaos.sock", folder / "chaos.log"
        self.write(**fields)

    def write(self, **fields: Any) -> None:
        """Replace the file; the module reads it when it is initialized."""
        names = {"module": self.wrapped.module, "socket": str(self.socket), "log": str(self.log)}
        # At once: the module may be reading it while it is initialized again.
        whole = self.path.with_suffix(".new")
        whole.write_text(json.dumps(names | fields))
        whole.replace(self.path)

    @property
    def args(self) -> str:
        """The module's pReserved."""
        return f"config={self.path}"

    def config(self, *, settings: Mapping[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        """A key manager's configuration: no cache, so that each request costs a call."""
        config: dict[str, Any] = {"modulePath": self.module, "moduleArgs": self.args, "sessions": 2}
        config |= {**self.wrapped.settings, **(settings or {})}
        return {"sequencer": {"keyManager": {"type": "pkcs11", "config": config, "maxCacheSize": 0, **rules}}}

    def ask(self, cmd: str, seconds: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Send one command. Wait for the socket, which goes and comes back when the module is initialized again."""
        until = time.monotonic() + seconds
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(seconds)
                    connection.connect(str(self.socket))
                    connection.sendall(json.dumps({"cmd": cmd, **fields}).encode() + b"\n")
                    with connection.makefile("rb") as lines:
                        answer = lines.readline()
                if answer:
                    break
            except (FileNotFoundError, ConnectionError):
                pass
            assert time.monotonic() < until, "the module's control socket does not answer"
            time.sleep(0.001)
        found: dict[str, Any] = json.loads(answer)
        assert found["ok"], found
        return found

    def stats(self) -> dict[str, Any]:
        """What was called and struck since C_Initialize."""
        return self.ask("stats")

    def calls(self, function: str) -> int:
        """How often a function was called since C_Initialize."""
        count: int = self.stats()["calls"].get(function, 0)
        return count

    def fault(self, function: str, action: str, **fields: Any) -> None:
        """Add a fault; it strikes the next call unless `fields` say otherwise."""
        if not fields.keys() & {"nth", "every", "probability"}:
            fields["nth"] = 1
        self.ask("fault", function=function, action=action, **fields)

    def clear(self) -> None:
        """Take all faults away; what hangs keeps hanging."""
        self.ask("clear")

    def release(self) -> int:
        """Let go what hangs and bring removed tokens back. Returns how many calls hung."""
        released: int = self.ask("release")["released"]
        return released


def engine_of(manager: hsmcore.KeyManager) -> Any:
    """The manager's native engine."""
    member = manager._path.member
    assert member is not None
    return member.engine


def supervisor_of(manager: hsmcore.KeyManager) -> Any:
    """The supervisor of the manager's host process."""
    member = manager._path.member
    assert member is not None
    assert member.supervisor is not None
    return member.supervisor


TPM2 = {"manufacturer": "tpm2-software.github.io", "description": "TPM2.0 Cryptoki"}
"""What tpm2-pkcs11 says of itself: the field `library` of a configuration."""


# ---- processes -------------------------------------------------------------------------------------------------------


def send_signal(pid: int | None, number: int) -> bool:
    """Send a signal to one process, through a pidfd, which cannot mean a group or all processes. Returns whether there
    was such a process."""
    assert isinstance(pid, int)
    assert pid > 1
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def ends_within(fd: int, seconds: float) -> bool:
    """Whether the process of a pidfd ends in time."""
    return bool(select.select([fd], [], [], seconds)[0])


# ---- a module that a message can kill, or that refuses one message ---------------------------------------------------

_POISON = r"""
static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR out, CK_ULONG_PTR room) {
    const struct timespec pause = {.tv_nsec = MICROSECONDS * 1000L};
    if (memmem(data, size, "poison", 6) != NULL) {
        if (REFUSAL != 0) {
            return REFUSAL;
        }
        *(volatile char *)1 = 0; /* not raise(): the signal may be blocked */
    }
    (void)nanosleep(&pause, NULL);
    return theirs->C_Sign(session, data, size, out, room);
}

static void change(void) {
    own.C_Sign = sign;
}
"""


def compile_poison(target: str, folder: Path, *, refusal: int = 0, microseconds: int = 0) -> Path:
    """A module before `target` that dies of every message with "poison" in it, or refuses it with the CKR `refusal`; a
    signature of any other message takes so much longer."""
    numbers = {"REFUSAL": f"{refusal}UL", "MICROSECONDS": str(microseconds)}
    return compile_wrapper(_POISON, target, folder / "poison.so", **numbers)


# ---- a key that is replaced by another one ---------------------------------------------------------------------------

_DESTROY = """
import json, sys, pkcs11
asked = json.load(sys.stdin)
token = pkcs11.lib(asked["module"]).get_token(token_label=asked["token"])
with token.open(rw=True, user_pin=asked["pin"]) as session:
    for found in list(session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(asked["id"])})):
        if not asked["private_only"] or found.object_class == pkcs11.ObjectClass.PRIVATE_KEY:
            found.destroy()
"""


def _run(script: str, token: Token, key: str, **more: Any) -> None:
    """Do something to a key of a token, in another process."""
    asked = {"module": token.module, "token": token.label, "pin": token.pin, "id": token.keys[key].id, **more}
    command = [sys.executable, "-c", script]
    subprocess.run(command, input=json.dumps(asked), text=True, check=True, env=token.environment)


def destroy_key(token: Token, key: str, private_only: bool = False) -> None:
    """Take a key pair, or its private half, off a token, in another process."""
    _run(_DESTROY, token, key, private_only=private_only)


_ALLOW = """
import json, sys, pkcs11
asked = json.load(sys.stdin)
token = pkcs11.lib(asked["module"]).get_token(token_label=asked["token"])
with token.open(rw=True, user_pin=asked["pin"]) as session:
    wanted = {pkcs11.Attribute.ID: bytes.fromhex(asked["id"]), pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}
    [found] = list(session.get_objects(wanted))
    found[pkcs11.Attribute.SIGN] = asked["sign"]
"""


def allow_signing(token: Token, key: str, sign: bool) -> None:
    """Set CKA_SIGN of a private key, in another process."""
    _run(_ALLOW, token, key, sign=sign)


def replace_key(token: Token, key: str) -> None:
    """Put another key pair in the place of one: the same label and id, another secret."""
    old = token.keys[key]
    destroy_key(token, key)
    token.add_keys([{"name": key, "kind": old.algorithm, "label": old.label, "id": old.id}])
    assert token.keys[key].public_key != old.public_key


def replace_private_half(token: Token, key: str) -> None:
    """Put another private key in the place of one, and leave the public key that it does not belong to."""
    old = token.keys[key]
    destroy_key(token, key, private_only=True)
    token.add_keys([{"name": key, "kind": old.algorithm, "label": old.label, "id": old.id, "public": False}])
    assert token.keys[key].public_key != old.public_key


def copy_of(module: Path, folder: Path) -> Path:
    """A second instance of a module: the loader knows modules by their files."""
    return Path(shutil.copy(module, folder / module.name))
