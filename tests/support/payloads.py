"""Messages of every class, good and broken, and what they are by another implementation: solders for transactions, and
the definitions in Python for the rest."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from random import Random

from solders.message import Message, MessageV0, MessageV1, VersionedMessage, from_bytes_versioned, to_bytes_versioned
from solders.signature import Signature
from solders.transaction import VersionedTransaction

OWN, OFF_CHAIN = b"\xffhsmcore", b"\xffsolana offchain"
ORDERED = ("block", "state-root")
_CLASSES = {Message: "tx-legacy", MessageV0: "tx-v0", MessageV1: "tx-v1"}


def parsed(message: bytes) -> VersionedMessage | None:
    """The transaction at the beginning of a message, by solders."""
    try:
        return from_bytes_versioned(message)
    except ValueError:
        return None


def sound(transaction: VersionedMessage) -> bool:
    """Whether a transaction passes the runtime's sanitization, by solders."""
    signatures = [Signature.default()] * transaction.header.num_required_signatures
    try:
        VersionedTransaction.populate(transaction, signatures).sanitize()
    except Exception:  # noqa: BLE001  # its own class of errors
        return False
    return True


def _text(text: bytes, *, ascii_only: bool = False) -> bool:
    if ascii_only:
        return all(0x20 <= byte < 0x7F for byte in text)
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ends_off_chain(message: bytes, form: int, end: bytes) -> bool:
    text, most = end[2:], 65535 if form == 2 else 1232
    fits = form <= 2 and text != b"" and len(text) == int.from_bytes(end[:2], "little") and len(message) <= most
    return fits and _text(text, ascii_only=form == 0)


def _off_chain(message: bytes) -> bool:
    version, body = message[16:17], message[17:]
    if version == b"\0":
        long = len(body) >= 34 and body[33] > 0 and _ends_off_chain(message, body[32], body[34 + 32 * body[33] :])
        return long != (body != b"" and _ends_off_chain(message, body[0], body[1:]))
    if version == b"\1" and body:
        count = body[0]
        signers, text = body[1 : 1 + 32 * count], body[1 + 32 * count :]
        keys = [signers[i : i + 32] for i in range(0, len(signers), 32)]
        return count > 0 and text != b"" and keys == sorted(set(keys)) and _text(text)
    return False


def _tagged(message: bytes) -> str:
    if message.startswith(OWN + b" "):
        return "internal"
    if message.startswith(OWN) and len(message) > 11:
        kind, version, length = message[8:11]
        fits = 1 <= kind <= 2 and version == 1 and 1 <= length <= 64 and len(message) == 51 + length
        return ORDERED[kind - 1] if fits and _text(message[11 : 11 + length]) else "unknown"
    if message.startswith(OFF_CHAIN) and _off_chain(message):
        return "off-chain"
    if message.startswith((OWN, OFF_CHAIN)):
        return "unknown"
    return "digest32" if len(message) == 32 else "raw"


_NOTE = re.compile(rb"[\x20-\xff]+\n[0-9]+\n[A-Za-z0-9+/=\r]{44,}\n(hsmcore/batch-root/v1 )?|cosignature/v1\n")


_KEY_SET = "§ hsmcore/key-set/v1\n".encode()


def expected(message: bytes) -> tuple[str, bool]:
    """What a message is, and whether it is a sound transaction."""
    if message[:1] == b"\xff":
        return _tagged(message), False
    if len(message) == 32:
        return "digest32", False
    if message[:1] < b"\x80" and (note := _NOTE.match(message)):
        return ("batch-root" if note[1] else "unknown"), False
    transaction = parsed(message)
    if transaction is not None and to_bytes_versioned(transaction) == message:
        return _CLASSES[type(transaction)], sound(transaction)
    if message.startswith(_KEY_SET) and len(message) > 32:
        return "key-set", False
    if transaction is not None or message[:1] >= b"\x80":
        return "unknown", False
    if message == b"hsmcore doctor" or (message.startswith(b"hsmcore key test") and len(message) == 48):
        return "internal", False
    return "raw", False


# ---- messages --------------------------------------------------------------------------------------------------------


