"""Golden vectors of hsmcore-wire/1, packed by hand from docs/WIRE.md and by none of the code that is tested with them:
`python -m tests.wire.make_vectors` prints vectors.json. A vector that changes is a change of the protocol.

    frames   "hex" is the frame, "says" its meaning. Numbers of 64 bits are strings of digits, bytes are hexadecimal.
             "fill": so many times this byte follow; a field of "says" may be such a fill as well.
    streams  a whole stream, and the types and request numbers of its frames.
    refused  what the end that is named in "by" refuses: bytes that are no frame, or a frame that says nothing.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from typing import Any

NONCE = bytes(range(16))
INSTANCE = bytes(range(0xF0, 0x100))
ED25519 = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
P256 = b"\x04" + bytes(range(64))
SIGNATURE = bytes((7 * n) % 256 for n in range(64))
MOST = 1 << 20
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = bytes.fromhex(PARENT[2:].replace("-", ""))
NO_RECORD = 2**64 - 1

TYPES = {
    "HELLO": 1, "SIGN": 2, "SIGN_MANY": 3, "VERIFY": 4, "CANCEL": 5, "ACK": 6, "PING": 7, "MANAGE": 8,
    "SIGN_BATCHED": 9, "WELCOME": 129, "SIGNED": 130, "SIGNED_MANY": 131, "VERIFIED": 132, "PONG": 133, "ERROR": 134,
    "KEYS": 135, "CREDIT": 136, "GOAWAY": 137, "DONE": 138, "BATCHED": 139,
}  # fmt: skip
KINDS = {"": 0, "tx-legacy": 1, "tx-v0": 2, "tx-v1": 3, "off-chain": 4, "block": 5, "state-root": 6, "digest32": 7,
         "raw": 8, "prehashed": 9}  # fmt: skip
LEVELS = {"": 0, "primary": 1, "secondary": 2, "emergency": 3}
ALGORITHMS = {"ed25519": 1, "ecdsa-p256": 2, "ecdsa-secp256k1": 3}
OPERATIONS = {"generate": 1, "set-current": 2, "deactivate": 3, "cache-stats": 4, "export": 5, "unfinished": 6,
              "versions": 7}  # fmt: skip


def packed(number: int, request: int = 0, body: bytes = b"", *, slot: int = 0, flags: int = 0, more: int = 0) -> bytes:
    """A frame; `more` bytes of its body follow elsewhere."""
    return struct.pack("<IBBHQ", 12 + len(body) + more, number, flags, slot, request) + body


def short(data: bytes | str) -> bytes:
    """text8, bytes8."""
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<B", len(data)) + data


def long(data: bytes) -> bytes:
    """bytes16."""
    return struct.pack("<H", len(data)) + data


def key(slot: int, version: int, current: bool, algorithm: str, key_id: str, public_key: bytes, kinds: int) -> Any:
    """A version of a key: its bytes, and its meaning."""
    body = struct.pack("<HIBB", slot, version, current, ALGORITHMS[algorithm]) + short(key_id) + short(public_key)
    says = {
        "slot": slot,
        "version": version,
        "current": current,
        "algorithm": algorithm,
        "id": key_id,
        "public_key": public_key.hex(),
        "kinds": kinds,
    }
    return body + struct.pack("<H", kinds), says


def keys(*listed: Any) -> Any:
    """Several versions."""
    return struct.pack("<H", len(listed)) + b"".join(body for body, _ in listed), [says for _, says in listed]


def error(retryable: bool, maybe: bool, after: int, status: str, error_class: str, text: str, holder: str = "") -> Any:
    """An error."""
    whole = f"{text}\nholder: {holder}" if holder else text
    body = struct.pack("<BI", retryable | maybe << 1, after) + short(status) + short(error_class) + long(whole.encode())
    says = {
        "retryable": retryable,
        "maybe_signed": maybe,
        "retry_after_ms": after,
        "status": status,
        "class": error_class,
        "text": text,
        "holder": holder,
    }
    return body, says


KEYS = (
    key(0, 1, False, "ed25519", "00a1", ED25519, 0xFFFF),
    key(0, 2, True, "ecdsa-p256", "00a2", P256, 0b11_1000_0110),
    key(1, 3, True, "ecdsa-secp256k1", "label:é", P256, 0),
)
TRACING = (key(0, 1, False, "ed25519", "00a1", ED25519, 0x7FFF), key(0, 2, True, "ed25519", "00a2", ED25519, 0xC100))
FULL = error(True, False, 250, "QUEUE_FULL", "RETRY", "256 requests are open")
LATE = error(True, True, 0, "DEADLINE_EXCEEDED", "RETRY", "")
HELD = error(True, False, 0, "NOT_HOLDER", "RETRY", "epoch 7 is held elsewhere", "signer-2")
FREE = error(True, True, 0, "NOT_HOLDER", "RETRY", "nobody holds the epoch")
LIKE = error(False, False, 0, "POLICY_REFUSED", "REQUEST_FATAL", "one line\nholder: of any other text")
ODD = error(False, False, 2**32 - 1, "A_STATUS_OF_TOMORROW", "REQUEST_FATAL", "größer")


def frame(
    name: str,
    of: str,
    body: bytes,
    says: Any,
    request: int = 0,
    slot: int = 0,
    flags: int = 0,
    fill: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A frame that is sound. `fill`: a byte, and how often it follows."""
    more = fill[1] if fill else 0
    one = {
        "name": name,
        "from": "client" if TYPES[of] < 128 else "gateway",
        "type": of,
        "flags": flags,
        "slot": slot,
        "request": str(request),
        "hex": packed(TYPES[of], request, body, slot=slot, flags=flags, more=more).hex(),
        "says": says,
    }
    return one | ({"fill": filled(*fill)} if fill else {})


