"""The result of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "changed",
    "removed",
    "inserted",
    "reordered",
    "truncated",
    "unreadable",
    "tile",
    "index",
    "checkpoint",
    "key",
    "rewritten",
    "older",
    "foreign-log",
    "witness",
    "unsealed",
    "pruned",
    "adopted",
]
Status = Literal["ok", "derived", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault in records `first` to `last` (None: no particular record), found in the file `where`. `derived`: `where`
    can be derived again if the records are whole."""

    kind: Kind
    text: str
    first: int | None = None
    last: int | None = None
    where: str | None = None
    derived: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "kind": self.kind,
            "text": self.text,
            "firstSeq": self.first,
            "lastSeq": self.last,
            "where": self.where,
        }


@dataclass
class Report:
    """The result of a verification. A checkpoint covers `records`; `unsealed` came after it and are not protected yet;
    of `pruned` only hashes are kept. `own_keys`: the keys are from the log's folder, so any process that can write the
    folder could have replaced them."""

    origin: str = ""
    records: int = 0
    unsealed: int = 0
    pruned: int = 0
    root: bytes = b""
    checkpoints: int = 0
    keys: list[str] = field(default_factory=list)
    own_keys: bool = True
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def status(self) -> Status:
        """ "derived": the records are whole and sealed, and only files that are derived from them are wrong."""
        if self.ok:
            return "ok"
        return "derived" if all(finding.derived for finding in self.findings) else "failed"

    @property
    def mendable(self) -> bool:
        """Whether files are wrong that can be derived again, and no record is."""
        wrong = [finding for finding in self.findings if finding.kind not in ("pruned", "adopted")]
        return bool(wrong) and all(finding.derived for finding in wrong)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "ok": self.ok,
            "status": self.status,
            "origin": self.origin,
            "records": self.records,
            "unsealed": self.unsealed,
            "pruned": self.pruned,
            "root": self.root.hex(),
            "checkpoints": self.checkpoints,
            "keys": self.keys,
            "keysFromFolder": self.own_keys,
            "seconds": round(self.seconds, 3),
            "findings": [finding.as_dict() for finding in self.findings],
            "notes": self.notes,
        }
