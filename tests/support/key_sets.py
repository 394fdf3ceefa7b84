"""Sets of keys as a signer makes them, over rotations on a clock that is counted; manipulations; the verifiers."""

from __future__ import annotations

import json
import runpy
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from nacl.signing import SigningKey
from tests.support.paths import ROOT

from hsmcore.tlog.key_set import FIRST_LINE, KeyEntry, KeySet, signer, text_of
from hsmcore.tlog.note import signature_line

EXAMPLES = ROOT / "examples"
DOMAIN = "my-rollup"
START = 1_800_000_000


def key_of(number: int) -> SigningKey:
    """The key of a version, the same one each time."""
    return SigningKey(number.to_bytes(32))


def public(number: int) -> bytes:
    """Its public half."""
    return bytes(key_of(number).verify_key)


def entry(number: int, state: str, begun: int = START, ends: int | None = None, after: int | None = None) -> KeyEntry:
    """A line about a version."""
    return KeyEntry(number, "ed25519", public(number), state, begun, ends, after)  # type: ignore[arg-type]


def note_of(
    serial: int,
    keys: Iterable[KeyEntry],
    signers: Iterable[int],
    *,
    domain: str = DOMAIN,
    name: str | None = None,
    now: int = START,
    until: int | None = None,
    change: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """A note. `change`: of the text before it is signed."""
    text = change(text_of(domain, serial, now, ("raw", "key-set"), keys, until))
    lines = [
        signature_line(
            replace(signer(domain, public(one)), name=name or f"{domain}/keys"), key_of(one).sign(text).signature
        )
        for one in signers
    ]
    return text + b"\n" + b"".join(lines)


@dataclass
class Signer:
    """A key ring whose rotations take place by a clock that is given. `now`: Unix seconds."""

    now: float = START
    serial: int = -1
    current: int = 1
    begun: dict[int, int] = field(default_factory=lambda: {1: START})
    ends: dict[int, int] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    next: int | None = None
    notes: dict[int, bytes] = field(default_factory=dict)

    def publish(self, lost: int = 0) -> None:
        """Make the set of the present state. `lost`: serials that were bound and not signed."""
        self.serial += 1 + lost
        keys, signers = [], [self.current]
        for number in sorted({*self.begun, *([] if self.next is None else [self.next])}):
            state = "retired" if number in self.retired else "overlap" if number in self.ends else "current"
            begun, ends = self.begun.get(number, int(self.now)), self.ends.get(number)
            if number == self.next:
                state, begun = "next", int(self.now)
            if state in ("next", "overlap"):
                signers.append(number)
            keys.append(entry(number, state, begun, ends, number + 1 if number in self.ends else None))
        self.notes[self.serial] = note_of(self.serial, keys, signers, now=int(self.now))

    def since(self, serial: int) -> bytes:
        """As the gateway's /keys?since=."""
        return b"".join(note for number, note in self.notes.items() if number > serial)


class Case(NamedTuple):
    """Whether a verifier that knows the first note follows to the others, in one call."""

    what: str
    known: bytes
    note: bytes
    now: float = START


def _texts(note: bytes) -> tuple[bytes, bytes]:
    text, _, lines = note.rpartition(b"\n\n")
    return text + b"\n", lines


def manipulated(chance: Random, count: int) -> Iterator[Case]:
    """Manipulations of a note that its verifier would follow: to the set after the switch, of which it must have both
    signatures."""
    before = note_of(6, [entry(1, "current")], [1])
    after = [entry(1, "overlap", START, START + 600, 2), entry(2, "current", START + 10), entry(3, "other")]
    after.append(replace(entry(4, "retired", START - 9, START - 1), last_batched=81919))
    good = note_of(8, after, [1, 2], until=START + 3600)
    ecdsa = KeyEntry(5, "ecdsa-p256", bytes([4]) + bytes(64), "retired", START, START, None)
    others = {
        "an older one": note_of(5, after, [1, 2]),
        "the same serial": note_of(6, after, [1, 2]),
        "another domain": note_of(8, after, [1, 2], domain="my-rollup2"),
        "another name": note_of(8, after, [1, 2], name="my-rollup2/keys"),
        "not endorsed": note_of(8, after, [2]),
        "not by its current key": note_of(8, after, [1]),
        "by another key": note_of(8, after, [9, 2]),
        "by a key in overlap alone": note_of(8, [entry(9, "current")], [1, 9]),
        "serials too far ahead": note_of(6 + (1 << 20) + 1, after, [1, 2]),
        "another current key": note_of(8, [*after[:1], entry(9, "current")], [9]),
        "by nobody": note_of(8, after, []),
        "two current keys": note_of(8, [*after, entry(4, "current")], [1, 2]),
        "no current key": note_of(8, after[::2], [1, 2]),
        "a key twice": note_of(8, [*after, replace(after[0], version=7)], [1, 2]),
        "a version twice": note_of(8, [*after, replace(entry(5, "other"), version=2)], [1, 2]),
        "overlap without an end": note_of(
            8, after, [1, 2], change=lambda t: t.replace(b"%d 2 -" % (START + 600), b"- 2 -")
        ),
        "a leading zero": note_of(8, after, [1, 2], change=lambda text: text.replace(b"\n8\n", b"\n08\n")),
        "a line more": note_of(8, after, [1, 2], change=lambda text: text + b"more\n"),
        "another version of the format": note_of(8, after, [1, 2], change=lambda text: text.replace(b"/v1", b"/v2")),
        "a state that is none": note_of(8, after, [1, 2], change=lambda text: text.replace(b"other", b"owner")),
        "no kinds": note_of(8, after, [1, 2], change=lambda text: text.replace(b"kinds raw key-set", b"kinds")),
        "a last index of a key that signs": note_of(8, [after[0], replace(after[1], last_batched=7)], [1, 2]),
        "a last index in the overlap": note_of(8, [replace(after[0], last_batched=7), after[1]], [1, 2]),
        "a last index of an ECDSA key": note_of(8, [*after, replace(ecdsa, last_batched=7)], [1, 2]),
        "a last index with a zero": note_of(8, after, [1, 2], change=lambda text: text.replace(b" 81919", b" 081919")),
        "no last index": note_of(8, after, [1, 2], change=lambda text: text.replace(b" 81919", b" ")),
        "two ends": note_of(
            8, after, [1, 2], change=lambda text: text.replace(b"kinds", b"good until 7\n" * 2 + b"kinds")
        ),
        "an end with a zero": note_of(
            8, after, [1, 2], change=lambda text: text.replace(b"kinds", b"good until 07\nkinds")
        ),
        "an end in its wrong place": note_of(8, after, [1, 2], change=lambda text: text + b"good until 7\n"),
        "blanks at the end": note_of(
            8, after, [1, 2], change=lambda text: text.replace(b"key-set\nkey", b"key-set \nkey")
        ),
    }
    during = note_of(7, after, [1, 2])
    for what, note in others.items():
        yield Case(what, during if what == "by a key in overlap alone" else before, note)
    yield Case("after the end of the key that endorses", during, note_of(9, [entry(9, "current")], [1, 9]), START + 901)
    text, lines = _texts(good)
    while count > len(others) + 1:
        count -= 1
        at, kind = chance.randrange(len(good)), chance.randrange(9)
        match kind:
            case 0:
                bad = good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
            case 1:
                bad = good[:at]
            case 2:
                bad = good[:at] + good[at + 1 :]
            case 3:
                bad = good[:at] + chance.choice([b"0", b"\n", b" ", b"=", "é".encode()]) + good[at:]
            case 4:
                rows = text.splitlines(True)
                first, second = chance.sample(range(len(rows)), 2)
                rows[first], rows[second] = rows[second], rows[first]
                bad = b"".join(rows) + b"\n" + lines
            case 5:
                rows = text.splitlines(True)
                del rows[chance.randrange(len(rows))]
                bad = b"".join(rows) + b"\n" + lines
            case 6:
                one = chance.choice(lines.splitlines(True))
                bad = text + b"\n" + lines.replace(one, b"")
            case 7:
                other_text, other_lines = _texts(chance.choice(list(others.values())))
                bad = other_text + b"\n" + lines if chance.random() < 0.5 else text + b"\n" + other_lines
            case _:
                old, new = chance.choice([(b"overlap", b"current"), (b"current", b"overlap"), (b" 2 -", b" 3 -")])
                bad = text.replace(old, new, 1) + b"\n" + lines
        if bad not in (good, good.removesuffix(b"\n")) and _both(bad) != _both(good):
            yield Case(f"change {kind}", before, bad)


def _both(note: bytes) -> tuple[bytes, frozenset[bytes]]:
    text, lines = _texts(note)
    return text, frozenset(lines.splitlines(True))


def by_hsmcore(cases: Sequence[Case]) -> list[bool]:
    """hsmcore.KeySet."""
    return [_followed(lambda c=case: KeySet.remembered(c.known).follow(c.note, c.now), ValueError) for case in cases]


def by_python(cases: Sequence[Case]) -> list[bool]:
    """examples/verify_key_set.py."""
    module = runpy.run_path(str(EXAMPLES / "verify_key_set.py"))
    made, refused = module["KeySet"], module["Refused"]

    def follow(case: Case) -> object:
        return made(case.known.decode()).follow(case.note.decode())

    return [_followed(lambda c=case: follow(c), (refused, UnicodeDecodeError)) for case in cases]


def _followed(work: Callable[[], object], refused: type[Exception] | tuple[type[Exception], ...]) -> bool:
    try:
        work()
    except refused:
        return False
    return True


_DRIVER = f"""
import {{ KeySet, Refused }} from "{EXAMPLES / "verify_key_set.mjs"}";
import {{ readFileSync }} from "node:fs";
const of = (text) => new TextDecoder("utf-8", {{ fatal: true, ignoreBOM: true }}).decode(Buffer.from(text, "base64"));
const parsed = new Map();
const setOf = (text) => parsed.get(text) ?? parsed.set(text, new KeySet(of(text))).get(text);
for (const [known, note, now] of JSON.parse(readFileSync(0))) {{
  try {{
    setOf(known).follow(of(note), now);
    console.log(1);
  }} catch (error) {{
    if (!(error instanceof Refused || error instanceof TypeError)) throw error;
    console.log(0);
  }}
}}
"""


def by_node(cases: Sequence[Case], driver: str = _DRIVER) -> list[bool]:
    """examples/verify_key_set.mjs, or what another driver imports."""
    given = [[b64encode(case.known).decode(), b64encode(case.note).decode(), case.now] for case in cases]
    command = ["node", "--input-type=module", "-e", driver]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line == "1" for line in done.stdout.split()]


