"""Has the newest checkpoint of an open log cosigned by witnesses (C2SP tlog-witness), again and again.

A witness that hangs, lies or is away costs no record and no signature: each has a thread of its own, which reads the
log's files and nothing else. What it answers is hostile until its signature is verified.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from hsmcore.audit import cosigned
from hsmcore.audit.cosigned import Cosigned
from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.tiles import TileError, Tiles
from hsmcore.base.log import get_logger
from hsmcore.base.version import __version__
from hsmcore.config.audit import AuditWitness, Witnessed
from hsmcore.errors import ConfigFault, ConfigurationError
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.consistency import growth
from hsmcore.tlog.note import NoteError, VerifierKey, signature_of

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

ANSWER_BYTES: Final = 1 << 14
"""Longest answer that is read."""
_SECONDS: Final = 5.0
"""Longest wait for a connection, and for each part of an answer."""
_IDLE: Final = 4.0
"""Seconds for which an idle connection is kept: a firewall between may forget a longer one, and say nothing."""
_AGAIN: Final = 1.0
"""Seconds until a witness that gave nothing is asked again; they double with each further time."""
_PATIENCE: Final = 1.0
"""Seconds that closing waits for a request that is under way."""


class WitnessError(Exception):
    """A witness gave no cosignature. The text is for an operator."""


class WitnessConnection:
    """Asks one witness, and keeps the connection for a while: a round trip, or three with TLS, are spared. One thread
    at a time; `interrupt` from any."""

    def __init__(self, url: str, ca_file: str | None = None) -> None:
        """As AuditWitness."""
        self._ca_file = ca_file
        place = urlsplit(url)
        self._path = f"{place.path.rstrip('/')}/add-checkpoint"
        self._host, self._port, self._plain = place.hostname or "", place.port, place.scheme == "http"
        self._open: HTTPConnection | None = None
        self._used = 0.0

    def ask(self, body: bytes) -> tuple[int, bytes]:
        """Return status and content of the answer. Raises WitnessError."""
        from http.client import HTTPException  # most logs have no witness

        if time.monotonic() - self._used > _IDLE:
            self.close()
        made = self._open = self._open or self._connection()
        try:
            answer = self._asked(made, body)
            content = answer.read(ANSWER_BYTES + 1)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise WitnessError(f"no answer ({type(error).__name__})") from None
        self._used = time.monotonic()
        if len(content) > ANSWER_BYTES:
            self.close()
            raise WitnessError(f"an answer of more than {ANSWER_BYTES} bytes")
        return answer.status, content

    def _asked(self, made: HTTPConnection, body: bytes) -> HTTPResponse:
        for kept in (made.sock is not None, False):
            try:
                made.request("POST", self._path, body, {"User-Agent": f"hsmcore/{__version__}"})
                return made.getresponse()
            except ConnectionError:
                if not kept:
                    raise
                made.close()  # the witness has closed it meanwhile; the next request opens another one
        raise AssertionError

    def close(self) -> None:
        """Close the connection. Idempotent."""
        made, self._open = self._open, None
        if made is not None:
            made.close()

    def _connection(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        if self._plain:
            return HTTPConnection(self._host, self._port, timeout=_SECONDS)
        return HTTPSConnection(
            self._host, self._port, timeout=_SECONDS, context=ssl.create_default_context(cafile=self._ca_file)
        )

    def interrupt(self) -> None:
        """End a request that waits for its answer."""
        made = self._open
        with suppress(OSError, AttributeError):
            made.sock.shutdown(2)  # type: ignore[union-attr]  # there may be none, or none any more


_REFUSALS: Final = {
    403: "it does not trust the log's key, or refuses its signature: give it the verifier key (`hsmcore audit show`)",
    404: "it does not know the log: give it the origin and the verifier key (`hsmcore audit show`)",
    422: "it has another history of this log: it was rewritten, or a second one signs in its name",
}


def cosign(
    layout: TreeLayout, checkpoint: Checkpoint, witness: VerifierKey, old: int, connection: WitnessConnection
) -> bytes:
    """Have a stored checkpoint cosigned. `old`: the size that the witness has seen last, as far as is known; it says so
    if it has seen another one. Returns the verified cosignature. Raises WitnessError; TileError, OSError."""
    notes, told = _notes(checkpoint), False
    while True:
        path = Tiles(layout, checkpoint.size).consistency(old) if old else []
        status, content = connection.ask(growth(old, path, notes[0]))
        if status == 200:
            return _verified(checkpoint, witness, content)
        if status in (400, 403) and notes[1:]:
            del notes[0]
            continue
        if status != 409 or told:
            raise WitnessError(_REFUSALS.get(status, f"refused ({status})"))
        old, told = _size(content), True
        if old > checkpoint.size:
            raise WitnessError(
                f"it has seen {old} records of this log, which has {checkpoint.size}: this is an older copy"
            )


def _notes(checkpoint: Checkpoint) -> list[bytes]:
    """Return a checkpoint as it is, and with each one of its signatures if it has several, as after a rotation: some
    witnesses, such as sigsum's, refuse a note with two of one name."""
    head = checkpoint.text + b"\n"
    lines = checkpoint.note.removeprefix(head).splitlines(keepends=True)
    return [checkpoint.note, *(head + line for line in lines if len(lines) > 1)]


