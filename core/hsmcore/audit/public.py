"""The files of a public log of positions: C2SP tlog-tiles with bundles of entries, and proofs from them.

A leaf is what its position is bound to. Whoever has them may hand the files out: a folder of a web server is enough.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final, Self

from hsmcore.audit.cosigned import newest
from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.tiles import WIDTH, TileError, Tiles, TileWriter
from hsmcore.base.files import replace
from hsmcore.base.ownership import make_folder
from hsmcore.errors import HsmError
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.consistency import inclusion
from hsmcore.tlog.note import NoteError, VerifierKey
from hsmcore.tlog.proof import ProofError, root_of_inclusion

GAP: Final = b"\0"
"""The entry of a position that is bound to nothing: no payload has it."""
PAYLOAD: Final = b"\1"
"""An entry begins with it, and goes on with the SHA-256 of the payload."""
LOST: Final = b"\2"
"""The entry of a position that was given up before it was published: what was bound there, if anything, is unknown."""
ENTRIES: Final = "entries"


class PublicTree:
    """The tree of a log, which grows. One thread at a time; blocks on the disk. Of no use after an error."""

    def __init__(self, layout: TreeLayout, size: int) -> None:
        """Go on with a tree whose tiles are there. Raises TileError, OSError."""
        tiles = Tiles(layout, size)
        self._layout, self._tree = layout, tiles.tree()
        self.size = size
        """Leaves in the tree that are on the disk, with their tiles."""
        self._writer = TileWriter(layout, tiles)
        self._ahead: Checkpoint | None = None

    @classmethod
    def found(cls, layout: TreeLayout, known: Collection[bytes]) -> Self:
        """Return the largest tree that the folder has of the notes that are `known`. If it has published more, as
        beside a store that was restored, `append` takes the same leaves alone. Raises OSError."""
        make_folder(layout.folder, parents=True)
        checkpoints, own = [Checkpoint.parse(note) for note in known if note], None
        with suppress(FileNotFoundError, NoteError):
            own = Checkpoint.parse(layout.checkpoint.read_bytes())
        if own is not None and not _has(layout, own):
            own = None
        newest = max((one.size for one in checkpoints), default=0)
        usable = [one.size for one in checkpoints if _has(layout, one)]
        usable += [own.size] if own is not None and own.size <= newest else []
        if not usable and own is None and layout.tiles.exists():  # no checkpoint is of it: it is written again
            aside = layout.folder / "tile.aside"
            shutil.rmtree(aside, ignore_errors=True)
            layout.tiles.rename(aside)
        made = cls(layout, max(usable, default=0))
        made._ahead = own if own is not None and own.size > made.size else None
        return made

    @property
    def must_have(self) -> int:
        """How many leaves the folder has published."""
        return 0 if self._ahead is None else self._ahead.size

    @property
    def root(self) -> bytes:
        """The hash of the whole tree."""
        return self._tree.root()

    def append(self, entries: Sequence[bytes]) -> None:
        """Add entries; they and their tiles are on the disk when this returns. Raises OSError, TileError; HsmError if
        another one was published in the place of one."""
        leaves = [self._tree.leaf(entry) for entry in entries]
        self._require_published(leaves)
        self._store(self.size, entries)
        for leaf in leaves:
            self._tree.append(leaf)
        self._writer.append(b"".join(leaves))
        self._writer.finish()
        self.size = self._tree.size

    def _require_published(self, leaves: Sequence[bytes]) -> None:
        if self._ahead is None:
            return
        tiles = Tiles(self._layout, self._ahead.size)
        for index, leaf in enumerate(leaves[: max(self._ahead.size - self.size, 0)], self.size):
            if tiles.leaf(index) != leaf:
                raise HsmError(
                    f"leaf {index} of the public log {self._layout.folder} is another one than was published: the state"
                    " store went back",
                    hint="Stop signing; reconcile the state store (`hsmcore state reconcile --help`).",
                )

    def _store(self, size: int, entries: Sequence[bytes]) -> None:
        """Write bundles: each entry behind its length in two bytes."""
        number, width = divmod(size, WIDTH)
        data, at = self._begun(number, width), 0
        while at < len(entries):
            taken = entries[at : at + WIDTH - width]
            data += b"".join(len(entry).to_bytes(2, "big") + entry for entry in taken)
            at, width = at + len(taken), width + len(taken)
            path = self._layout.tile(ENTRIES, number, width)
            make_folder(path.parent, parents=True)
            replace(path, data)
            if width == WIDTH:
                shutil.rmtree(path.with_name(path.name + ".p"), ignore_errors=True)
                number, width, data = number + 1, 0, b""

    def _begun(self, number: int, width: int) -> bytes:
        """Return the first entries of a bundle. A crash may have left a full one that is longer than the tree."""
        path = self._layout.tile(ENTRIES, number, width)
        data, at = (path if path.exists() else self._layout.tile(ENTRIES, number)).read_bytes() if width else b"", 0
        for _ in range(width):
            at += 2 + int.from_bytes(data[at : at + 2], "big")
        return data[:at]


def _has(layout: TreeLayout, checkpoint: Checkpoint) -> bool:
    """Return whether the folder has the tree of a checkpoint. Raises OSError."""
    with suppress(TileError):
        return Tiles(layout, checkpoint.size).root() == checkpoint.root
    return False


def proof_of(layout: TreeLayout, checkpoint: Checkpoint, index: int) -> bytes:
    """Return the C2SP tlog-proof that a leaf is in the tree of a checkpoint. Raises TileError, OSError; ProofError if
    the files contradict the checkpoint."""
    tiles = Tiles(layout, checkpoint.size)
    path = tiles.inclusion(index)
    if root_of_inclusion(tiles.leaf(index), index, checkpoint.size, path) != checkpoint.root:
        raise ProofError(f"the files in {layout.folder} do not belong to the checkpoint")
    return inclusion(index, path, checkpoint.note)


def published(layout: TreeLayout, witnesses: Sequence[VerifierKey], quorum: int) -> Checkpoint | None:
    """Return the folder's checkpoint if a quorum has cosigned it. Raises NoteError, OSError."""
    with suppress(FileNotFoundError):
        note = layout.checkpoint.read_bytes()
        if len(newest([note], witnesses)) >= quorum:
            return Checkpoint.parse(note)
    return None
