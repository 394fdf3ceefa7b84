"""What a key may sign: the kinds of payload, the formats of a layer 2, callers, and rules for transactions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from hsmcore._native import MOST_OWNED, PROGRAMS
from hsmcore.base.base58 import base58, from_base58
from hsmcore.base.payload import MOST_DOMAIN, NOTE_NAME, OrderedKind
from hsmcore.config.base import Model, Text, Whole, as_tuple, clash, each_once, fault

LeafKind = Literal["tx-legacy", "tx-v0", "tx-v1", "off-chain", "digest32", "raw"]
CallerKind = Literal[LeafKind, OrderedKind, "prehashed"]
Kind = Literal[CallerKind, "batch-root", "key-set"]
BATCH_ROOT: Final = "batch-root"
"""The root of a batch, which only hsmcore itself has signed."""
KEY_SET: Final = "key-set"
"""The signed set of the keys, which only hsmcore itself has signed."""
OWN: Final = (BATCH_ROOT, KEY_SET)
"""The kinds that no caller has signed."""
ORDERED: Final[frozenset[str]] = frozenset({"block", "state-root", *OWN})
"""The kinds whose payloads have a position: at most one digest is signed at each."""
PREHASHED: Final = "prehashed"
MOST_RULES: Final = 1024
_COUNT: Final = 3
_TAKEN: Final = (b"\xffsolana offchain", b"\xffhsmcore")
Kinds = Annotated[tuple[Kind, ...], BeforeValidator(as_tuple)]
CallerKinds = Annotated[tuple[CallerKind, ...], BeforeValidator(as_tuple)]
Hex = Annotated[str, Text(512, form=r"([0-9a-f]{2})+", says="bytes in lower-case hexadecimal")]


def _is_address(value: str) -> bool:
    try:
        return len(from_base58(value)) == 32  # bytes of a public key
    except ValueError:
        return False


def _address(value: str) -> str:
    if not _is_address(value):
        raise fault("must be an address: 32 bytes in base58")
    return value


Address = Annotated[str, Text(44), AfterValidator(_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(as_tuple)]


class PositionField(Model):
    """Where the position stands in a payload: an unsigned number of `bytes` bytes at `offset`."""

    offset: Annotated[int, Whole(0, 65_535)]
    """Bytes before the position."""
    bytes: Annotated[int, Whole(1, 8)] = 8
    """Bytes of the position."""
    order: Literal["big", "little"] = "big"
    """The order of its bytes."""


class PayloadFormat(Model):
    """A layer 2's own format of an ordered kind. A message is of it if it has this prefix and length, and is nothing
    that the chain below knows: no transaction, off-chain message or payload of hsmcore's own format."""

    kind: OrderedKind
    """The ordered kind that messages of this format have."""
    prefix: Hex
    """The bytes at the beginning of each message, in hexadecimal."""
    length: Annotated[int, Whole(1, 1_048_575)]
    """Bytes of the whole message."""
    position: PositionField
    """Where the position stands."""

    def __str__(self) -> str:
        at = self.position
        return f"{self.kind} {self.prefix} of {self.length} bytes, position {at.bytes} bytes {at.order} at {at.offset}"

    @model_validator(mode="after")
    def _fits(self) -> PayloadFormat:
        if len(self.prefix) // 2 > self.length or self.position.offset + self.position.bytes > self.length:
            raise clash("prefix and position must lie within length")
        if self.position.offset < len(self.prefix) // 2:
            raise clash("position must stand behind prefix: bytes of the prefix are the same in each payload")
        prefix = bytes.fromhex(self.prefix)
        if 0x80 <= prefix[0] < 0xFF:
            raise clash("prefix must not begin with 0x80 to 0xfe: those are versions of transactions")
        if any(prefix.startswith(own) or own.startswith(prefix) for own in _TAKEN):
            raise clash("prefix must differ from those of Solana's off-chain messages and of hsmcore's own payloads")
        # A legacy message has its number of accounts in the fourth byte, or begins it there, and 32 bytes for each.
        if prefix[0] < 0x80 and (len(prefix) <= _COUNT or self.length >= 37 + 32 * min(prefix[_COUNT], 128)):
            raise clash(
                "a payload could begin like a transaction: prefix must begin with 0xff, or have four bytes at least, "
                "the fourth large enough for length (0x20: to 1,060 bytes, 0x80 and more: to 4,132)"
            )
        return self


class CallerRules(Model):
    """What one caller may have signed: in this process with this key, or as a client of a gateway."""

    kinds: CallerKinds | None = None
    """Default: every kind of the policy."""
    batch: bool | None = None
    """Whether it may have messages put into batches, whatever their kinds. Default: unless it has `kinds`."""
    per_second: Annotated[int, Whole(1, 10_000_000)] | None = None
    """Signatures a second, with bursts of as many. Default: no limit."""
    in_flight: Annotated[int, Whole(1, 65_536)] | None = None
    """Requests that are open at a time, each message of a batch. Default: no separate limit."""

    @property
    def batches(self) -> bool:
        """Whether it may have messages put into batches."""
        return self.kinds is None if self.batch is None else self.batch