def sign(
    name: str, kind: str, timeout: int, position: int | None, version: int, message: bytes, again: bool,
    request: int, slot: int,
) -> dict[str, Any]:  # fmt: skip
    """SIGN."""
    body = struct.pack("<BIQI", KINDS[kind], timeout, position or 0, version) + message
    says = {
        "kind": kind,
        "timeout_ms": timeout,
        "position": None if position is None else str(position),
        "version": version,
        "message": message.hex(),
        "again": again,
    }
    return frame(name, "SIGN", body, says, request, slot, (position is not None) | again << 1)


def of_client() -> Iterator[dict[str, Any]]:
    """A client's frames."""
    for name, program in (("hello", "sequencer 1.2"), ("hello without a name", ""), ("hello, the longest", "n" * 255)):
        said = {"nonce": NONCE.hex(), "program": program}
        yield frame(name, "HELLO", struct.pack("<H", 1) + NONCE + short(program), said)

    most = 2**32 - 1, 2**64 - 1, 2**32 - 1
    yield sign("sign", "", 0, None, 0, b"message", False, 1, 0)
    yield sign("sign under a version, again", "", 1500, None, 7, b"message", True, 2**63 + 1, 3)
    yield sign("sign at position 0", "block", 250, 0, 1, bytes(32), False, 2, 0)
    yield sign("sign, every field at its limit", "state-root", *most, b"\xff", True, 2**64 - 1, 2**16 - 1)
    yield sign("sign an empty message", "raw", 1, None, 1, b"", False, 3, 0)
    for number, kind in enumerate(KINDS):
        yield sign(f"sign kind {number}", kind, 1000, None, 1, bytes((number,)), False, 10 + number, 0)
    head = struct.pack("<BIQI", 0, 0, 0, 1)
    fill = (0x5A, MOST - 12 - len(head))
    says = {"kind": "", "timeout_ms": 0, "position": None, "version": 1, "message": filled(*fill), "again": False}
    yield frame("sign, the longest frame", "SIGN", head, says, 4, fill=fill)

    for name, messages, flags in (
        ("sign many", [b"one", b"", b"three" * 50], 0),
        ("sign many, none", [], 0),
        ("sign many, again", [b"one"], 2),
    ):
        body = struct.pack("<BIIH", 8, 2000, 5, len(messages))
        body += b"".join(struct.pack("<I", len(one)) + one for one in messages)
        shown = [one.hex() for one in messages]
        says = {"kind": "raw", "timeout_ms": 2000, "version": 5, "messages": shown, "again": bool(flags)}
        yield frame(name, "SIGN_MANY", body, says, 20, 1, flags)

    for name, kind, timeout, message, again, slot in (
        ("sign batched", "", 0, b"message", False, 0),
        ("sign batched, again", "raw", 2**32 - 1, b"\xff", True, 3),
        ("sign batched, nothing", "digest32", 250, b"", False, 0),
    ):
        said = {"kind": kind, "timeout_ms": timeout, "message": message.hex(), "again": again}
        body = struct.pack("<BI", KINDS[kind], timeout) + message
        yield frame(name, "SIGN_BATCHED", body, said, 25, slot, again << 1)

    for name, key_id, signature, message in (
        ("verify", "00a1", SIGNATURE, b"message"),
        ("verify, any key, nothing", "", b"", b""),
    ):
        said = {"key_id": key_id, "signature": signature.hex(), "message": message.hex()}
        yield frame(name, "VERIFY", short(key_id) + long(signature) + message, said, 30)
    yield frame("cancel", "CANCEL", b"", {}, 2)
    yield frame("ack", "ACK", b"", {}, 4096)
    for operation, number in OPERATIONS.items():
        keyed = {"set-current": "00a2", "deactivate": "00a2", "export": "00a2", "unfinished": "my-rollup/block"}
        key_id = keyed.get(operation, "")
        said = {"operation": operation, "key_id": key_id}
        yield frame(f"manage: {operation}", "MANAGE", struct.pack("<B", number) + short(key_id), said, 40 + number, 1)


