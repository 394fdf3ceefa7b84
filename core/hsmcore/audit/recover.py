"""Opens a log: completes or undoes what a crash interrupted, and refuses a log that was changed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import stat
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import orjson

from hsmcore._native import MerkleTree
from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.retention import VOID, pruned
from hsmcore.audit.sealer import Damaged, Sealer
from hsmcore.audit.segment import Segment, SegmentError, first_seq, first_seq_of, frame_table, segments, seq_of
from hsmcore.audit.tiles import TileError, Tiles, TileWriter
from hsmcore.base.files import replace, write_new
from hsmcore.base.ownership import adopt, make_folder, sync
from hsmcore.errors import AuditUnavailable
from hsmcore.tlog.checkpoint import Checkpoint, history
from hsmcore.tlog.note import Note, NoteError, VerifierKey


@dataclass
class Opened:
    """A log that can be continued. `events`: operations to record, with their fields."""

    origin: str
    sealer: Sealer
    checkpoint: Checkpoint | None
    keys: list[VerifierKey]
    last_time_ns: int = 0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


_HINT = "Find out what was changed with `hsmcore audit verify`; to begin a new log, move this one and its folder."
_CHANGED_HINT = (
    "Keep a copy of the log and its folder. `hsmcore audit verify` names the byte. Put the file right there, if it is "
    "known what was changed; else begin a new log: move this one and its folder."
)
_PLACE_HINT = "Move it away: hsmcore makes the file itself. Find out which program has put it there."
_ADOPT_HINT = (
    "Compare the records with a checkpoint or a copy that was kept elsewhere. To go on with them as they are, run "
    "`hsmcore audit adopt` on the log; to begin a new one, move this one and its folder."
)


def refuse(layout: Layout, problem: str, hint: str = _HINT) -> NoReturn:
    """Raise AuditUnavailable: the log was changed, or is another one."""
    raise AuditUnavailable(f"audit log {layout.log}: {problem}", hint=hint)


def open_log(layout: Layout, origin: str | None) -> Opened:
    """Recover the files and return the state to continue from. The caller holds the lock. Raises AuditUnavailable,
    OSError."""
    _require_file(layout)
    name = _origin(layout, origin)
    keys = read_keys(layout)
    checkpoint = _checkpoint(layout, name, keys)
    make_folder(layout.segments)
    _remove_leftovers(layout)
    if not layout.log.exists():
        write_new(layout.log, b"")
        sync(layout.log.parent)
    adopt(layout.log, lambda file: not os.fstat(file).st_size or first_seq_of(file) > 0)  # after a crash
    sealer = _sealer(layout, checkpoint)
    try:
        opened = Opened(name, sealer, checkpoint, keys)
        _take_tail(layout, opened)
    except Damaged as error:
        sealer.close()
        refuse(layout, str(error))
    except BaseException:
        sealer.close()
        raise
    return opened


def _require_file(layout: Layout) -> None:
    """Refuse whatever is in the log's place but a regular file with one name: lines appended to another one would end
    up elsewhere, and a pipe would not end its opening."""
    try:
        descriptor = os.open(layout.log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        refuse(layout, "a link or a socket has its name", _PLACE_HINT)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        refuse(layout, "what has its name is no file", _PLACE_HINT)
    if found.st_nlink != 1:
        refuse(layout, "its file has another name, too", _PLACE_HINT)


def _origin(layout: Layout, wanted: str | None) -> str:
    if layout.origin.exists():
        name = layout.origin.read_text().strip()
        if wanted is not None and name != wanted:
            refuse(layout, f"it belongs to the log {name}, not to {wanted}")
        return name
    if layout.checkpoint.exists():
        refuse(layout, "its folder has lost the file origin")
    host = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in socket.gethostname()) or "host"
    name = wanted or f"{host}/hsmcore-audit/{secrets.token_hex(8)}"
    replace(layout.origin, name.encode() + b"\n")
    return name


def read_keys(layout: Layout) -> list[VerifierKey]:
    """Return the keys that have signed checkpoints, from the log's folder. Raises AuditUnavailable, OSError."""
    try:
        text = layout.keys.read_text()
    except FileNotFoundError:
        return []
    try:
        return [VerifierKey.parse(line) for line in text.splitlines()]
    except (NoteError, UnicodeDecodeError) as error:
        refuse(layout, f"{layout.keys}: {error}")


