"""Decides which checkpoints of a log are trusted, by signatures and by what the verifier supplies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time

from hsmcore.audit import cosigned
from hsmcore.audit.check.findings import Finding, Kind, Report
from hsmcore.audit.layout import Layout
from hsmcore.audit.retention import DAY_NS
from hsmcore.tlog.checkpoint import Checkpoint, history
from hsmcore.tlog.note import COSIGNATURE, Note, NoteError, VerifierKey

_READS = 10
"""Most readings of the checkpoints until the newest one stays the same."""
_YEAR_9999 = 253_402_300_799
"""Python's clock goes no further; a witness may say anything."""
_MOST = 100
"""Findings after which older checkpoints are not examined."""


@dataclass(frozen=True)
class Trust:
    """The verifier's input: keys, witnesses' keys, older checkpoints, and what may be missing or unproven. Without
    `keys` the folder's keys are used."""

    keys: Sequence[VerifierKey] = ()
    witnesses: Sequence[VerifierKey] = ()
    against: Sequence[bytes] = ()
    retain_days: int | None = None
    """Retention may have deleted records that were older than so many days; None: it is not expected to delete any."""
    pruned: int = 0
    """Retention is expected to have deleted records up to this one, whatever their age."""
    adopted: int = 0
    """So many records are expected to have been in the log before its first checkpoint."""
    within: float | None = None
    """Each witness has to have cosigned in the last so many seconds; None: at any time."""

    def expects_prune(self, last: int, pruned_ns: int, following_ns: int) -> bool:
        """Return whether retention may have deleted the records up to `last`. `pruned_ns`: the time of the prune
        record; `following_ns`: that of the oldest record that is left, which no deleted record was younger than."""
        if last <= self.pruned:
            return True
        return self.retain_days is not None and following_ns < pruned_ns - self.retain_days * DAY_NS


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


