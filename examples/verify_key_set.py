"""Follow the signed set of keys, without hsmcore: with hashlib and PyNaCl alone.

    python verify_key_set.py PUBLIC_KEY_HEX REMEMBERED_FILE NOTES_FILE [SKEW_SECONDS]

REMEMBERED_FILE is this verifier's memory: if it is missing, it begins with the first note, which the public key must
have signed. Each note after it must be signed by a key of the one before. Prints the good keys, or exits with 1.
docs/KEYSET.md has the format and the rules.
"""

import hashlib
import re
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

FIRST = "§ hsmcore/key-set/v1\n"
NUMBER = r"(?:0|[1-9][0-9]{0,18})"
HASH = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="  # 32 bytes
ENDORSE = ("next", "current")
POINT = r"[A-Za-z0-9+/]{86}[AEIMQUYcgkosw048]="  # 65 bytes
KEY = re.compile(
    rf"(?=key \S+ ed25519 \S+ retired |.*[-=]$)key (-|{NUMBER}) "
    rf"(?:(ed25519) ({HASH})|(?!ed25519 )([a-z0-9-]{{1,32}}) ({POINT})) (?:(next|current|other|emergency) ({NUMBER}) -|"
    rf"(overlap|retired) ({NUMBER}) ({NUMBER})) (-|{NUMBER}) (-|{HASH})(?: ({NUMBER}))?"
)
NOTE = re.compile(
    rf"({FIRST}([!-*,-~]{{1,64}})/keys\n({NUMBER})\ntime {NUMBER}\n"
    rf"(?:good until ({NUMBER})\n)?kinds((?: [a-z0-9-]{{1,32}}){{1,64}})\n"
    r"((?:key [^\n]*\n)+))\n((?:— [^ +\x00-\x1f]+ [A-Za-z0-9+/]+={0,2}\n){1,64})"
)


def _about(line: re.Match[str]) -> tuple[str, int, int | None, int]:
    return line[6] or line[8], int(line[7] or line[9]), int(line[10]) if line[10] else None, int(line[13] or -1)


class Refused(Exception):
    """A note that is not to be believed; the text says why."""


def _signature(name: str, text: str) -> tuple[str, bytes]:
    value = b64decode(text[: len(text) // 4 * 4])  # of another length are those whose text differs
    if len(value) < 5 or b64encode(value).decode() != text:
        raise Refused("not base64")
    return name, value


class KeySet:
    """A set of keys, and who signed it. `keys`: by public key, its state, its first and last second (or None), and the
    last index of its batches (or -1). `good_until`: demand now <= it + skew, so that no newer set can be withheld."""

    def __init__(self, note: str) -> None:
        found = NOTE.fullmatch(note) if len(note.encode()) <= 65536 else None
        lines = [] if found is None else list(map(KEY.fullmatch, found[6][:-1].split("\n")))
        if found is None or None in lines:
            raise Refused("not a set of keys")
        self.note, self.text, self.domain = note, found[1], found[2]
        self.serial, self.good_until, self.kinds = int(found[3]), int(found[4] or -1), found[5].split()
        versions = [line[1] for line in lines if line[1] != "-"]
        self.keys = {b64decode(line[3] or line[5]): _about(line) for line in lines}
        self.signatures = [_signature(*line.split(" ")[1:]) for line in found[7][:-1].split("\n")]
        current = [key for key, (state, *_) in self.keys.items() if state == "current"]
        if len(self.keys) != len(lines) or len(set(versions)) != len(versions) or len(current) != 1:
            raise Refused("it names a key twice, or no current one")
        if not self.signed_by(self.keys) or not self.signed_by(current):
            raise Refused("its current key has not signed it")

    def signed_by(self, public_keys: Iterable[bytes]) -> set[bytes]:
        """Those of some keys that signed it. A wrong signature of one of them is refused."""
        good, name = set(), f"{self.domain}/keys"
        for key in public_keys:
            identity = hashlib.sha256(name.encode() + b"\n\x01" + key).digest()[:4]
            for signer, value in self.signatures if len(key) == 32 else ():
                if (signer, value[:4]) == (name, identity):
                    try:
                        VerifyKey(key).verify(self.text.encode(), value[4:])
                    except (BadSignatureError, ValueError):
                        raise Refused("a signature is wrong") from None
                    good.add(key)
        return good

    def accepts(self, public_key: bytes, now: float, skew: float = 300, kind: str | None = None) -> bool:
        """Whether a signature that is made now may be of this key; and of a payload of this kind."""
        state, begun, ends, _ = self.keys.get(public_key, ("retired", 0, 0, -1))
        good = state != "retired" and begun - skew <= now and (ends is None or now <= ends + skew)
        return good and kind in (None, *self.kinds)

    def accepts_batch(self, public_key: bytes, index: int, now: float, skew: float = 300) -> bool:
        """Whether a proof of this domain, with this index, that holds under this key (verify_batched.py) is good."""
        return self.accepts(public_key, now, skew) or index <= self.keys.get(public_key, ("retired", 0, 0, -1))[3]

    def verify(self, message: bytes, signature: bytes, kind: str, now: float, skew: float = 300) -> bytes | None:
        """The Ed25519 key that made a signature; None if no key did that is good now for this kind."""
        for key in self.keys:
            with suppress(BadSignatureError, ValueError):
                if len(key) == 32 and self.accepts(key, now, skew, kind) and VerifyKey(key).verify(message, signature):
                    return key
        return None

    def follow(self, note: str) -> "KeySet":
        """The set of a note, if it may follow this one; this one, if it is the same."""
        new = KeySet(note)
        if new.domain != self.domain or new.serial < self.serial:
            raise Refused(f"it is of another domain, or older than serial {self.serial}, which was seen")
        if new.serial == self.serial and new.text != self.text:
            raise Refused(f"there are two sets of serial {self.serial}")
        if new.serial > self.serial + 2**20:
            raise Refused(f"serial {new.serial} is more than 2^20 after {self.serial}")
        trusted = [key for key, (state, *_) in self.keys.items() if state in ENDORSE]
        if new.text != self.text and not new.signed_by(trusted):
            raise Refused(f"no key that is trusted has signed serial {new.serial}")
        return new


def main(public_key: str, memory: str, notes: str, skew: str = "300") -> None:
    head, *rest = Path(notes).read_bytes().decode().split(FIRST)
    given, remembered, now = [FIRST + one for one in rest], Path(memory), time.time()
    if head or not given:
        raise Refused("there is no note")
    known = KeySet(remembered.read_bytes().decode() if remembered.exists() else given[0])
    if not remembered.exists() and not known.signed_by([bytes.fromhex(public_key)]):
        raise Refused("the key that is known has not signed the first note")
    for note in given:
        if note is given[-1] or KeySet(note).serial >= known.serial:
            known = known.follow(note)
    remembered.write_bytes(known.note.encode())
    print(known.domain, known.serial, *(key.hex() for key in known.keys if known.accepts(key, now, float(skew))))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (Refused, UnicodeDecodeError) as refused:
        sys.exit(f"NOT valid: {refused}")
