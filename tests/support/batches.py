"""Batches that are signed in software, proofs that were tampered with, and the verifiers that must refuse those."""

from __future__ import annotations

import asyncio
import json
import runpy
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from nacl.signing import SigningKey
from tests.support.paths import ROOT

from hsmcore import proof_from_bytes, proof_to_bytes, verify_batched
from hsmcore._native import BatchedSignature, Gate, Leaves
from hsmcore.tlog import batch_proof, note

KEY, OTHER_KEY = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
PUBLIC = bytes(KEY.verify_key)
ANY = Gate(kinds=None, domain="default")
EXAMPLES = ROOT / "examples"


def of(messages: Sequence[bytes], **other: Any) -> list[BatchedSignature]:
    """A batch of these messages."""
    return asyncio.run(signed(messages, **other))


async def signed(
    messages: Sequence[bytes],
    *,
    first: int = 0,
    domain: str = "default",
    epoch: int = 0,
    blind: bool = False,
    key: SigningKey = KEY,
    change: Callable[[bytes], bytes] = lambda text: text,
) -> list[BatchedSignature]:
    """As `of`. `change`: of the text that is signed."""
    leaves = Leaves(asyncio.get_running_loop())
    futures = [leaves.add(ANY, message, None, 10**12, 1 << 20) for message in messages]
    root = leaves.build(first, blind)
    text = change(batch_proof.checkpoint(domain, epoch, len(messages), root, first, 1_700_000_000_000_000_000))
    public = bytes(key.verify_key)
    made = note.signed(text, batch_proof.signer(text, public), key.sign(text).signature)
    leaves.signed(made, "01", public, None)
    while leaves.answer(100):
        pass
    return [await future for future in futures if future is not None]


class Case(NamedTuple):
    """A proof as a verifier gets it. `what`: how it was changed."""

    what: str
    message: bytes
    proof: bytes
    public_key: bytes = PUBLIC


class Given(NamedTuple):
    """A good proof, in parts, and what it is changed with."""

    chance: Random
    message: bytes
    proof: bytes
    lines: list[bytes]
    """Of the head: title, extra, index, path."""
    checkpoint: bytes
    foreign: dict[str, bytes]
    """Proofs of the same message that are good in themselves, of other batches."""

    def case(self, what: str, lines: Sequence[bytes]) -> Case:
        """The proof with another head."""
        return Case(what, self.message, b"\n".join(lines) + b"\n\n" + self.checkpoint)

    @property
    def node(self) -> int:
        """Some line of the path."""
        return self.chance.randrange(3, len(self.lines))


def _bit(given: Given) -> Case:
    at, bit = given.chance.randrange(len(given.proof)), 1 << given.chance.randrange(8)
    return Case("bit", given.message, given.proof[:at] + bytes([given.proof[at] ^ bit]) + given.proof[at + 1 :])


def _cut(given: Given) -> Case:
    return Case("cut", given.message, given.proof[: given.chance.randrange(len(given.proof))])


def _message(given: Given) -> Case:
    other = given.chance.choice([given.message + b" ", b"", b"message 12", given.message[:-1]])
    return Case("message", other, given.proof)


def _node(given: Given) -> Case:
    lines, at = list(given.lines), given.node
    lines[at] = b64encode(given.chance.randbytes(32))
    return given.case("node", lines)