def traced() -> Iterator[dict[str, Any]]:
    """A client's frames with its span."""
    head = {"kind": "raw", "timeout_ms": 1500, "again": False}
    signs = struct.pack("<BIQI", 8, 1500, 2**53 + 1, 7) + b"message"
    many = struct.pack("<BIIH", 8, 1500, 7, 2) + struct.pack("<I", 3) + b"one" + struct.pack("<I", 0)
    for of, flags, body, says in (
        ("SIGN", 5, signs, {**head, "position": str(2**53 + 1), "version": 7, "message": b"message".hex()}),
        (
            "SIGN",
            7,
            signs,
            {**head, "position": str(2**53 + 1), "version": 7, "message": b"message".hex(), "again": True},
        ),
        ("SIGN_MANY", 4, many, {**head, "version": 7, "messages": [b"one".hex(), ""]}),
        ("SIGN_BATCHED", 4, struct.pack("<BI", 8, 1500) + b"m", {**head, "message": b"m".hex()}),
        ("VERIFY", 4, short("") + long(b"") + b"m", {"key_id": "", "signature": "", "message": b"m".hex()}),
        ("MANAGE", 4, b"\3" + short("00a2"), {"operation": "deactivate", "key_id": "00a2"}),
    ):
        again = ", again" if flags & 2 else ""
        yield frame(f"{of.lower()} of a trace{again}", of, TRACE + body, {**says, "traceparent": PARENT}, 50, 1, flags)


def labelled() -> Iterator[dict[str, Any]]:
    """A front's frames, with the id of a request in the audit log and where it came from."""
    label = NONCE + short("127.0.0.1")
    body, says = short("00a2") + long(SIGNATURE) + bytes(range(32)), {"key_id": "00a2", "signature": SIGNATURE.hex()}
    says |= {"message": bytes(range(32)).hex(), "request_id": NONCE.hex(), "peer": "127.0.0.1"}
    yield frame("verify with an id", "VERIFY", label + body, says, 60, 1, 8)
    traced = {**says, "traceparent": PARENT, "digest": True}
    yield frame("verify of a digest, of a trace, with an id", "VERIFY", TRACE + label + body, traced, 60, 1, 28)


def of_both() -> Iterator[dict[str, Any]]:
    """PING and PONG."""
    for of in ("PING", "PONG"):
        for data in (b"", b"01234567", bytes(range(64))):
            yield frame(f"{of.lower()}, {len(data)} bytes", of, data, {"data": data.hex()})


