"""A place in a batch, over the wire: the frames SIGN_BATCHED and BATCHED, and a client's look at the proof.

A client believes no gateway: it hands out a proof only if that leads from its own message to a root which the key that
is named with it has signed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from hsmcore.errors import BadArgument, SignatureInvalid
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.fields import BYTES8, REST, TEXT8, U8, U32, U64, reader, record
from hsmcore.gateway.wire.frames import Flag, Type, frame

if TYPE_CHECKING:
    from hsmcore._native import BatchedSignature
    from hsmcore.tlog.proof import ProofParts

Place = tuple[int | None, str, bytes, bytes]
"""What BATCHED says: number of the root's record or None, key id, public key, C2SP tlog-proof."""


class SignBatched(NamedTuple):
    """A request for a place in a batch of which only the root is signed."""

    kind: str
    timeout_ms: int
    message: bytes


@dataclass(frozen=True, slots=True)
class ClientBatchedSignature:
    """As hsmcore.BatchedSignature, of a message that a gateway put into a batch. The proof is verified."""

    proof: bytes
    index: int
    root: bytes
    key_id: str
    public_key: bytes
    audit_seq: int | None


_PLACE: Final = record(lambda *said: said, U8, U32, REST)
_BATCHED: Final = record(lambda seq, *said: (None if seq == wire.NO_RECORD else seq, *said), U64, TEXT8, BYTES8, REST)
_read_place: Final[Callable[[bytes], tuple[int, int, bytes]]] = reader(_PLACE)
read_batched: Final[Callable[[bytes], Place]] = reader(_BATCHED)
"""Read BATCHED. Raises WireError. Nothing is verified."""


def sign_batched(request: int, one: SignBatched, *, slot: int = 0, again: bool = False) -> bytes:
    """Return SIGN_BATCHED."""
    body = _PLACE.put((wire.KIND_NUMBERS[one.kind], one.timeout_ms, one.message))
    return frame(Type.SIGN_BATCHED, request, body, slot=slot, flags=Flag.AGAIN if again else 0)


def read_sign_batched(body: bytes) -> SignBatched:
    """Read SIGN_BATCHED. Raises WireError."""
    kind, timeout, message = _read_place(body)
    return SignBatched(wire.kind_of(kind), timeout, message)


def batched(request: int, one: BatchedSignature | ClientBatchedSignature, *, slot: int = 0) -> bytes:
    """Return BATCHED."""
    seq = wire.NO_RECORD if one.audit_seq is None else one.audit_seq
    body = _BATCHED.put((seq, one.key_id, one.public_key, one.proof))
    return frame(Type.BATCHED, request, body, slot=slot)


def unknown() -> BadArgument:
    """Return the error of a request to a gateway, or for a key manager, that signs no batches."""
    return BadArgument(
        "the gateway signs no batches with this key manager",
        hint='Add "batch-root" to policy.kinds of its configuration, "batch" to this client, or update the gateway.',
    )


def prepare() -> None:
    """Load what verifies a proof: slow the first time. Any thread. Raises ModuleNotFoundError with what to install."""
    import hsmcore.tlog.batch_proof  # noqa: F401


class Notes:
    """Verifies answers. Remembers the last checkpoint that it found good: a batch's messages share it."""

    def __init__(self) -> None:
        self._good: tuple[bytes, bytes] | None = None

    def verified(self, message: bytes, kind: str, answer: Place) -> ClientBatchedSignature:
        """Return the place of a message, verified. `kind`: what it must be of; "": any. Raises SignatureInvalid."""
        from hsmcore.tlog.proof import shown  # slow to import, and seldom needed

        seq, key_id, public_key, proof = answer
        found = shown(message, proof)
        if found is None or kind not in ("", found.kind) or not self._signed(found, public_key):
            error = SignatureInvalid("the gateway's proof does not show that this message was signed")
            error.maybe_signed = True
            raise error
        return ClientBatchedSignature(proof, found.first + found.place, found.root, key_id, public_key, seq)

    def _signed(self, found: ProofParts, public_key: bytes) -> bool:
        if self._good == (found.note, public_key):
            return True
        good = _signature_of(found, public_key)
        if good:
            self._good = found.note, public_key
        return good


def _signature_of(found: ProofParts, public_key: bytes) -> bool:
    """Whether a note has the signature of its origin, by this key, and no other."""
    from hsmcore.tlog.batch_proof import signer  # with what verifies
    from hsmcore.tlog.note import Note, NoteError

    if len(public_key) != 32:
        return False
    try:
        note = Note.parse(found.note)
        signers = note.signers([signer(found.text, public_key)])
    except NoteError:
        return False
    return note.text == found.text and len(note.signatures) == len(signers) == 1
