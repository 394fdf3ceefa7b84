"""The device's side of the secure channel: GlobalPlatform SCP03 as the YubiHSM 2 uses it."""

from __future__ import annotations

import hmac
import os
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from .codes import Command, DeviceError, Error

MAC_BYTES = 8
CHALLENGE_BYTES = 8
_CARD_CRYPTOGRAM, _HOST_CRYPTOGRAM, _S_ENC, _S_MAC, _S_RMAC = 0, 1, 4, 6, 7


def keys_of_password(password: bytes) -> bytes:
    """K-ENC || K-MAC, 16 bytes each."""
    return PBKDF2HMAC(SHA256(), length=32, salt=b"Yubico", iterations=10_000).derive(password)


def _cmac(key: bytes, *parts: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    for part in parts:
        mac.update(part)
    return mac.finalize()


def _derive(key: bytes, kind: int, context: bytes, size: int = 16) -> bytes:
    return _cmac(key, bytes(11) + struct.pack("!BBHB", kind, 0, size * 8, 1) + context)[:size]


class SecureChannel:
    """One session's keys, MAC chain and counter. `keys` is K-ENC || K-MAC of the authentication key."""

    def __init__(self, keys: bytes, host_challenge: bytes) -> None:
        self.card_challenge = os.urandom(CHALLENGE_BYTES)
        context = host_challenge + self.card_challenge
        self._enc = _derive(keys[:16], _S_ENC, context)
        self._mac = _derive(keys[16:], _S_MAC, context)
        self._rmac = _derive(keys[16:], _S_RMAC, context)
        self.card_cryptogram = _derive(self._mac, _CARD_CRYPTOGRAM, context, MAC_BYTES)
        self._host_cryptogram = _derive(self._mac, _HOST_CRYPTOGRAM, context, MAC_BYTES)
        self._chain = bytes(16)
        self._counter = 0
        self.authenticated = False

    def _check_mac(self, frame: bytes) -> None:
        """The MAC at the frame's end; the chain goes on only if it is right."""
        full = _cmac(self._mac, self._chain, frame[:-MAC_BYTES])
        if not hmac.compare_digest(full[:MAC_BYTES], frame[-MAC_BYTES:]):
            raise DeviceError(Error.AUTHENTICATION_FAILED)
        self._chain = full

    def authenticate(self, frame: bytes) -> None:
        """A whole AUTHENTICATE SESSION frame: header(3), session id, host cryptogram(8), MAC(8)."""
        self._check_mac(frame)
        if not hmac.compare_digest(frame[4 : 4 + MAC_BYTES], self._host_cryptogram):
            raise DeviceError(Error.AUTHENTICATION_FAILED)
        self._counter = 1
        self.authenticated = True

    def _cipher(self) -> Cipher[modes.CBC]:
        block = Cipher(algorithms.AES(self._enc), modes.ECB()).encryptor()  # noqa: S305  # the standard's IV
        return Cipher(algorithms.AES(self._enc), modes.CBC(block.update(self._counter.to_bytes(16, "big"))))

    def open(self, frame: bytes) -> bytes:
        """The command inside a SESSION MESSAGE frame, without its padding."""
        self._check_mac(frame)
        sealed = frame[4:-MAC_BYTES]
        if not sealed or len(sealed) % 16:
            raise DeviceError(Error.WRONG_LENGTH)
        padded = self._cipher().decryptor().update(sealed)
        inner = padded.rstrip(b"\0")
        if not inner.endswith(b"\x80"):
            raise DeviceError(Error.INVALID_DATA)
        return inner[:-1]

    def seal(self, session: int, reply: bytes) -> bytes:
        """The SESSION MESSAGE reply frame around an inner reply. Ends the exchange: the counter goes on."""
        padded = reply + b"\x80" + bytes(-(len(reply) + 1) % 16)
        body = bytes([session]) + self._cipher().encryptor().update(padded)
        head = struct.pack("!BH", Command.SESSION_MESSAGE | 0x80, len(body) + MAC_BYTES) + body
        self._counter += 1
        return head + _cmac(self._rmac, self._chain, head)[:MAC_BYTES]