def _checkpoint(layout: Layout, origin: str, keys: list[VerifierKey]) -> Checkpoint | None:
    try:
        past, whole = history(layout.history)
        latest = Checkpoint.parse(layout.checkpoint.read_bytes()) if layout.checkpoint.exists() else None
    except NoteError as error:
        refuse(layout, f"its checkpoints are damaged ({error})")
    if layout.history.exists() and layout.history.stat().st_size > whole:
        with layout.history.open("r+b") as file:
            file.truncate(whole)
    if past and (latest is None or past[-1].size > latest.size):
        latest = past[-1]  # a crash between the writes of the two files
        replace(layout.checkpoint, latest.note)
    if not keys and latest is not None and latest.size == 0 and len(past) < 2:
        # The first start ended between the empty tree's checkpoint and its key.
        for path in (layout.checkpoint, layout.history):
            path.unlink(missing_ok=True)
            sync(layout.folder)
        return None
    if latest is None:
        if keys or layout.tiles.exists():
            refuse(layout, "its checkpoints are missing", _ADOPT_HINT)
        return None
    if not past or past[-1].text != latest.text:  # a witness may have added its signature line to either file
        refuse(layout, "its last checkpoint is not in the file of all checkpoints")
    if latest.origin != origin:
        refuse(layout, f"its checkpoint belongs to the log {latest.origin}, not to {origin}")
    try:
        if not Note.parse(latest.note).signers(keys):
            refuse(layout, "its checkpoint is signed by another key than those of the log")
    except NoteError as error:
        refuse(layout, f"its checkpoint: {error}")
    return latest


def _remove_leftovers(layout: Layout) -> None:
    for path in layout.segments.iterdir():
        if path.suffix == ".new":
            path.unlink()
        elif path.name.endswith(".jsonl.zst") and path.with_suffix("").exists():
            path.unlink()  # an interrupted compression: the plain file is complete
    held = {segment.first for segment in segments(layout)}
    for path in layout.segments.glob("*.idx"):
        if path.stem.isdigit() and int(path.stem) not in held:
            path.unlink()  # an interrupted pruning: the segment is deleted


def _sealer(layout: Layout, checkpoint: Checkpoint | None) -> Sealer:
    """Return a sealer at the checkpoint's size, whose tree has the checkpoint's root. Raises AuditUnavailable,
    SegmentError, OSError."""
    size = checkpoint.size if checkpoint is not None else 0
    ordered = segments(layout)
    start = _start(layout, ordered, size)
    try:
        sealer = Sealer(layout, start, start.first - 1)
    except TileError:
        rebuild(layout, start.first - 1)
        sealer = Sealer(layout, start, start.first - 1)
    try:
        sealer.advance(size)
        if checkpoint is not None and sealer.tree.root() != checkpoint.root:
            refuse(layout, f"the first {size} records are not those of its checkpoint")
    except Damaged as error:
        sealer.close()
        refuse(layout, f"it ends, or was changed, before record {size}, the last of its checkpoint ({error})")
    except BaseException:
        sealer.close()
        raise
    sealer.prunes.clear()  # a checkpoint covers them
    for segment, following in pairwise(ordered):
        if segment.first < start.first and following.first and (lengths := _mend_index(layout, segment)):
            sealer.note_full(segment.first, lengths, following.first)
    return sealer


def _mend_index(layout: Layout, segment: Segment) -> list[int]:
    """Derive the index of a full segment again if a crash left it short, for example if the last checkpoint ended with
    the segment. Return the lengths of its blocks if it is to be compressed. Raises OSError."""
    path = layout.index(segment.first)
    try:
        if segment.compressed and index.has_rows(path, len(frame_table(segment.path))):  # one frame for each block
            return []
        blocks = [] if segment.compressed else list(index.blocks(layout, segment))
        if not blocks or sum(block.length for block in blocks) != segment.path.stat().st_size:
            blocks, whole = index.made(segment)
            if not whole:
                return []
            replace(path, index.packed(blocks))
    except SegmentError:
        return []  # `audit verify` reports the damage
    return [] if segment.compressed else [block.length for block in blocks]


def _start(layout: Layout, ordered: list[Segment], size: int) -> Segment:
    """Return the last plain segment with a record of the checkpoint, or the one that begins after it: the sealer reads
    it from its beginning."""
    held = [segment for segment in ordered if segment.first]
    if any(segment.compressed and segment.first > size for segment in held):
        if layout.checkpoint.exists():
            refuse(layout, "its last checkpoint is older than its full files")
        refuse(layout, "its checkpoints are missing", _ADOPT_HINT)
    reached = [segment for segment in held if not segment.compressed and segment.first <= size + 1]
    start = reached[-1] if reached else Segment(size + 1, layout.log)
    before = [segment for segment in held if segment.first < start.first]
    if before:
        end = before[-1].first - 1 + sum(chunk.count(b"\n") for chunk in before[-1].chunks())
    else:
        end = pruned(layout, size) if start.first > 1 else 0
    if end != start.first - 1:
        refuse(layout, f"the records from {end + 1} to {start.first - 1} are missing")
    return start