def by_client(cases: Sequence[Case], module: Path) -> list[bool]:
    """KeySet of the TypeScript client, which was built to this module."""
    driver = f"""
import {{ KeySet, KeySetRefused }} from "{module}";
import {{ readFileSync }} from "node:fs";
const of = (text) => Buffer.from(text, "base64");
for (const [known, note, now] of JSON.parse(readFileSync(0))) {{
  try {{
    KeySet.remembered(of(known)).follow(of(note), {{ now }});
    console.log(1);
  }} catch (error) {{
    if (!(error instanceof KeySetRefused)) throw error;
    console.log(0);
  }}
}}
"""
    return by_node(cases, driver)


def good() -> list[Case]:
    """What may follow."""
    known = note_of(6, [entry(1, "current"), entry(2, "next")], [1, 2])
    after = [entry(1, "overlap", START, START + 600, 2), entry(2, "current", START + 10)]
    by_2 = note_of(7, after, [2])
    ecdsa = KeyEntry(None, "ecdsa-p256", bytes([4]) + bytes(64), "emergency", START, None, None)
    beside = [
        Case(f"a signature of {name!r}", known, by_2 + f"\u2014 {name} AAAAAAA=\n".encode())
        for name in ("witness", "w\u2028w", "w\x85w", "w\x7fw", f"{DOMAIN}/keys")
    ]
    return [
        Case("the same again", known, known),
        Case("by both", known, note_of(7, after, [1, 2])),
        Case("by the one that was introduced", known, by_2),
        Case("serials were lost", known, note_of(70, after, [2, 1])),
        Case("serials as far ahead as may be", known, note_of(6 + (1 << 20), after, [2, 1])),
        Case("the end is not over by this clock", note_of(7, after, [1, 2]), note_of(8, after, [1, 2]), START + 899),
        Case("an ECDSA key beside", known, note_of(7, [*after, ecdsa], [2])),
        Case("with an end", known, note_of(7, after, [1, 2], until=START + 1)),
        Case(
            "with a last index",
            known,
            note_of(7, [replace(entry(3, "retired", 0, 9), last_batched=0, version=None), *after], [1, 2]),
        ),
        *beside,
    ]


