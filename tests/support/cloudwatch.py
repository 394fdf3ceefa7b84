"""A server for PutLogEvents that refuses whatever the limits of the API reference forbid, and fails on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DAY_MS = 24 * 3_600_000


class Logs:
    """What the server knows. `fail`: error codes for the next requests, in order ("hang-up": no answer at all);
    `answer_lost`: so many requests are carried out and then not answered."""

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self.groups: set[str] = set()
        self.fail: list[str] = []
        self.answer_lost = 0
        self.requests: list[str] = []
        self.batches: list[int] = []
        self.violations: list[str] = []
        self.may_create = True
        self.oldest_ms = 14 * DAY_MS

    def handle(self, action: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(action)
        if self.fail:
            return 400, {"__type": self.fail.pop(0)}
        return getattr(self, f"_{action}")(body)

    def _CreateLogGroup(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802
        if not self.may_create:
            return 400, {"__type": "AccessDeniedException"}
        if body["logGroupName"] in self.groups:
            return 400, {"__type": "ResourceAlreadyExistsException"}
        self.groups.add(body["logGroupName"])
        return 200, {}

    def _CreateLogStream(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802
        if not self.may_create:
            return 400, {"__type": "AccessDeniedException"}
        place = body["logGroupName"], body["logStreamName"]
        if place[0] not in self.groups:
            return 400, {"__type": "ResourceNotFoundException"}
        if place in self.streams:
            return 400, {"__type": "ResourceAlreadyExistsException"}
        self.streams[place] = []
        return 200, {}

    def _PutLogEvents(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802
        stream = self.streams.get((body["logGroupName"], body["logStreamName"]))
        if stream is None:
            return 400, {"__type": "ResourceNotFoundException"}
        events = body["logEvents"]
        times = [event["timestamp"] for event in events]
        sizes = [len(event["message"].encode()) for event in events]
        rules = {
            "count": 1 <= len(events) <= 10_000,
            "batch size": sum(sizes) + 26 * len(sizes) <= 1_048_576,
            "event size": all(0 < size <= 256 * 1024 for size in sizes),
            "order": times == sorted(times),
            "span": times[-1] - times[0] < DAY_MS,
        }
        broken = [name for name, kept in rules.items() if not kept]
        if broken:
            self.violations += broken
            return 400, {"__type": "InvalidParameterException"}
        self.batches.append(len(events))
        now = time.time() * 1000
        old = sum(moment < now - self.oldest_ms for moment in times)
        new = next((n for n, moment in enumerate(times) if moment > now + 2 * 3_600_000), len(times))
        stream += [(event["timestamp"], event["message"]) for event in events[old:new]]
        info = {}
        if old:
            info["tooOldLogEventEndIndex"] = old
        if new < len(times):
            info["tooNewLogEventStartIndex"] = new
        return 200, {"rejectedLogEventsInfo": info} if info else {}

    def lines(self, group: str = "hsm", stream: str = "audit") -> list[bytes]:
        """The messages of a stream."""
        return [text.encode() for _, text in self.streams.get((group, stream), [])]


@contextmanager
def logs_server() -> Iterator[tuple[str, Logs]]:
    """The address of a server, and what it knows."""
    logs = Logs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            action = self.headers["X-Amz-Target"].partition(".")[2]
            if logs.fail[:1] == ["hang-up"]:
                logs.fail.pop(0)
                self.close_connection = True
                return
            status, answer = logs.handle(action, body)
            if action == "PutLogEvents" and status == 200 and logs.answer_lost:
                logs.answer_lost -= 1
                self.close_connection = True
                return
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", logs
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
