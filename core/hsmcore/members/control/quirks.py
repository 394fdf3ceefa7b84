"""Differences between PKCS#11 modules when keys are made, searched and wrapped: data, not branches.

Names and recognition are as in the native core's table, which holds the quirks of the signing path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pkcs11 import Attribute, KeyType
from pkcs11.constants import DEFAULT
from pkcs11.mechanisms import Mechanism

from hsmcore.members.control.curves import ED25519_NAME, ED25519_OID

# Both are RFC 5649, which wraps keys of any length.
_WRAP_STANDARD: Final = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
# CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD. python-pkcs11 takes members of its enumeration only, which no vendor is in.
_CLOUDHSM_ZERO_PAD: Final = int.__new__(Mechanism, 0x8000216F)
# CKM_YUBICO_AES_CCM_WRAP and CKK_YUBICO_AES256_CCM_WRAP (yubihsm-shell, pkcs11y.h).
_YUBICO_CCM_WRAP: Final = int.__new__(Mechanism, 0xD9554204)
_YUBICO_CCM_KEY: Final = int.__new__(KeyType, 0xD955422A)


NO_COPY_HINT: Final = (
    "Ed25519 keys of tokens that cannot wrap reach several members through keyRotation.keyCeremony, whose recovery key "
    "`hsmcore backup recovery-key` makes; else let one member hold the key, or use tokens that share a wrapping key."
)


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """How a 256-bit key for backups is made. `template` overrides python-pkcs11's own."""

    key_type: KeyType = KeyType.AES
    mechanism: Mechanism = Mechanism.AES_KEY_GEN
    template: Mapping[Attribute, Any] = field(
        default_factory=lambda: {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    )


@dataclass(frozen=True, slots=True)
class KeyForm:
    """One way to ask for an Ed25519 key pair."""

    mechanism: Mechanism
    params: bytes
    """CKA_EC_PARAMS."""


_EDWARDS_OID: Final = KeyForm(Mechanism.EC_EDWARDS_KEY_PAIR_GEN, ED25519_OID)
_EDWARDS_NAME: Final = KeyForm(Mechanism.EC_EDWARDS_KEY_PAIR_GEN, ED25519_NAME)
_EC_OID: Final = KeyForm(Mechanism.EC_KEY_PAIR_GEN, ED25519_OID)
_EC_NAME: Final = KeyForm(Mechanism.EC_KEY_PAIR_GEN, ED25519_NAME)


@dataclass(frozen=True, slots=True)
class Quirks:
    """One module's row. The defaults are the standard's."""

    name: str
    library_contains: str = ""
    """A word in CK_INFO's manufacturer or description by which the module is recognized."""
    ed25519_forms: tuple[KeyForm, ...] = (_EDWARDS_OID,)
    """Ways to ask for an Ed25519 key pair, tried in this order until one works."""
    generating_may_pass: frozenset[int] = frozenset()
    """Return values of C_GenerateKeyPair that ask for another attempt, besides those that say so for every module."""
    id_bytes: int = 16
    """Length of the CKA_ID that a new key gets."""
    label_bytes: int = 127
    """The longest CKA_LABEL of a new key."""
    usage_in_template: bool = True
    """Whether a template may name the uses that a key does not have; a module that knows fewer attributes refuses the
    whole template."""
    names_private: bool = True
    """Whether a template may have CKA_PRIVATE; a module whose objects are all private refuses it."""
    wrap_mechanisms: tuple[Mechanism, ...] = _WRAP_STANDARD
    """Mechanisms for backups, the best first; the first one that the token lists is used."""
    wrapping_key: WrappingKey = WrappingKey()
    sessions: int | None = None
    """The most sessions that sign at once; None: no limit is known."""
    opens_read_write: bool = False
    """Whether a session that logs in must be opened for writing."""
    open_pause: float = 0.0
    """Seconds between two sessions that are opened; opening them at once throttles the device's other users."""
    backup_is_whole: bool = False
    """Whether a wrapped key contains its id, label, uses and public half, and no template may repeat them."""
    cannot_wrap: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Algorithms whose keys the library cannot wrap although the token lists a mechanism for it, and the first version
    of the library that can."""

    counts_wrong_pins: bool = True
    """Whether wrong PINs, one after the other, lock the user out."""
    holds_few: bool = False
    """Whether the device has no room for what two processes load: the one that manages keys ends before the other looks
    for a key."""
    rights_can_be_fewer: bool = True
    """Whether the vendor can give a user the right to sign and not the right to make or destroy keys."""

    def wrong_pin_hint(self, secret: str) -> str:
        """The hint after the token refused a PIN; `secret` says where the PIN came from."""
        counts = "the token counts wrong attempts" if self.counts_wrong_pins else "the device counts no wrong attempts"
        return f"Check {secret} before you start again: {counts}."

    def why_not_wrapped(self, version: tuple[int, int], algorithm: str) -> str | None:
        """Why this version of the library cannot wrap keys of an algorithm; None: no reason is known."""
        since = self.cannot_wrap.get(algorithm, version)
        return f"{self.name} before {since[0]}.{since[1]} cannot wrap {algorithm} keys" if version < since else None


_TABLE: Final[dict[str, Quirks]] = {
    quirks.name: quirks
    for quirks in (
        Quirks("generic", ed25519_forms=(_EDWARDS_OID, _EDWARDS_NAME, _EC_OID, _EC_NAME)),
        Quirks(
            "softhsm",
            "SoftHSM",
            # CKR_TEMPLATE_INCONSISTENT: a search in another thread has read the object while it was being made.
            generating_may_pass=frozenset({0x0D1}),
            cannot_wrap={"ed25519": (2, 7)},
            rights_can_be_fewer=False,
        ),
        # NSS returns too small a size for a wrapped key, and python-pkcs11 gives up.
        Quirks("nss", "Mozilla Foundation", wrap_mechanisms=(), rights_can_be_fewer=False),
        Quirks(
            "yubihsm",
            "Yubico",
            ed25519_forms=(_EDWARDS_NAME,),
            id_bytes=2,
            label_bytes=40,
            usage_in_template=False,
            wrap_mechanisms=(_YUBICO_CCM_WRAP,),
            wrapping_key=WrappingKey(
                _YUBICO_CCM_KEY,
                Mechanism.GENERIC_SECRET_KEY_GEN,
                {
                    Attribute.KEY_TYPE: _YUBICO_CCM_KEY,
                    Attribute.EXTRACTABLE: False,
                    Attribute.VALUE_LEN: DEFAULT,
                    Attribute.PRIVATE: DEFAULT,
                    Attribute.SENSITIVE: DEFAULT,
                },
            ),
            backup_is_whole=True,
            counts_wrong_pins=False,
        ),
        Quirks(
            "aws-cloudhsm",
            "CloudHSM",
            opens_read_write=True,
            open_pause=0.05,
            ed25519_forms=(_EC_OID, _EDWARDS_OID, _EC_NAME, _EDWARDS_NAME),
            names_private=False,
            wrap_mechanisms=(_CLOUDHSM_ZERO_PAD,),
        ),
        # CKA_VERIFY of a private key, even false, contradicts what the TPM says of it.
        Quirks(
            "tpm2",
            "TPM2.0 Cryptoki",
            sessions=1,
            holds_few=True,
            usage_in_template=False,
            wrap_mechanisms=(),
            rights_can_be_fewer=False,
        ),
    )
}


WHOLE_MECHANISMS: Final = frozenset(
    int(kind) for quirks in _TABLE.values() if quirks.backup_is_whole for kind in quirks.wrap_mechanisms
)
"""The mechanisms of modules whose backups are whole."""


def quirks_for(name: str | None, library: str = "", mechanisms: Mapping[str, int] | None = None) -> Quirks:
    """The row of that name. Without a name: the row that recognizes `library`, which is CK_INFO's manufacturer and
    description. The standard's row if there is none.

    `mechanisms` replaces numbers that only the vendor knows: "wrap", "ed25519_key_pair_gen".
    """
    if name is None:
        recognized = (row for row in _TABLE.values() if row.library_contains and row.library_contains in library)
        row = next(recognized, _TABLE["generic"])
    else:
        row = _TABLE.get(name, _TABLE["generic"])
    given = {of: int.__new__(Mechanism, number) for of, number in (mechanisms or {}).items()}
    if "wrap" in given:
        row = replace(row, wrap_mechanisms=(given["wrap"],))
    if "ed25519_key_pair_gen" in given:
        forms = dict.fromkeys(KeyForm(given["ed25519_key_pair_gen"], form.params) for form in row.ed25519_forms)
        row = replace(row, ed25519_forms=tuple(forms))
    return row