def welcomes() -> Iterator[dict[str, Any]]:
    """WELCOME."""
    for name, slots, listed in (
        ("welcome", ("default", "bridge"), KEYS),
        ("welcome without keys", ("default",), ()),
        ("welcome without slots", (), ()),
    ):
        body, said = keys(*listed)
        limits = struct.pack("<IIHI", 256, 65_536, 1024, 120_000)
        names = struct.pack("<H", len(slots)) + b"".join(map(short, slots))
        says = {
            "instance": INSTANCE.hex(),
            "credits": 256,
            "message_bytes": 65_536,
            "batch": 1024,
            "remember_ms": 120_000,
            "client": "sequencer",
            "slots": list(slots),
            "keys": said,
        }
        yield frame(name, "WELCOME", struct.pack("<H", 1) + INSTANCE + limits + short("sequencer") + names + body, says)


def of_gateway() -> Iterator[dict[str, Any]]:
    """A gateway's frames."""
    for name, version, level, record in (
        ("signed", 2, "primary", 0),
        ("signed, nothing is known", 1, "", None),
        ("signed, second level", 2**32 - 1, "secondary", 2**64 - 2),
        ("signed in an emergency", 3, "emergency", 2**53 + 1),
    ):
        body = struct.pack("<IBQ", version, LEVELS[level], NO_RECORD if record is None else record) + SIGNATURE
        seq = None if record is None else str(record)
        says = {"version": version, "level": level, "audit_seq": seq, "signature": SIGNATURE.hex()}
        yield frame(name, "SIGNED", body, says, 1)

    outcomes = struct.pack("<IH", 2, 3) + b"\0" + long(SIGNATURE) + b"\1" + long(FULL[0]) + b"\0" + long(SIGNATURE)
    said = [{"signature": SIGNATURE.hex()}, {"error": FULL[1]}, {"signature": SIGNATURE.hex()}]
    yield frame("signed many", "SIGNED_MANY", outcomes, {"version": 2, "outcomes": said}, 20)
    yield frame("signed many, none", "SIGNED_MANY", struct.pack("<IH", 1, 0), {"version": 1, "outcomes": []}, 20)

    for name, record, key_id, proof in (
        ("batched", 2**53 + 1, "00a1", b"c2sp.org/tlog-proof@v1\n"),
        ("batched, nothing is recorded", None, "", b""),
    ):
        body = struct.pack("<Q", NO_RECORD if record is None else record) + short(key_id) + short(ED25519) + proof
        seq = None if record is None else str(record)
        says = {"audit_seq": seq, "key_id": key_id, "public_key": ED25519.hex(), "proof": proof.hex()}
        yield frame(name, "BATCHED", body, says, 25)

    for valid in (True, False):
        yield frame(f"verified: {valid}", "VERIFIED", bytes((valid,)), {"valid": valid}, 30)
    for name, one, request in (
        ("error: full", FULL, 1),
        ("error: late", LATE, 2),
        ("error: of another release", ODD, 3),
        ("error: another host holds the epoch", HELD, 4),
        ("error: no host holds the epoch", FREE, 5),
        ("error: a text that is no holder", LIKE, 6),
        ("error of the connection", error(False, False, 0, "BAD_ARGUMENT", "REQUEST_FATAL", "type 9"), 0),
    ):
        yield frame(name, "ERROR", one[0], one[1], request)
    for name, listed in (("keys", KEYS), ("keys of a gateway that knows traces", TRACING), ("keys, none", ())):
        body, said = keys(*listed)
        yield frame(name, "KEYS", body, {"keys": said})
    for number in (0, 256, 2**32 - 1):
        yield frame(f"credit {number}", "CREDIT", struct.pack("<I", number), {"credits": number})
    yield frame(
        "goaway", "GOAWAY", struct.pack("<I", 10_000) + short("stopped"), {"left_ms": 10_000, "reason": "stopped"}
    )
    for text in ("00a3", "", '{"hits":1}'):
        yield frame(f"done: {text!r}", "DONE", text.encode(), {"text": text}, 41)


def filled(byte: int, times: int) -> dict[str, Any]:
    """So many times this byte."""
    return {"byte": f"{byte:02x}", "times": times}