def _size(content: bytes) -> int:
    text = content.removesuffix(b"\n")
    if not text.isdigit() or len(text) > 19:
        raise WitnessError("it does not say what it has seen")
    return int(text)


def _verified(checkpoint: Checkpoint, witness: VerifierKey, content: bytes) -> bytes:
    for line in content.removesuffix(b"\n").split(b"\n"):
        with suppress(NoteError, UnicodeDecodeError):  # signatures of other kinds may stand beside it
            name, value = signature_of(line)
            if (name, value[:4]) == (witness.name, witness.id):
                if witness.accepts(checkpoint.text, value[4:]):
                    return value[4:]
                raise WitnessError("its cosignature is wrong")
    raise WitnessError("its answer has no cosignature by its key")


@dataclass(frozen=True, slots=True)
class WitnessStatus:
    """Progress of one witness. `at`: when it has cosigned last, as Unix time; 0: never."""

    size: int
    at: int
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {"size": self.size, "at": self.at, "error": self.error}


def key_of(witness: AuditWitness) -> VerifierKey:
    """Return the key of a configuration's witness. Raises ConfigurationError."""
    try:
        return VerifierKey.parse(witness.key)
    except NoteError as error:
        raise ConfigurationError.of([ConfigFault(f"{witness.where}.key", str(error))]) from None