def compact(value: int) -> bytes:
    """A compact-u16, in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def transaction_body(chance: Random, *, tables: bool) -> bytes:
    """A transaction without its version: mostly sound, always whole."""
    keys = chance.choice((0, 1, 2, 3, 4, 5, 8, 20))
    loads = [(chance.randrange(3), chance.randrange(4)) for _ in range(chance.randrange(4) if tables else 0)]
    top = keys + sum(sum(load) for load in loads) + (chance.random() < 0.05)
    header = _header(chance, keys)
    out = [header, compact(keys), chance.randbytes(32 * keys + 32)]
    count = chance.choice((0, 1, 1, 2, 3))
    out.append(compact(count))
    for _ in range(count):
        accounts, data = chance.choice((0, 1, 3, 5, 130)), chance.choice((0, 4, 12, 30, 127, 128, 200))
        out += [bytes([_program(chance, keys)]), compact(accounts), _indexes(chance, accounts, top)]
        out += [compact(data), chance.randbytes(data)]
    if tables:
        out.append(compact(len(loads)))
        for written, read in loads:
            out += [chance.randbytes(32), compact(written), chance.randbytes(written)]
            out += [compact(read), chance.randbytes(read)]
    return b"".join(out)


def _header(chance: Random, keys: int) -> bytes:
    signers = chance.randint(1, max(1, keys))
    good = bytes([signers, chance.randrange(signers), chance.randint(0, max(0, keys - signers))])
    return good if chance.random() < 0.9 else bytes(chance.randrange(5) for _ in range(3))


def _program(chance: Random, keys: int) -> int:
    return chance.randrange(1, keys) if keys > 1 and chance.random() < 0.95 else chance.randrange(keys + 1)


def _indexes(chance: Random, count: int, top: int) -> bytes:
    return bytes(byte % max(1, min(top, 256)) for byte in chance.randbytes(count))


def transaction_v1(chance: Random) -> bytes:
    """A transaction of version 1: mostly sound, always whole."""
    keys = chance.choice((0, 1, 2, 3, 5, 12, 64, 65)) if chance.random() < 0.1 else chance.randint(1, 6)
    count = chance.choice((0, 1, 1, 2, 3, 64, 65)) if chance.random() < 0.1 else chance.randint(0, 3)
    fee, limit, size, heap = (chance.random() < 0.5 for _ in range(4))
    mask = 3 * fee | 4 * limit | 8 * size | 16 * heap
    mask = mask if chance.random() < 0.95 else chance.getrandbits(chance.choice((5, 6, 32)))
    values = chance.randbytes(4 * (2 * fee + limit + size))
    values += (1024 * chance.randrange(300) + (chance.random() < 0.1)).to_bytes(4, "little") if heap else b""
    headers, payloads = [], []
    for _ in range(count):
        accounts, data = chance.choice((0, 1, 3, 5)), chance.choice((0, 4, 12, 30))
        headers.append(bytes([_program(chance, keys), accounts]) + data.to_bytes(2, "little"))
        payloads.append(_indexes(chance, accounts, keys + (chance.random() < 0.02)) + chance.randbytes(data))
    addresses = [chance.randbytes(32) for _ in range(keys)]
    if keys > 1 and chance.random() < 0.03:
        addresses[-1] = addresses[0]
    head = b"\x81" + _header(chance, keys) + mask.to_bytes(4, "little") + chance.randbytes(32) + bytes([count, keys])
    return head + b"".join(addresses) + values + b"".join(headers) + b"".join(payloads)


def off_chain_v0(text: bytes, form: int = 0, signers: int = 1) -> bytes:
    """An off-chain message of version 0."""
    head = OFF_CHAIN + b"\0" + bytes(32) + bytes([form, signers]) + b"\7" * 32 * signers
    return head + len(text).to_bytes(2, "little") + text


def off_chain_v1(text: bytes, signers: list[bytes]) -> bytes:
    """An off-chain message of version 1."""
    return OFF_CHAIN + b"\1" + bytes([len(signers)]) + b"".join(signers) + text


def ordered(kind: str, position: int, domain: str = "default", digest: bytes = b"\5" * 32) -> bytes:
    """A payload of hsmcore's own format."""
    name = domain.encode()
    return OWN + bytes([ORDERED.index(kind) + 1, 1, len(name)]) + name + position.to_bytes(8) + digest