def rebuild(layout: Layout, size: int) -> None:
    """Derive the tiles of the first `size` records again. The tiles of pruned records must exist. Raises
    AuditUnavailable, SegmentError, OSError."""
    ordered = segments(layout)
    begin = min(max(ordered[0].first - 1, 0), size) if ordered else 0
    try:
        tiles = Tiles(layout, begin)
        writer, tree = TileWriter(layout, tiles), tiles.tree()
    except TileError as error:
        refuse(layout, f"the tiles of records that were pruned cannot be made again ({error})")
    for segment in ordered:
        for text in segment.chunks():
            why, _, leaves, _ = tree.scan(text, 0, tree.size + 1, size - tree.size)
            writer.append(leaves)
            if why not in ("end", "limit"):
                refuse(layout, f"its tiles are missing, and record {tree.size + 1} is not in {segment.path}")
    if tree.size != size:
        refuse(layout, f"its tiles are missing, and so are the records from {tree.size + 1} on")
    writer.finish()


def _take_tail(layout: Layout, opened: Opened) -> None:
    """Take in the lines after the checkpoint, up to the first one that is not a record; store the rest in `lost/`."""
    sealer = opened.sealer
    while sealer.segment.path != layout.log:
        try:
            sealer.advance(1 << 62)
        except Damaged as error:
            if error.segment.path != layout.log:
                raise
            if sealer.segment.path == layout.log:
                break  # the rest of the file is handled below
            if first_seq(layout.log):
                raise
            sealer.enter(layout.log)  # the new segment is empty, or begins with an incomplete line
    with layout.log.open("r+b") as file:
        file.seek(sealer.offset)
        tail = file.read()
        whole, count = _whole_lines(tail, sealer.size + 1)
        rest = tail[whole:]
        if b"\n" not in rest and _is_record(rest, sealer.size + count + 1):
            file.write(b"\n")  # only the newline is missing
            count += 1
        elif rest:
            _refuse_records(layout, rest, sealer.offset + whole, sealer.size + count + 1)
            opened.events.append(("audit-recovered", _set_aside(layout, rest, sealer.size + count + 1)))
            file.truncate(sealer.offset + whole)
        file.flush()
        os.fsync(file.fileno())
    sealer.advance(sealer.size + count)
    opened.last_time_ns = _last_time(layout.log)
    _disown_prunes(layout, opened)
    if opened.checkpoint is None and sealer.size:
        opened.events.append(("audit-adopted", {"records": sealer.size}))


def _refuse_records(layout: Layout, rest: bytes, offset: int, seq: int) -> None:
    """Refuse a log with whole records behind byte `offset`, which does not begin record `seq`: a crash leaves one line
    that is torn, at the end. Raises AuditUnavailable."""
    behind = sum(_is_record(line, seq_of(line)) for line in rest.split(b"\n")[:-1])
    if behind:
        problem = f"byte {offset} does not begin record {seq}, and {behind} whole records follow: no crash leaves that"
        refuse(layout, problem, _CHANGED_HINT)


def _disown_prunes(layout: Layout, opened: Opened) -> None:
    """Void the prune records after the checkpoint: a record is deleted only once a checkpoint covers its prune record.
    Raises AuditUnavailable if records are missing that no valid prune record explains."""
    found = opened.sealer.prunes.items()
    if not found:
        return
    size = 0 if opened.checkpoint is None else opened.checkpoint.size
    ordered = segments(layout)
    first = ordered[0].first if ordered else 0
    if first - 1 > pruned(layout, size):
        seq = found[-1][0]
        refuse(layout, f"records 1 to {first - 1} are gone; record {seq} says so, but no checkpoint covers that record")
    opened.events += [(VOID, {"first": seq, "last": seq}) for seq, _ in found]


def _whole_lines(tail: bytes, seq: int) -> tuple[int, int]:
    """Return how many bytes and lines of `tail` are consecutive records."""
    used = count = 0
    while (end := tail.find(b"\n", used)) >= 0 and _is_record(tail[used:end], seq + count):
        used, count = end + 1, count + 1
    return used, count


def _is_record(line: bytes, seq: int) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    # The scan that seals has the last word: a line that it does not take stopped each start.
    return MerkleTree().scan(line + b"\n", 0, seq, 1)[1] > len(line)


def _set_aside(layout: Layout, rest: bytes, seq: int) -> dict[str, Any]:
    """Store what a crash left before it is cut off. Return the fields of the event."""
    digest = hashlib.sha256(rest).hexdigest()
    make_folder(layout.lost)
    kept = layout.lost / f"{seq:020d}-{digest[:8]}"
    replace(kept, rest)
    return {"result": "ok", "bytes": len(rest), "sha256": digest, "file": f"{layout.lost.name}/{kept.name}"}


def _last_time(path: Path) -> int:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 70_000))
        lines = file.read().splitlines()
    try:
        return int(orjson.loads(lines[-1])["time_ns"]) if lines else 0
    except (ValueError, KeyError, TypeError):
        return 0


def add_key(layout: Layout, key: VerifierKey) -> None:
    """Add a key that signs from now on. Raises OSError."""
    old = layout.keys.read_bytes() if layout.keys.exists() else b""
    replace(layout.keys, old + str(key).encode() + b"\n")