class Trusted:
    """The trusted checkpoints of a log; the report gets the findings about the others."""

    def __init__(self, layout: Layout, trust: Trust, report: Report) -> None:
        self.layout, self.trust, self.report = layout, trust, report
        self.past: list[Checkpoint] = []
        self.sound: list[Checkpoint] = []  # with a valid signature
        self.known: list[Checkpoint] = []
        self.latest: Checkpoint | None = None
        self._checkpoints(self._keys())
        if self.latest is None:
            self.find("checkpoint", "there is no checkpoint that can be trusted", where=layout.checkpoint)

    def find(
        self,
        kind: Kind,
        text: str,
        first: int | None = None,
        last: int | None = None,
        where: object = None,
        *,
        derived: bool = False,
    ) -> None:
        place = None if where is None else str(where)
        self.report.findings.append(Finding(kind, text, first, last, place, derived))

    def _keys(self) -> list[VerifierKey]:
        own = []
        try:
            own = [VerifierKey.parse(line) for line in self.layout.keys.read_text().splitlines()]
        except FileNotFoundError:
            self.find("key", "the file of keys is missing", where=self.layout.keys)
        except (NoteError, UnicodeDecodeError) as error:
            self.find("key", str(error), where=self.layout.keys)
        self.report.own_keys = not self.trust.keys
        if not self.trust.keys:
            self.report.notes.append(
                "the keys were taken from the log's own folder: compare them with what you know, or give --key"
            )
        return own

    def _checkpoints(self, own: list[VerifierKey]) -> None:
        layout, trusted = self.layout, list(self.trust.keys) or own
        self.report.keys = [str(key) for key in trusted]
        try:
            origin = layout.origin.read_text().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            origin = ""
            self.find("foreign-log", "the file with the log's name is missing or damaged", where=layout.origin)
        self.report.origin = origin
        kept = cosigned.notes(
            layout
        )  # first, or a running key manager's may be newer than its checkpoint that was read
        stored = self._stored()
        for one in self.past:
            if self._signed(one, [*own, *trusted], f"{layout.history}, at {one.size} records"):
                self.sound.append(one)
        for one, following in zip(self.past, self.past[1:], strict=False):
            if following.size <= one.size:
                self.find("checkpoint", f"size {following.size} follows {one.size}", where=layout.history)
        self.latest = self._newest(stored, own, trusted)
        for data in (*self.trust.against, *kept):
            self._add_known(data, [*own, *trusted])
        if self.latest is not None:
            self._witnessed(self.latest)

    def _stored(self) -> bytes | None:
        """Read the file of all checkpoints, and return the newest one; None if there is no file. A running key manager
        writes both: the newest one is the same before and after."""
        layout = self.layout
        newest = _content(layout.checkpoint)
        try:
            for _ in range(_READS):
                size = layout.history.stat().st_size if layout.history.exists() else 0
                self.past, whole = history(layout.history)
                before, newest = newest, _content(layout.checkpoint)
                if before == newest:
                    if size > whole:
                        self.report.notes.append(f"{layout.history} ends in the middle of a checkpoint")
                    break
        except (NoteError, UnicodeDecodeError) as error:
            self.find("checkpoint", str(error), where=layout.history)
        return newest

    def _newest(self, stored: bytes | None, own: list[VerifierKey], trusted: list[VerifierKey]) -> Checkpoint | None:
        path = self.layout.checkpoint
        newest: Checkpoint | None = None
        try:
            if stored is not None:
                newest = Checkpoint.parse(stored)
            elif len(self.past) > 1:
                self.find("checkpoint", "the newest checkpoint is missing", where=path)
        except (NoteError, UnicodeDecodeError) as error:
            self.find("checkpoint", str(error), where=path)
        # `checkpoints` is written before `checkpoint`, so a crash may leave it one ahead. Texts are compared: a witness
        # adds its signature line to either file.
        whole = newest is not None and newest.text in [one.text for one in self.past[-2:]]
        if newest is not None and not whole:
            self.find("checkpoint", "it is not the last in the file of all checkpoints", where=path)
        elif newest is not None and not self._signed(newest, [*own, *trusted], str(path)):
            newest = None
        for one in [*reversed(self.past), newest]:
            if one is not None and self._signed(one, trusted, str(path)):
                return newest if newest is not None and newest.text == one.text else one
            if len(self.report.findings) > _MOST:
                break
        return None

    def _signed(self, checkpoint: Checkpoint, keys: list[VerifierKey], where: str) -> bool:
        if self.report.origin and checkpoint.origin != self.report.origin:
            self.find("foreign-log", f"the checkpoint is of another log, {checkpoint.origin}", where=where)
            return False
        try:
            if Note.parse(checkpoint.note).signers(keys):
                return True
            self.find("key", "the checkpoint is not signed by a key that is trusted", where=where)
        except NoteError as error:
            self.find("checkpoint", str(error), where=where)
        return False

    def _witnessed(self, latest: Checkpoint) -> None:
        """Require a checkpoint with each witness's cosignature: the newest one, or an earlier one. The records are
        compared with the root of each."""
        for witness in self.trust.witnesses:
            if witness.kind != COSIGNATURE:
                self.find("witness", f"{witness.name} is the key of a log: a witness's has another type")
                continue
            problem = f"no checkpoint has a cosignature of {witness.name}"
            given: list[cosigned.Cosigned] = []
            for one in (*self.sound, latest, *self.known):
                try:
                    if (at := Note.parse(one.note).cosigned_at(witness)) is not None:
                        given.append(cosigned.Cosigned(one.size, at))
                except NoteError as error:
                    problem = str(error)
            if not given:
                self.find("witness", problem)
                continue
            size, at = max(given)
            said = datetime.fromtimestamp(min(at, _YEAR_9999), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            self.report.notes.append(f"{witness.name} has cosigned the first {size} records, {said}")
            if self.trust.within is not None and time() - at > self.trust.within:
                text = f"{witness.name} has cosigned last at {said}, more than {self.trust.within:g} s ago"
                self.find("witness", text)

    def _add_known(self, data: bytes, keys: list[VerifierKey]) -> None:
        """Add a checkpoint that the verifier kept."""
        try:
            known = Checkpoint.parse(data)
        except (NoteError, UnicodeDecodeError) as error:
            self.find("checkpoint", f"the checkpoint to compare with: {error}")
            return
        if self._signed(known, keys, "the checkpoint to compare with"):
            self.known.append(known)