_TEXTS = ("hello", "ä", "€uro", "\U0001f600", "a\nb", "\x7f")
_STARTS = (b"", b"\x80", b"\x81", b"\x82", b"\xfe", b"\xff", OWN, OWN + b"\1\1\4", OWN + b" probe\0", OFF_CHAIN)
_LENGTHS = (b"\0", b"\x7f", b"\x80", b"\x80\0", b"\x80\1", b"\xff\xff\3", b"\xff\xff\4", b"\x80\x80\0", b"\xff\xff\xff")


def _plain(chance: Random) -> bytes:
    start = chance.choice((*_STARTS, b"hsmcore key test", b"hsmcore doctor"))
    return start + chance.randbytes(
        chance.choice((0, 1, 31, 32, 33, 64)) if chance.random() < 0.5 else 32 - len(start) % 32
    )


def _some_ordered(chance: Random) -> bytes:
    text = chance.choice(_TEXTS) * chance.choice((1, 2, 17))
    return ordered(chance.choice(ORDERED), chance.getrandbits(64), text.encode()[:64].decode(errors="ignore"))


def _some_off_chain(chance: Random) -> bytes:
    text = (chance.choice(_TEXTS) * chance.choice((1, 1, 3, 300))).encode()
    if chance.random() < 0.5:
        return off_chain_v0(text, chance.randrange(4), chance.randrange(4))
    signers = sorted(chance.randbytes(32) for _ in range(chance.randrange(4)))
    return off_chain_v1(text, signers if chance.random() < 0.9 else signers[::-1] + signers[:1])


def _some_batch_root(chance: Random) -> bytes:
    domain = chance.choice(("d", "my-rollup", "a/b", "a/7", "x" * 64, "x" * 65, "a+b", "a b"))
    epoch, size, first, time = (chance.choice((0, 7, 99, 10**19, 10**20)) for _ in range(4))
    root = b64encode(chance.randbytes(32)).decode()
    return f"{domain}/{epoch}\n{size}\n{root}\nhsmcore/batch-root/v1 {first}\ntime {time}\n".encode()


def _some_note(chance: Random) -> bytes:
    lines = [
        chance.choice((b"example.com/log", b"go.sum database tree", "é".encode(), b"", b"a\tb", b"cosignature/v1"))
    ]
    lines.append(chance.choice((b"0", b"12", b"007", b"", b"-1", b"time 7")))
    lines.append(chance.choice((b"", b"\r", b"=")) + b64encode(chance.randbytes(chance.choice((31, 32, 33, 64)))))
    lines += [chance.randbytes(9) for _ in range(chance.randrange(3))]
    return b"\n".join([*lines, b""])


def _some_key_set(chance: Random) -> bytes:
    return _KEY_SET[: chance.choice((5, 22, 22, 22))] + chance.randbytes(chance.choice((0, 9, 10, 11, 300)))


MAKERS: tuple[Callable[[Random], bytes], ...] = (
    lambda chance: transaction_body(chance, tables=False),
    lambda chance: b"\x80" + transaction_body(chance, tables=True),
    transaction_v1,
    _some_ordered,
    _some_off_chain,
    _some_batch_root,
    _some_note,
    _some_key_set,
    _plain,
)


def mutated(chance: Random, message: bytes) -> bytes:
    """A message with something changed."""
    at = chance.randrange(len(message) + 1)
    match chance.randrange(8):
        case 0:
            return message[:at]
        case 1:
            return message + chance.randbytes(chance.choice((1, 1, 2, 32)))
        case 2:
            return message[:at] + chance.randbytes(1) + message[at + 1 :]
        case 3:
            return message[:at] + chance.choice(_LENGTHS) + message[at + 1 :]
        case 4:
            return message[:at] + chance.choice(_LENGTHS) + message[at:]
        case 5:
            return message[:at] + message[at + chance.choice((1, 2, 32)) :]
        case 6:
            return chance.choice(_STARTS) + message
        case _:
            # Near the front stand the counts.
            at = min(at, chance.randrange(70))
            return message[:at] + chance.randbytes(1) + message[at + 1 :]


def a_message(chance: Random) -> bytes:
    """A message of any class, whole or with a few mutations."""
    message = chance.choice(MAKERS)(chance)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 3))):
        message = mutated(chance, message)
    return message
