"""Tells the chaos modules of a run what to do, through their control sockets, when it is time."""

from __future__ import annotations

import glob
import heapq
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hsmcore_bench.load.faults import Fault
from hsmcore_bench.load.problems import UsageProblem

_ANSWER_SECONDS: Final = 2.0
_STATS_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1 << 20


def ask(path: str, command: Mapping[str, Any]) -> dict[str, Any] | None:
    """Send one command and return the answer; None if no process serves the socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(_ANSWER_SECONDS)
            peer.connect(path)
            peer.sendall(json.dumps(command).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < _MOST_BYTES:
                chunk = peer.recv(65536)
                if not chunk:
                    return None
                answer += chunk
        found = json.loads(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Injector:
    """A thread that carries out a timeline. Sockets are looked for each time: a process that was killed comes back with
    another one."""

    def __init__(self, faults: Sequence[Fault], patterns: Sequence[str], seconds: float) -> None:
        self._patterns = patterns
        self._due = [
            (moment, number, fault) for number, fault in enumerate(faults) for moment in fault.moments(seconds)
        ]
        heapq.heapify(self._due)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._struck: dict[str, dict[str, int]] = {}
        self.done: list[dict[str, Any]] = []
        """What was told: at, fault, modules that took it, and why not where they did not."""

    def rehearse(self, faults: Sequence[Fault]) -> None:
        """Find out whether the modules understand the faults. Raises UsageProblem with what they say, and when there is
        no module."""
        sockets = self._sockets()
        answers = [(path, ask(path, {"cmd": "stats"})) for path in sockets]
        alive = [path for path, answer in answers if answer is not None]
        if not alive:
            raise UsageProblem("no chaos module answers on its control socket, so no fault can be injected")
        for fault in faults:
            if fault.rehearsal is not None:
                answer = ask(alive[0], fault.rehearsal)
                if answer is not None and not answer.get("ok"):
                    raise UsageProblem(f"fault {fault.text!r}: the chaos module says: {answer.get('error')}")

    def begin(self, at: float) -> None:
        """Start; `at` is the run's time 0 on the monotonic clock."""
        self._thread = threading.Thread(target=self._run, args=(at,), name="hsmcore-load-faults", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def struck(self) -> dict[str, int]:
        """How often each action has struck, in all processes, as far as they lived to say so."""
        total: Counter[str] = Counter()
        for counts in list(self._struck.values()):
            total.update(counts)
        return dict(total)

    def _run(self, at: float) -> None:
        look = 0.0
        while not self._stop.is_set():
            now = time.monotonic() - at
            while self._due and self._due[0][0] <= now:
                self._tell(*heapq.heappop(self._due)[::2])
            if now >= look:
                look = now + _STATS_SECONDS
                self._look()
            due = self._due[0][0] if self._due else look
            self._stop.wait(max(0.0, min(due, look) - (time.monotonic() - at)))
        self._look()

    def _tell(self, moment: float, fault: Fault) -> None:
        answers = [answer for path in self._sockets() if (answer := ask(path, fault.command)) is not None]
        refused = [answer.get("error") for answer in answers if not answer.get("ok")]
        entry: dict[str, Any] = {"at": moment, "fault": fault.text, "modules": len(answers) - len(refused)}
        self.done.append({**entry, "refused": refused[0]} if refused else entry)

    def _look(self) -> None:
        for path in self._sockets():
            answer = ask(path, {"cmd": "stats"})
            if answer is not None and isinstance(answer.get("faults"), dict):
                self._struck[path] = answer["faults"]

    def _sockets(self) -> list[str]:
        return sorted({path for pattern in self._patterns for path in glob.glob(pattern)})  # noqa: PTH207 - a whole path is the pattern
