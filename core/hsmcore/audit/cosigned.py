"""Cosignatures that witnesses gave to checkpoints of a log (C2SP tlog-cosignature), kept beside it: the folder
`cosigned` has a note for each size, with the log's own signature and those of the witnesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from hsmcore.audit.layout import TreeLayout
from hsmcore.base.files import replace
from hsmcore.base.ownership import make_folder
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import Note, NoteError, VerifierKey, signature_line, signature_of

KEPT: Final = 64
"""Notes that are kept whatever they hold. An older one is kept as long as it has a witness's newest cosignature."""
_DIGITS: Final = 20


class Cosigned(NamedTuple):
    """A witness's newest cosignature. `at`: the Unix time that the witness says."""

    size: int
    at: int


def notes(layout: TreeLayout) -> list[bytes]:
    """Return the notes, of the smallest log first. Nothing is verified. Raises OSError."""
    found = []
    for path in _paths(layout):
        with suppress(FileNotFoundError):  # it went meanwhile
            found.append(path.read_bytes())
    return found


def newest(notes: Iterable[bytes], keys: Iterable[VerifierKey]) -> dict[VerifierKey, Cosigned]:
    """Return the newest verified cosignature of each of these witnesses, among notes of one log in any order. What is
    no note, or holds a wrong signature, counts for nothing."""
    found: dict[VerifierKey, Cosigned] = {}
    for data in notes:
        with suppress(NoteError, UnicodeDecodeError):
            size, note = Checkpoint.parse(data).size, Note.parse(data)
            for key in keys:
                if (at := note.cosigned_at(key)) is not None:
                    found[key] = max(found.get(key, Cosigned(0, 0)), Cosigned(size, at))
    return found


def with_quorum(layout: TreeLayout, witnesses: Sequence[VerifierKey], quorum: int) -> bytes | None:
    """Return the note of the largest log that a quorum of witnesses has cosigned; None: there is none. Raises
    OSError."""
    for path in reversed(_paths(layout)):
        with suppress(FileNotFoundError):  # it went meanwhile
            note = path.read_bytes()
            if len(newest([note], witnesses)) >= quorum:
                return note
    return None


def keep(layout: TreeLayout, checkpoint: Checkpoint, witness: VerifierKey, signature: bytes) -> None:
    """Keep a witness's cosignature of a stored checkpoint, durably. One thread at a time. Raises OSError."""
    folder = layout.cosigned
    make_folder(folder)
    path = folder / f"{checkpoint.size:0{_DIGITS}d}"
    before = checkpoint.note
    with suppress(FileNotFoundError, NoteError, UnicodeDecodeError):
        stored = path.read_bytes()
        if Checkpoint.parse(stored).text == checkpoint.text:
            before = stored
    lines = before.removeprefix(checkpoint.text + b"\n").splitlines()
    others = [line + b"\n" for line in lines if _signer_of(line) != (witness.name, witness.id)]
    replace(path, b"".join([checkpoint.text, b"\n", *others, signature_line(witness, signature)]))
    _forget(layout)


def _forget(layout: TreeLayout) -> None:
    paths = _paths(layout)
    for old in paths[:-KEPT]:
        own, newer = _signers(old), reversed(paths)
        while own and (path := next(newer)) != old:
            own -= _signers(path)
        if not own:
            old.unlink(missing_ok=True)


def _signers(path: Path) -> set[tuple[str, bytes]]:
    try:
        return {(name, value[:4]) for name, value in Note.parse(path.read_bytes()).signatures}
    except (OSError, NoteError):
        return set()


def _signer_of(line: bytes) -> tuple[str, bytes]:
    """Return name and key id of a signature line. Raises NoteError."""
    name, value = signature_of(line)
    return name, value[:4]


def _paths(layout: TreeLayout) -> list[Path]:
    if not layout.cosigned.is_dir():
        return []
    return sorted(path for path in layout.cosigned.iterdir() if path.name.isdigit() and len(path.name) == _DIGITS)