class WitnessAsker:
    """Asks one witness, in a thread. `newest` returns the stored checkpoint that it is asked about; `keeping` is held
    while a cosignature is stored; `answered` is called after each request, in the thread."""

    def __init__(
        self,
        layout: TreeLayout,
        witness: AuditWitness,
        newest: Callable[[], Checkpoint | None],
        every: float,
        keeping: threading.Lock,
        answered: Callable[[], None],
    ) -> None:
        """Raises ConfigurationError."""
        self.key = key_of(witness)
        self._layout, self._newest, self._every, self._keeping = layout, newest, every, keeping
        self._answered = answered
        self._connection = WitnessConnection(witness.url, witness.ca_file)
        self._last = Cosigned(0, 0)
        self._error: str | None = None
        self._stop = self._asks = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> WitnessStatus:
        """From any thread."""
        return WitnessStatus(*self._last, self._error)

    def start(self, last: Cosigned) -> None:
        """Ask from now on. `last`: its newest cosignature that is kept."""
        self._last = last
        self._thread = threading.Thread(target=self._run, name=f"hsmcore-witness-{self.key.name}", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether it has been woken, or asks. From any thread."""
        return self._asks or self._wake.is_set()

    def wake(self) -> None:
        """Ask soon: there is a new checkpoint. From any thread."""
        self._wake.set()

    def end(self) -> None:
        """Ask no more. Does not wait."""
        self._stop = True
        self._wake.set()
        self._connection.interrupt()

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def once(self, last: Cosigned) -> bool:
        """Ask now. Returns whether it has cosigned."""
        self._last = last
        self._ask()
        self._connection.close()
        return self._error is None and self._last.at > 0

    def _ask(self) -> None:
        checkpoint = self._newest()
        if checkpoint is not None and checkpoint.size:
            self._note(self._asked(checkpoint))

    def _run(self) -> None:
        failures = 0
        while not self._stop:
            self._asks = True  # before it is not woken any more: it is busy all the while
            self._wake.clear()
            self._ask()
            self._asks = False
            self._answered()
            failures = failures + 1 if self._error else 0
            pause = min(_AGAIN * 2 ** min(failures - 1, 30), self._every) if failures else self._every
            self._wake.wait(pause * random.uniform(0.9, 1.1))  # noqa: S311  # spreads load
        self._connection.close()

    def _asked(self, checkpoint: Checkpoint) -> str | None:
        try:
            signature = cosign(self._layout, checkpoint, self.key, self._last.size, self._connection)
            with self._keeping:
                cosigned.keep(self._layout, checkpoint, self.key, signature)
        except (WitnessError, TileError, OSError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # a thread that ended would say nothing
            return type(error).__name__
        self._last = Cosigned(checkpoint.size, int.from_bytes(signature[:8], "big"))
        return None

    def _note(self, error: str | None) -> None:
        if self._stop:
            return
        before, self._error = self._error, error
        if error is not None and error != before:
            get_logger().warning(
                "a witness does not cosign a log", log=str(self._layout.folder), witness=self.key.name, error=error
            )
        elif error is None and before is not None:
            get_logger().info("the witness cosigns the log again", log=str(self._layout.folder), witness=self.key.name)


class Witnesses:
    """Those of a log; there may be none. One thread at a time, unless it says otherwise."""

    def __init__(
        self,
        layout: TreeLayout,
        settings: Witnessed,
        newest: Callable[[], Checkpoint | None],
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """As WitnessAsker. Raises ConfigurationError."""
        keeping = threading.Lock()
        every = float(settings.cosign_every_seconds)
        self._layout, self.quorum = layout, settings.needed
        self._askers = [WitnessAsker(layout, one, newest, every, keeping, answered) for one in settings.witnesses]

    @property
    def status(self) -> dict[str, WitnessStatus]:
        """Progress of each, by name. From any thread."""
        return {asker.key.name: asker.status for asker in self._askers}

    @property
    def keys(self) -> list[VerifierKey]:
        """Their keys."""
        return [asker.key for asker in self._askers]

    @property
    def busy(self) -> bool:
        """Whether one of them is asked, or will be soon. From any thread."""
        return any(asker.busy for asker in self._askers)

    def wake(self) -> None:
        """Have each one asked soon: there is a new checkpoint. From any thread."""
        for asker in self._askers:
            asker.wake()

    @property
    def quorum_at(self) -> int:
        """Unix time since which `quorum` of them have cosigned the log; 0: so many never have. From any thread."""
        return quorum_at([asker.status.at for asker in self._askers], self.quorum)

    def start(self) -> None:
        """Ask from now on. Reads the disk. Raises OSError."""
        for asker, last in self._kept():
            asker.start(last)

    def once(self) -> int:
        """Ask each one now, one after the other. Returns how many have cosigned. Reads the disk. Raises OSError."""
        return sum([asker.once(last) for asker, last in self._kept()])

    def _kept(self) -> list[tuple[WitnessAsker, Cosigned]]:
        kept = cosigned.newest(cosigned.notes(self._layout), [asker.key for asker in self._askers])
        return [(asker, kept.get(asker.key, Cosigned(0, 0))) for asker in self._askers]

    def close(self) -> None:
        """End all. Blocks for _PATIENCE seconds at most if one hangs."""
        for asker in self._askers:
            asker.end()
        for asker in self._askers:
            asker.join(_PATIENCE)


def quorum_at(times: Sequence[int], quorum: int) -> int:
    """Return the time from which on so many have cosigned, by their newest times (0: never); 0: so many have not."""
    return sorted(times, reverse=True)[quorum - 1] if quorum <= len(times) else 0
