"""Logins: the part of a provider's configuration that becomes the PIN of C_Login."""

from __future__ import annotations

from typing import Annotated

from hsmcore.config.base import Model, Text, Whole
from hsmcore.config.secret import Secret

Username = Annotated[str, Text(31, form="[^:]+", says="a crypto user's name of 1 to 31 bytes without a colon")]
AuthKeyId = Annotated[int, Whole(1, 0xFFFF)]


class Credentials(Model):
    """The base of all logins."""

    @property
    def secret(self) -> Secret:
        """The secret part, for messages that name its source."""
        raise NotImplementedError

    def resolve_pin(self) -> bytearray:
        """Return the whole PIN for C_Login, which the caller wipes. May block. Raises SecretUnavailable."""
        return self.secret.resolve()


class PinCredentials(Credentials):
    """A token's own PIN."""

    pin: Secret
    """The token user's PIN."""

    @property
    def secret(self) -> Secret:
        return self.pin


class UserCredentials(Credentials):
    """A crypto user of AWS CloudHSM; the PIN is `username:password`."""

    username: Username
    """The crypto user's name."""
    password: Secret
    """The crypto user's password."""

    @property
    def secret(self) -> Secret:
        return self.password

    def resolve_pin(self) -> bytearray:
        return joined(f"{self.username}:", self.password)


class AuthKeyCredentials(Credentials):
    """An authentication key of a YubiHSM 2; the PIN is its id in four hexadecimal digits and its password."""

    auth_key_id: AuthKeyId
    """The object id of the authentication key."""
    password: Secret
    """The password that the authentication key is derived from."""

    @property
    def secret(self) -> Secret:
        return self.password

    def resolve_pin(self) -> bytearray:
        return joined(f"{self.auth_key_id:04x}", self.password)


def joined(prefix: str, secret: Secret) -> bytearray:
    """Return `prefix` and the secret, in memory that the caller wipes."""
    password = secret.resolve()
    try:
        # The full size at once: a bytearray that grows leaves copies of itself behind.
        head = prefix.encode()
        pin = bytearray(len(head) + len(password))
        pin[: len(head)] = head
        pin[len(head) :] = password
        return pin
    finally:
        password[:] = bytes(len(password))
