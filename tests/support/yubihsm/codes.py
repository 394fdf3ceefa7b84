"""Numbers of the YubiHSM 2 protocol (Yubico, "YubiHSM Command Reference" and "Core Concepts")."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Command(IntEnum):
    """Command codes; a reply has 0x80 added."""

    ECHO = 0x01
    CREATE_SESSION = 0x03
    AUTHENTICATE_SESSION = 0x04
    SESSION_MESSAGE = 0x05
    DEVICE_INFO = 0x06
    RESET_DEVICE = 0x08
    CLOSE_SESSION = 0x40
    GET_STORAGE_INFO = 0x41
    PUT_OPAQUE = 0x42
    GET_OPAQUE = 0x43
    PUT_AUTHENTICATION_KEY = 0x44
    PUT_ASYMMETRIC_KEY = 0x45
    GENERATE_ASYMMETRIC_KEY = 0x46
    LIST_OBJECTS = 0x48
    EXPORT_WRAPPED = 0x4A
    IMPORT_WRAPPED = 0x4B
    PUT_WRAP_KEY = 0x4C
    GET_LOG_ENTRIES = 0x4D
    GET_OBJECT_INFO = 0x4E
    SET_OPTION = 0x4F
    GET_OPTION = 0x50
    GET_PSEUDO_RANDOM = 0x51
    GET_PUBLIC_KEY = 0x54
    SIGN_ECDSA = 0x56
    DELETE_OBJECT = 0x58
    GENERATE_WRAP_KEY = 0x5B
    SIGN_ATTESTATION_CERTIFICATE = 0x64
    SET_LOG_INDEX = 0x67
    SIGN_EDDSA = 0x6A
    BLINK_DEVICE = 0x6B
    CHANGE_AUTHENTICATION_KEY = 0x6C
    ERROR = 0x7F


class Error(IntEnum):
    """What an error reply says."""

    INVALID_COMMAND = 0x01
    INVALID_DATA = 0x02
    INVALID_SESSION = 0x03
    AUTHENTICATION_FAILED = 0x04
    SESSIONS_FULL = 0x05
    SESSION_FAILED = 0x06
    STORAGE_FAILED = 0x07
    WRONG_LENGTH = 0x08
    INSUFFICIENT_PERMISSIONS = 0x09
    LOG_FULL = 0x0A
    OBJECT_NOT_FOUND = 0x0B
    INVALID_ID = 0x0C
    OBJECT_EXISTS = 0x11
    ALGORITHM_DISABLED = 0x12


class DeviceError(Exception):
    """The device refuses a command."""

    def __init__(self, code: Error | int) -> None:
        super().__init__(f"device error {int(code):#04x}")
        self.code = int(code)


class Kind(IntEnum):
    """Types of objects."""

    OPAQUE = 1
    AUTHENTICATION_KEY = 2
    ASYMMETRIC_KEY = 3
    WRAP_KEY = 4


class Algorithm(IntEnum):
    """The algorithms that the simulator has."""

    EC_P256 = 12
    EC_K256 = 15
    ECDSA_SHA1 = 23
    AES128_CCM_WRAP = 29
    OPAQUE_DATA = 30
    OPAQUE_X509_CERTIFICATE = 31
    AES128_YUBICO_AUTHENTICATION = 38
    AES192_CCM_WRAP = 41
    AES256_CCM_WRAP = 42
    ECDSA_SHA256 = 43
    ED25519 = 46


class Capability(IntFlag):
    """Bits of the 8-byte capability mask that the simulator asks for."""

    GET_OPAQUE = 1 << 0x00
    PUT_OPAQUE = 1 << 0x01
    PUT_AUTHENTICATION_KEY = 1 << 0x02
    PUT_ASYMMETRIC_KEY = 1 << 0x03
    GENERATE_ASYMMETRIC_KEY = 1 << 0x04
    SIGN_ECDSA = 1 << 0x07
    SIGN_EDDSA = 1 << 0x08
    EXPORT_WRAPPED = 1 << 0x0C
    IMPORT_WRAPPED = 1 << 0x0D
    PUT_WRAP_KEY = 1 << 0x0E
    GENERATE_WRAP_KEY = 1 << 0x0F
    EXPORTABLE_UNDER_WRAP = 1 << 0x10
    SET_OPTION = 1 << 0x11
    GET_OPTION = 1 << 0x12
    GET_PSEUDO_RANDOM = 1 << 0x13
    GET_LOG_ENTRIES = 1 << 0x18
    RESET_DEVICE = 1 << 0x1C
    SIGN_ATTESTATION_CERTIFICATE = 1 << 0x22
    DELETE_OPAQUE = 1 << 0x27
    DELETE_AUTHENTICATION_KEY = 1 << 0x28
    DELETE_ASYMMETRIC_KEY = 1 << 0x29
    DELETE_WRAP_KEY = 1 << 0x2A
    CHANGE_AUTHENTICATION_KEY = 1 << 0x2E


ALL_CAPABILITIES = (1 << 64) - 1
ALL_DOMAINS = 0xFFFF
FORCE_AUDIT, COMMAND_AUDIT = 1, 3
MAX_FRAME = 3136
"""Bytes of a message, its header included, since firmware 2.4; 2048 before."""