def _exchanged(given: Given) -> Case:
    lines = list(given.lines)
    one, other = given.chance.sample(range(3, len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return given.case("nodes exchanged", lines)


def _length(given: Given) -> Case:
    at = given.node
    more = given.chance.choice([[], [given.lines[at]] * 2])
    return given.case("length of the path", [*given.lines[:at], *more, *given.lines[at + 1 :]])


def _index(given: Given) -> Case:
    index = int(given.lines[2][6:]) + given.chance.choice([1, 13, 2**62, 10**19])
    return given.case("index", [*given.lines[:2], b"index %d" % index, *given.lines[3:]])


def _extra(given: Given) -> Case:
    extra = bytearray(b64decode(given.lines[1][6:]))
    at = given.chance.choice([0, 8, len(extra) - 1])
    extra[at] ^= 1 << given.chance.randrange(8)
    what = {0: "kind", 8: "number"}.get(at, "blinder")
    return given.case(what, [given.lines[0], b"extra " + b64encode(extra), *given.lines[2:]])


def _foreign(given: Given) -> Case:
    """The checkpoint of another batch, or only its text, or only its signature."""
    what = given.chance.choice(list(given.foreign))
    text, _, signature = given.foreign[what].partition(b"\n\n")[2].rpartition(b"\n\n")
    own_text, _, own_signature = given.checkpoint.rpartition(b"\n\n")
    ways = [(own_text, signature)] if text == own_text else [(text, own_signature), (own_text, signature)]
    text, signature = given.chance.choice(ways)
    return given._replace(checkpoint=text + b"\n\n" + signature).case(what, given.lines)


def _key(given: Given) -> Case:
    return Case("another key is asked for", given.message, given.proof, bytes(OTHER_KEY.verify_key))


def _between(given: Given) -> Case:
    text = given.chance.choice([b" ", b"\n", b"\r\n", b"=", b"0", b"\0", b"\xe2\x80\x94 a b\n"])
    at = given.chance.randrange(given.proof.index(b"\n\n\xe2"))
    return Case("bytes between", given.message, given.proof[:at] + text + given.proof[at:])


_CHANGES = (_bit, _cut, _message, _node, _exchanged, _length, _index, _extra, _foreign, _key, _between)


def manipulated(chance: Random, count: int) -> Iterator[Case]:
    """So many cases that no verifier may accept."""
    messages = [b"message %d" % i for i in range(13)]
    good = [of(messages, first=500, blind=blind) for blind in (False, True)]
    foreign = {
        "other domain": of(messages, first=500, domain="defaulu"),
        "other epoch": of(messages, first=500, epoch=1),
        "other first": of(messages, first=501),
        "other tree": of([*messages[:12], b"x"], first=500),
        "other size": of([*messages, b"x"], first=500),
        "other key": of(messages, first=500, key=OTHER_KEY),
    }
    for _ in range(count):
        at = chance.randrange(12)
        proof = good[chance.random() < 0.3][at].proof
        head, _, checkpoint = proof.partition(b"\n\n")
        others = {what: batch[at].proof for what, batch in foreign.items()}
        given = Given(chance, messages[at], proof, head.split(b"\n"), checkpoint, others)
        yield chance.choice(_CHANGES)(given)


def malformed() -> Iterator[Case]:
    """Proofs that are good but for the form of the text, which the key has signed."""
    first, lines = 500, bytes.splitlines
    for what, change in {
        "a log's checkpoint": lambda text: b"".join(lines(text, True)[:3]),
        "no time": lambda text: b"".join(lines(text, True)[:4]),
        "a line more": lambda text: text + b"more\n",
        "a leading zero": lambda text: text.replace(b"time ", b"time 0"),
        "another version": lambda text: text.replace(b"/v1", b"/v2"),
    }.items():
        yield Case(what, b"m", of([b"m", b"n"], first=first, change=change)[0].proof)
    for domain in ("a+b", "a b", "a" * 65, ""):
        yield Case(f"domain {domain!r}", b"m", of([b"m", b"n"], first=first, domain=domain)[0].proof)


def lines_of_signatures() -> Iterator[tuple[Case, bool]]:
    """Proofs whose signature lines are of one form or another, and whether they hold. The last line is the key's."""
    proof = of([b"m", b"n"], first=10**18 + 5, domain="my-rollup", epoch=3)[0].proof
    head, dash, own = proof.rpartition("\u2014 ".encode())
    name, value = own.rstrip(b"\n").split(b" ")

    def case(what: str, before: bytes = b"", line: bytes = own) -> Case:
        return Case(what, b"m", head + before + dash + line)

    def beside(signer: bytes, text: bytes = b"AAAAAAA=") -> bytes:
        return dash + signer + b" " + text + b"\n"

    yield case("as it was made"), True
    for signer in (b"witness.example", "w\u2028w".encode(), "w\x85w".encode(), b"w\x7fw", name):
        yield case(f"a signature of {signer!r}", beside(signer)), True
    yield case("many signatures", beside(b"w") * 63), True
    yield case("too many signatures", beside(b"w") * 64), False
    for signer in (b"w\xffw", b"w\x1cw", b"w\rw", b"w+w", b"w w", b""):
        yield case(f"a signature of {signer!r}", beside(signer)), False
    for text in (b"A", b"AAAA", b"AAAAAA", b"AAAAAAA", b"AAAAAAB=", b"AAAAAAA==", b"AAAAAA=="):
        yield case(f"{text!r} of another name", beside(b"w", text)), False
        yield case(f"{text!r} of the own name", beside(name, text)), False
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at = digits.index(value[-2:-1])
    for other in range(at - at % 4, at - at % 4 + 4):
        if other != at:
            changed = value[:-2] + digits[other : other + 1] + b"="
            yield case("bits that mean nothing", line=name + b" " + changed + b"\n"), False
    yield case("no padding", line=name + b" " + value.rstrip(b"=") + b"\n"), False
    yield case("more padding", line=name + b" " + value + b"=\n"), False
    yield case("a signature cut", line=name + b" " + b64encode(b64decode(value)[:-1]) + b"\n"), False
    yield case("no signature", line=name + b" " + b64encode(b64decode(value)[:4]) + b"\n"), False
    yield case("another key's id alone", line=name + b" " + b64encode(bytes(4) + b64decode(value)[4:]) + b"\n"), False
    for key in (PUBLIC[:31], PUBLIC + b"\0", b""):
        yield case(f"a key of {len(key)} bytes")._replace(public_key=key), False


def changed_bytes(chance: Random, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Binary forms of which each is changed in a byte or a few, and their messages."""
    messages = [b"message %d" % i for i in range(13)]
    good = [
        [proof_to_bytes(one.proof) for one in of(messages, first=first, blind=blind)]
        for first in (0, 500, 10**15)
        for blind in (False, True)
    ]
    while count > 0:
        batch, at = chance.choice(good), chance.randrange(13)
        data = bytearray(batch[at])
        match chance.randrange(4):
            case 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                data[chance.randrange(len(data))] = chance.randrange(256)
            case 2:  # kind and numbers: most of what is read
                data[chance.choice((0, *range(65, 65 + 24)))] = chance.randrange(256)
            case _:
                other = chance.choice(chance.choice(good))
                cut = chance.choice((1, 65, chance.randrange(len(data))))
                data = data[:cut] + other[cut:]
        if not any(bytes(data) == one[at] for one in good):
            count -= 1
            yield bytes(data), messages[at]


def rebuilt(data: bytes, message: bytes, domain: str = "default") -> bytes | None:
    """The text of a binary form; None: there is none."""
    try:
        return proof_from_bytes(data, message, PUBLIC, domain)
    except ValueError:
        return None


Verifier = Callable[[Sequence[Case]], list[bool]]


def by_hsmcore(cases: Sequence[Case]) -> list[bool]:
    """hsmcore.verify_batched."""
    return [verify_batched(case.public_key, case.message, case.proof) for case in cases]


def by_python(cases: Sequence[Case]) -> list[bool]:
    """examples/verify_batched.py."""
    verify = runpy.run_path(str(EXAMPLES / "verify_batched.py"))["verify"]
    return [verify(case.public_key, case.message, case.proof) is not None for case in cases]


_DRIVER = """
const { verifyBatched } = await import(process.argv[2]);
const { readFileSync } = await import("node:fs");
const of = (text) => Buffer.from(text, "base64");
for (const [key, message, proof] of JSON.parse(readFileSync(0))) {
  console.log(verifyBatched(of(key), of(message), of(proof)) ? 1 : 0);
}
"""


def by_node(cases: Sequence[Case], module: Path = EXAMPLES / "verify_batched.mjs") -> list[bool]:
    """A module of Node.js with `verifyBatched`."""
    given = [[b64encode(part).decode() for part in (case.public_key, case.message, case.proof)] for case in cases]
    done = subprocess.run(
        ["node", "--input-type=module", "-e", _DRIVER, "-", str(module)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line == "1" for line in done.stdout.split()]
