"""Paths of an audit log's files; docs/AUDIT.md describes each file."""

from __future__ import annotations

import os
from pathlib import Path

from hsmcore.errors import BadArgument

SUFFIX = ".d"


class TreeLayout:
    """Paths of what any log has in its folder: checkpoint, tiles, cosignatures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.tiles = folder / "tile"
        self.cosigned = folder / "cosigned"

    def tile(self, level: int | str, number: int, width: int = 256) -> Path:
        """Return the path of a tile, `tile/<L>/<N>[.p/<W>]` of C2SP tlog-tiles; of the level "entries", of a bundle."""
        groups = [f"{number % 1000:03d}"]
        while number := number // 1000:
            groups.insert(0, f"x{number % 1000:03d}")
        path = self.tiles.joinpath(str(level), *groups)
        return path if width == 256 else path.with_name(path.name + ".p") / str(width)


class Layout(TreeLayout):
    """Paths of one log: `auditLogFile`, which holds the newest records, and the folder `<auditLogFile>.d`."""

    def __init__(self, log: str | os.PathLike[str]) -> None:
        self.log = Path(log)
        super().__init__(self.log.with_name(self.log.name + SUFFIX))
        self.lock = self.folder / "lock"
        self.origin = self.folder / "origin"
        self.keys = self.folder / "keys"
        self.history = self.folder / "checkpoints"
        self.segments = self.folder / "segments"
        self.lost = self.folder / "lost"
        self.shipping = self.folder / "shipping"
        self.spool = self.folder / "spool"
        self.devices = self.folder / "devices"
        self.clock = self.folder / "clock"

    @property
    def default_key(self) -> Path:
        """The signing key's file when the configuration names none. It is outside the folder, because copies of the
        folder are given away."""
        return self.log.with_name(self.log.name + ".key")

    def archived(self, first: int, *, compressed: bool) -> Path:
        """Return the path of a full segment, by the sequence number of its first record."""
        return self.segments / f"{first:020d}.jsonl{'.zst' if compressed else ''}"

    def index(self, first: int) -> Path:
        """Return the path of a segment's index."""
        return self.segments / f"{first:020d}.idx"

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> Layout:
        """Return the log that `path` names: the log file, its folder `<name>.d`, or a folder that holds one log. Raises
        BadArgument if there is none, or more than one."""
        given = Path(path)
        if given.name.endswith(SUFFIX) and (given / "origin").is_file():
            return cls(given.with_name(given.name.removesuffix(SUFFIX)))
        if given.is_dir():
            found = sorted(child for child in given.iterdir() if child.name.endswith(SUFFIX) and child.is_dir())
            if len(found) == 1:
                return cls(given / found[0].name.removesuffix(SUFFIX))
            names = ", ".join(child.name for child in found) or f"no folder whose name ends in {SUFFIX}"
            raise BadArgument(f"{given} does not hold one audit log: {names}", hint="Name the log file itself.")
        layout = cls(given)
        if not layout.folder.is_dir() and not given.exists():
            raise BadArgument(f"there is no audit log at {given}", hint="Name the log file, or the folder it lies in.")
        return layout