def forms() -> list[Case]:
    """Notes that are good but for their form."""
    known = note_of(6, [entry(1, "current"), entry(2, "next")], [1, 2])
    after = [entry(1, "overlap", START, START + 600, 2), entry(2, "current", START + 10)]
    made = note_of(7, after, [1, 2])
    bad = {
        f"{text} of {name!r}": made + b"\xe2\x80\x94 " + name + b" " + text + b"\n"
        for name in (b"witness", f"{DOMAIN}/keys".encode())
        for text in (b"A", b"AAAA", b"AAAAA", b"AAAAAA", b"AAAAAAA", b"AAAAAAB=", b"AAAAAAA==")
    }
    bad |= {
        f"a signature of {name!r}": made + b"\xe2\x80\x94 " + name + b" AAAAAAA=\n"
        for name in (b"w\xff", b"w\x1cw", b"w\r", b"w+w", b"w w", b"")
    }
    bad["too many signatures"] = made + b"\xe2\x80\x94 w AAAAAAA=\n" * 63
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at = digits.index(made[-3:-2])
    bad["bits that mean nothing"] = made[:-3] + digits[at ^ 1 : (at ^ 1) + 1] + made[-2:]
    bad["no padding"] = made[:-2] + b"\n"
    two = after[0].line.encode()
    for end in ("\u2028", "\x85", "\x0b", "\r"):
        bad[f"lines that end with {end!r}"] = note_of(
            7, after, [1, 2], change=lambda text, end=end: text.replace(two, two[:-1] + end.encode())
        )
    return [Case(what, known, note) for what, note in bad.items()]


__all__ = [
    "FIRST_LINE",
    "Case",
    "Signer",
    "by_client",
    "by_hsmcore",
    "by_node",
    "by_python",
    "entry",
    "forms",
    "good",
    "manipulated",
    "note_of",
    "public",
]