_ANY: Final = "any"
_NAMES: Final = {base58(at): name for name, (places, _) in PROGRAMS.items() for at in places}


def _near(given: object, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(given)[:100], names, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _problems(program: str, allowed: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what is wrong with what a program is allowed, with its path."""
    _, names = PROGRAMS.get(program, ((), ()))
    if program in _NAMES:
        yield (program,), f'has a name: write "{_NAMES[program]}"'
    elif program not in PROGRAMS and not _is_address(program):
        yield (program,), f"is neither the name of a program nor an address{_near(program, PROGRAMS)}"
    elif not names:
        if allowed != _ANY:
            yield (program,), f'must be "{_ANY}": the instructions of this program are not told apart here'
    elif not isinstance(allowed, list) or not allowed:
        yield (program,), f'must list the instructions that may be signed, such as ["{names[0]}"]'
    else:
        for index, name in enumerate(allowed):
            if name not in names:
                yield (program, index), f"is no instruction of {program} that has a name{_near(name, names)}"


def _programs(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MOST_RULES:
        raise clash(
            'must be an object, no list: {"System": ["Transfer"]} for a program that hsmcore can read, and the address '
            f'of another one with "{_ANY}"; at most {MOST_RULES}'
        )
    wrong = [
        InitErrorDetails(type=clash(problem), loc=path, input=None)
        for program, allowed in value.items()
        for path, problem in _problems(program, allowed)
    ]
    if wrong:
        raise ValidationError.from_exception_data("programs", wrong)
    return {program: tuple(allowed) if isinstance(allowed, list) else allowed for program, allowed in value.items()}


_SHAPE: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}
Programs = Annotated[
    dict[str, Any],  # a tuple of names, or "any"
    PlainValidator(_programs),
    WithJsonSchema({"type": "object", "additionalProperties": {"anyOf": [{"const": _ANY}, _SHAPE]}}),
]
_NO_SUMS: Final = (
    "name in programs the instructions that may be signed, in recipients who may receive, maxFeeLamports, and in owned "
    "how much may leave each account of yours in a minute"
)
_GONE: Final = {
    "lookupTables": "recipients lists the accounts that may receive, and one from a look-up table is not among them",
    "lamportsPerMinute": _NO_SUMS,
    "tokensPerMinute": _NO_SUMS,
}


class OwnedRules(Model):
    """What may leave an account that the key has authority over."""

    per_minute: Annotated[int, Whole(1, 2**63 - 1)]
    """Lamports of a wallet, or of a token account the smallest units of its tokens, with a burst of as many."""


class TransactionRules(Model):
    """Rules for the transactions that are signed. What programs do that a program calls is not seen here."""

    programs: Programs | None = None
    """What may be called: by a program's name the names of its instructions, by the address of a program that hsmcore
    cannot read "any". An instruction that is not named is refused. Default: anything."""
    role: Literal["any", "fee-payer", "authority"] = "any"
    """"fee-payer": the signing key pays, and is an account of no instruction. "authority": it is any of the signers."""
    recipients: Addresses | None = None
    """The accounts that may receive by an instruction that is named in `programs` and has a recipient: wallets, and for
    tokens the token accounts themselves. Default: any."""
    owned: dict[str, OwnedRules] | None = None
    """By address, the wallets and token accounts that the key has authority over: an instruction that names one must
    say what leaves it, or be known to take nothing. Default: none."""
    max_fee_lamports: Annotated[int, Whole(5_000, 10**12)] | None = None
    """Lamports that a transaction may pay for: its signatures, and the price of its compute units. Default: any
    number."""

    @model_validator(mode="before")
    @classmethod
    def _none_that_is_gone(cls, value: Any) -> Any:
        for key, instead in _GONE.items():
            if isinstance(value, dict) and key in value:
                raise clash(f"{key} is gone: {instead}")
        return value

    @model_validator(mode="after")
    def _can_be_judged(self) -> TransactionRules:
        if self.recipients is not None and self.programs is None:
            raise clash(
                "has recipients, but no programs: who receives by an instruction that is not named is not known"
            )
        if self.owned is not None and self.programs is None:
            raise clash("has owned, but no programs: name there the instructions, of which alone an amount is known")
        return self

    @field_validator("owned")
    @classmethod
    def _by_address(cls, value: dict[str, OwnedRules] | None) -> dict[str, OwnedRules] | None:
        if value is not None and (len(value) > MOST_OWNED or not all(map(_is_address, value))):
            raise clash(f'must be {{"ADDRESS": {{"perMinute": 5000000000}}}} by base58 address, at most {MOST_OWNED}')
        return value

    @field_validator("recipients")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(set(value)) != len(value) or len(value) > MOST_RULES):
            raise clash(f"must list each address once, and at most {MOST_RULES}")
        return value


class Policy(Model):
    """`policy`: a message that is of none of `kinds` is refused before any member is asked."""

    kinds: Annotated[Kinds, each_once("kind")]
    """The kinds of payload that the key signs."""
    domain: Annotated[
        str, Text(MOST_DOMAIN, form=NOTE_NAME, says='1 to 64 characters of printable ASCII, without spaces and "+"')
    ] = "default"
    """The chain of positions that ordered kinds count in; in hsmcore's own format it stands in the payload."""
    max_ahead: Annotated[int, Whole(1, 2**63 - 1)] = 1_000_000
    """How far beyond the highest position, or the floor, a new one may lie. The first one of a chain is free."""
    keep_positions: Annotated[int, Whole(1024, 2**63 - 1)] | None = None
    """How far behind the highest position one lies that is given up by itself: its chain gets a floor. At least
    `maxAhead`. Default: none is given up."""
    keep_message_bytes: Annotated[int, Whole(128, 65_536)] = 1024
    """The length up to which the newest bound message of each chain is kept in the state store, so that it is not lost
    with the process that bound it. One in hsmcore's own format always is."""
    formats: Annotated[tuple[PayloadFormat, ...], BeforeValidator(as_tuple)] = ()
    """A layer 2's own formats of ordered kinds."""
    callers: dict[str, CallerRules] | None = None
    """By name; a caller that is not among them is refused. Default: anybody in this process may have signed what the
    policy allows."""
    transactions: TransactionRules | None = None
    """Rules for the transactions that are signed. Default: none."""

    @model_validator(mode="after")
    def _fits_together(self) -> Policy:
        for name, rules in (self.callers or {}).items():
            others = set(rules.kinds or ()) - set(self.kinds)
            if others:
                raise clash(f"callers.{name}.kinds names {', '.join(sorted(others))}, which kinds does not")
        for number, form in enumerate(self.formats):
            if form.kind not in self.kinds:
                raise clash(f"formats[{number}] is of kind {form.kind}, which kinds does not list")
            if any(overlap(form, other) for other in self.formats[:number]):
                raise clash(f"formats[{number}] has the length of another one, and one prefix begins with the other")
        if PREHASHED in self.kinds and (self.ordered or self.transactions is not None):
            raise clash(
                f'kinds lists "{PREHASHED}", by which any payload is signed whose digest a caller gives, beside '
                f"{'ordered kinds' if self.ordered else 'rules for transactions'}: use a key of its own for it"
            )
        if "digest32" in self.kinds and self.ordered - set(OWN):
            # Separate kinds for callers do not help: a verifier of a signature sees the key and not the caller.
            raise clash(
                'kinds lists "digest32" beside ordered kinds, and a bare digest of a block has no position: have '
                "hsmcore.payload of it signed, or use a key of its own for digests"
            )
        if self.keep_positions is not None and not self.ordered:
            raise clash("has keepPositions, but kinds lists no kind with a position")
        if self.keep_positions is not None and self.keep_positions < self.max_ahead:
            # A position that is too far ahead by mistake would give up those that the chain has come to.
            raise clash(f"keepPositions must be at least maxAhead ({self.max_ahead}): raise one, or lower the other")
        if self.transactions is not None and not any(kind.startswith("tx-") for kind in self.kinds):
            raise clash("has transactions, but kinds lists no kind of transaction")
        return self

    @property
    def ordered(self) -> frozenset[str]:
        """The kinds among `kinds` whose positions are bound."""
        return ORDERED & set(self.kinds)

    @property
    def forms(self) -> tuple[str, ...]:
        """What a key is bound to besides the domain: the ordered kinds that callers have signed, and the formats. Not
        hsmcore's own kinds, whose texts name domain, kind and position."""
        return tuple(sorted({*(self.ordered - set(OWN)), *map(str, self.formats)}))

    def chain(self, name: str) -> str:
        """Return the name that positions of an ordered kind have in the state store."""
        return f"{self.domain}/{name}"

    def former_kind(self, name: str) -> str | None:
        """Return the kind of the positions that a store has under this name, if their domain is in a spelling that was
        allowed once."""
        domain, _, kind = name.rpartition("/")
        return None if re.fullmatch(NOTE_NAME, domain) else kind

    @property
    def needs_store(self) -> bool:
        """Whether it keeps something that must survive a crash."""
        return bool(self.ordered)


def overlap(one: PayloadFormat, other: PayloadFormat) -> bool:
    """Return whether a message could be of both formats."""
    same = one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix)
    return one.length == other.length and same


MOST_ROOT_BYTES: Final = 205
"""Length of the longest text that is signed for a batch, with every number and the domain at its limit."""


class Batching(Model):
    """Settings of `sign_batched`."""

    PATHS = frozenset({"keep_leaves"})

    kinds: Annotated[tuple[LeafKind, ...], BeforeValidator(as_tuple), each_once("kind")] | None = None
    """The kinds of payload that may be in a batch. Default: any bytes, as of kind "raw"."""
    interval_ms: Annotated[int, Whole(0, 60_000)] = 20
    """The age of its first message at which a batch closes."""
    max_leaves: Annotated[int, Whole(1, 1_048_576)] = 65_536
    """The number of messages at which it closes before that."""
    blind: bool = False
    """Whether each leaf has 32 random bytes, so that a proof does not let its neighbours' messages be guessed."""
    keep_leaves: Annotated[str, Text(4096)] | None = None
    """A folder in which the leaves of each batch are kept. Default: they are not kept."""