def streams() -> list[dict[str, Any]]:
    """Several frames in a row."""
    hello = packed(1, body=struct.pack("<H", 1) + NONCE + short("s"))
    sign = [packed(2, n, struct.pack("<BIQI", 0, 0, 0, 1) + bytes(n)) for n in range(1, 6)]
    signed = [packed(130, n, struct.pack("<IBQ", 1, 1, n) + SIGNATURE) for n in (3, 1, 2)]
    return [
        {
            "name": "hello, five requests, a withdrawal",
            "from": "client",
            "hex": (hello + b"".join(sign) + packed(5, 5)).hex(),
            "frames": [["HELLO", "0"], *(["SIGN", str(n)] for n in range(1, 6)), ["CANCEL", "5"]],
        },
        {
            "name": "answers in another order",
            "from": "gateway",
            "hex": b"".join(signed).hex(),
            "frames": [["SIGNED", "3"], ["SIGNED", "1"], ["SIGNED", "2"]],
        },
    ]


def refused() -> list[dict[str, Any]]:
    """What either end, or a gateway refuses."""
    found: list[dict[str, Any]] = []

    def add(by: str, name: str, data: bytes) -> None:
        found.append({"name": name, "by": by, "hex": data.hex()})

    client, gateway = "client", "gateway"
    for by, own in ((gateway, 2), (client, 130)):
        add(by, "a frame shorter than its head", struct.pack("<IBBHQ", 11, own, 0, 0, 1))
        add(by, "a frame of no bytes", struct.pack("<I", 0))
        add(by, "a frame one byte too long", struct.pack("<IBBHQ", MOST + 1, own, 0, 0, 1))
        add(by, "the longest length, and nothing else", struct.pack("<I", 2**32 - 1))
        for number in (0, 10, 127, 128, 140, 255):
            add(by, f"type {number}", packed(number, 1))
    for number in range(1, 10):
        add(client, f"type {number}, which clients send", packed(number, 1, bytes(15)))
    for number in range(129, 140):
        add(gateway, f"type {number}, which gateways send", packed(number, 1, bytes(15)))
    for number in (1, 4, 5, 6, 7, 8):
        add(gateway, f"a flag of type {number}", packed(number, 1, bytes(20), flags=1))
    for number in range(129, 140):
        add(client, f"a flag of type {number}", packed(number, 1, bytes(20), flags=2))
    for flags in (4, 16, 128):
        add(gateway, f"flag {flags} of sign", packed(2, 1, struct.pack("<BIQI", 0, 0, 0, 1), flags=flags))
    for flags in (1, 3, 4):
        add(gateway, f"flag {flags} of sign many", packed(3, 1, struct.pack("<BIIH", 0, 0, 1, 0), flags=flags))
    for flags in (1, 3, 4):
        add(gateway, f"flag {flags} of sign batched", packed(9, 1, struct.pack("<BI", 0, 0) + b"m", flags=flags))

    hello = struct.pack("<H", 1) + NONCE
    add(gateway, "hello of version 2", packed(1, body=struct.pack("<H", 2) + NONCE + short("")))
    add(gateway, "hello of version 0", packed(1, body=struct.pack("<H", 0) + NONCE + short("")))
    add(gateway, "hello of nothing", packed(1))
    add(gateway, "hello with half a nonce", packed(1, body=hello[:10]))
    add(gateway, "hello without a program", packed(1, body=hello))
    add(gateway, "hello, its program too short", packed(1, body=hello + b"\5abc"))
    add(gateway, "hello and a byte more", packed(1, body=hello + short("abc") + b"\0"))
    add(gateway, "hello, its program no UTF-8", packed(1, body=hello + short(b"\xff\xfe")))

    plain = struct.pack("<BIQI", 0, 0, 0, 1) + b"m"
    add(gateway, "sign of trace 0", packed(2, 1, bytes(16) + TRACE[16:] + plain, flags=4))
    add(gateway, "sign of span 0", packed(2, 1, TRACE[:16] + bytes(8) + b"\1" + plain, flags=4))
    add(gateway, "sign of a trace, too short", packed(2, 1, TRACE + plain[:16], flags=4))
    add(gateway, "sign of half a trace", packed(2, 1, TRACE[:24], flags=4))
    add(gateway, "sign with half an id", packed(2, 1, NONCE[:15], flags=8))
    add(gateway, "sign with an id alone", packed(2, 1, NONCE, flags=8))
    add(gateway, "sign with half an address", packed(2, 1, NONCE + short("127.0.0.1")[:-1], flags=8))
    no_utf8 = NONCE + short(b"\xbd27.0.0.1") + short("00") + long(SIGNATURE)
    add(gateway, "verify with an address that is no UTF-8", packed(4, 1, no_utf8, flags=8))
    add(gateway, "an id of type 5", packed(5, 1, NONCE, flags=8))
    for number in (1, 5, 6, 7):
        add(gateway, f"a trace of type {number}", packed(number, 1, TRACE, flags=4))
    add(gateway, "sign, too short", packed(2, 1, struct.pack("<BIQI", 0, 0, 0, 1)[:-1]))
    add(gateway, "sign of nothing", packed(2, 1))
    add(gateway, "sign kind 10", packed(2, 1, struct.pack("<BIQI", 10, 0, 0, 1) + b"m"))
    add(gateway, "sign, a position without its flag", packed(2, 1, struct.pack("<BIQI", 5, 0, 9, 1) + b"m"))

    many = struct.Struct("<BIIH")
    add(gateway, "sign many, too short", packed(3, 1, many.pack(0, 0, 1, 0)[:-1]))
    add(gateway, "sign many, one missing", packed(3, 1, many.pack(0, 0, 1, 2) + struct.pack("<I", 1) + b"m"))
    add(gateway, "sign many, 65535 of none", packed(3, 1, many.pack(0, 0, 1, 65_535)))
    add(gateway, "sign many, its message too long", packed(3, 1, many.pack(0, 0, 1, 1) + struct.pack("<I", 9) + b"m"))
    longest = many.pack(0, 0, 1, 1) + struct.pack("<I", 2**32 - 1) + b"m"
    add(gateway, "sign many, its message as long as can be said", packed(3, 1, longest))
    more = many.pack(0, 0, 1, 1) + struct.pack("<I", 1) + b"mm"
    add(gateway, "sign many and a byte more", packed(3, 1, more))
    add(gateway, "sign many kind 10", packed(3, 1, many.pack(10, 0, 1, 0)))

    add(gateway, "sign batched of nothing", packed(9, 1))
    add(gateway, "sign batched, too short", packed(9, 1, bytes(4)))
    add(gateway, "sign batched kind 10", packed(9, 1, struct.pack("<BI", 10, 0) + b"m"))

    add(gateway, "verify of nothing", packed(4, 1))
    add(gateway, "verify, no UTF-8", packed(4, 1, short(b"\xc3") + long(SIGNATURE)))
    add(gateway, "verify, half a length", packed(4, 1, short("00") + b"\x40"))
    add(gateway, "verify, its signature too short", packed(4, 1, short("00") + struct.pack("<H", 64) + SIGNATURE[:-1]))
    add(gateway, "cancel with a body", packed(5, 1, b"\0"))
    add(gateway, "ack with a body", packed(6, 1, b"\0"))
    add(gateway, "ping of 65 bytes", packed(7, 0, bytes(65)))
    add(gateway, "manage of nothing", packed(8, 1))
    add(gateway, "manage: operation 0", packed(8, 1, b"\0" + short("")))
    add(gateway, "manage: operation 8", packed(8, 1, b"\x08" + short("")))
    add(gateway, "manage and a byte more", packed(8, 1, b"\1" + short("") + b"\0"))

    return found


def refused_answers() -> list[dict[str, Any]]:
    """What a client refuses."""
    found: list[dict[str, Any]] = []

    def add(by: str, name: str, data: bytes) -> None:
        found.append({"name": name, "by": by, "hex": data.hex()})

    client = "client"
    limits = struct.pack("<IIHI", 256, 65_536, 1024, 120_000)
    head = struct.pack("<H", 1) + INSTANCE + limits + short("c")
    slots, none = struct.pack("<H", 1) + short("default"), struct.pack("<H", 0)
    add(client, "welcome of version 2", packed(129, body=struct.pack("<H", 2) + head[2:] + slots + none))
    add(client, "welcome of nothing", packed(129))
    add(client, "welcome, cut in its limits", packed(129, body=head[:24]))
    add(client, "welcome, a slot missing", packed(129, body=head + struct.pack("<H", 2) + short("default")))
    add(client, "welcome without keys' count", packed(129, body=head + slots))
    add(client, "welcome and a byte more", packed(129, body=head + slots + none + b"\0"))
    add(client, "welcome, its client no UTF-8", packed(129, body=head[:-2] + short(b"\x80") + slots + none))
    one = KEYS[0][0]
    add(client, "keys of nothing", packed(135))
    add(client, "keys, one missing", packed(135, body=struct.pack("<H", 2) + one))
    add(client, "keys, 65535 of none", packed(135, body=struct.pack("<H", 65_535)))
    add(client, "keys, state 2", packed(135, body=struct.pack("<H", 1) + one[:6] + b"\2" + one[7:]))
    add(client, "keys, algorithm 4", packed(135, body=struct.pack("<H", 1) + one[:7] + b"\4" + one[8:]))
    add(client, "keys, algorithm 0", packed(135, body=struct.pack("<H", 1) + one[:7] + b"\0" + one[8:]))
    add(client, "keys and a byte more", packed(135, body=struct.pack("<H", 1) + one + b"\0"))
    add(client, "signed, too short", packed(130, 1, struct.pack("<IBQ", 1, 1, 0)[:-1]))
    add(client, "signed, level 4", packed(130, 1, struct.pack("<IBQ", 1, 4, 0) + SIGNATURE))
    add(client, "signed many, outcome 2", packed(131, 1, struct.pack("<IH", 1, 1) + b"\2" + long(SIGNATURE)))
    add(client, "signed many, one missing", packed(131, 1, struct.pack("<IH", 1, 2) + b"\0" + long(SIGNATURE)))
    add(client, "signed many and a byte more", packed(131, 1, struct.pack("<IH", 1, 0) + b"\0"))
    add(client, "signed many, its error cut", packed(131, 1, struct.pack("<IH", 1, 1) + b"\1" + long(FULL[0][:-1])))
    add(client, "batched of nothing", packed(139, 1))
    add(client, "batched, its key id too short", packed(139, 1, bytes(8) + b"\5ab"))
    add(client, "batched, its key id no UTF-8", packed(139, 1, bytes(8) + short(b"\xff") + short(ED25519)))
    add(client, "batched, its key too short", packed(139, 1, bytes(8) + short("00") + b"\x20" + ED25519[:-1]))
    add(client, "verified: 2", packed(132, 1, b"\2"))
    add(client, "verified of nothing", packed(132, 1))
    add(client, "verified in two bytes", packed(132, 1, b"\1\0"))
    add(client, "pong of 65 bytes", packed(133, 0, bytes(65)))
    add(client, "error of nothing", packed(134, 1))
    add(client, "error, flag 4", packed(134, 1, b"\4" + FULL[0][1:]))
    add(client, "error, its text too short", packed(134, 1, FULL[0][:-1]))
    add(client, "error and a byte more", packed(134, 1, FULL[0] + b"\0"))
    unreadable = struct.pack("<BI", 0, 0) + short("BUSY") + short("RETRY") + long(b"\xff")
    add(client, "error, its text no UTF-8", packed(134, 1, unreadable))
    add(client, "credit in three bytes", packed(136, body=bytes(3)))
    add(client, "credit in five bytes", packed(136, body=bytes(5)))
    add(client, "goaway of nothing", packed(137))
    add(client, "goaway, its reason too short", packed(137, body=struct.pack("<I", 1) + b"\5ab"))
    add(client, "goaway and a byte more", packed(137, body=struct.pack("<I", 1) + short("") + b"\0"))
    add(client, "done, no UTF-8", packed(138, 1, b"\xff"))
    return found


def document() -> str:
    """vectors.json."""
    made = {
        "protocol": "hsmcore-wire/1",
        "frames": [*of_client(), *traced(), *labelled(), *of_both(), *welcomes(), *of_gateway()],
        "streams": streams(),
        "refused": [*refused(), *refused_answers()],
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
