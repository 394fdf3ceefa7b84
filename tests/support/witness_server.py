"""A witness of its own, written from C2SP's tlog-witness and RFC 9162: it cosigns what has grown, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

Answer = tuple[int, str, bytes]
DASH = "\u2014 ".encode()


def line_of(name: str, kind: int, public_key: bytes, signature: bytes) -> bytes:
    """A signature line of C2SP signed-note."""
    key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]
    return DASH + name.encode() + b" " + base64.b64encode(key_id + signature) + b"\n"


def vkey(name: str, kind: int, public_key: bytes) -> str:
    """A verifier key of C2SP signed-note."""
    key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(bytes([kind]) + public_key).decode()}"


def grows(old: int, old_root: bytes, new: int, new_root: bytes, path: list[bytes]) -> bool:
    """RFC 9162, 2.1.4.2."""
    if old in (0, new):
        return not path and (old == 0 or old_root == new_root)
    nodes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not nodes:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    left = right = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            left = hashlib.sha256(b"\1" + node + left).digest()
            right = hashlib.sha256(b"\1" + node + right).digest()
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            right = hashlib.sha256(b"\1" + right + node).digest()
        first, last = first >> 1, last >> 1
    return last == 0 and (left, right) == (old_root, new_root)


class WitnessServer:
    """Listens on loopback while the block runs. `logs`: the public key of each log that it knows, by origin."""

    def __init__(self, logs: dict[str, bytes] | None = None, name: str = "witness.example/w1") -> None:
        self.logs, self.name = logs or {}, name
        self._secret = SigningKey.generate()
        self.public_key = bytes(self._secret.verify_key)
        self.key = vkey(name, 4, self.public_key)
        self.seen: dict[str, tuple[int, bytes]] = {}
        self.asked = self.connections = 0
        self.closes = False
        """Whether it closes a connection after an answer, and does not say so."""
        self.wrong: Callable[[Answer], Answer | None] = lambda answer: answer
        """What becomes of each answer; None: there is none as long as the server runs."""
        self._end = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/w"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                owner.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.asked += 1
                good = self.path == "/w/add-checkpoint"
                answer = owner.wrong(owner.answer(body) if good else (404, "text/plain", b""))
                if answer is None:
                    owner._end.wait()
                    return
                self.send_response(answer[0])
                self.send_header("Content-Type", answer[1])
                self.send_header("Content-Length", str(len(answer[2])))
                self.end_headers()
                self.wfile.write(answer[2])
                self.close_connection = self.close_connection or owner.closes

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, body: bytes) -> Answer:
        """What the specification says."""
        head, _, note = body.partition(b"\n\n")
        first, *proof = head.split(b"\n")
        old, path = int(first.removeprefix(b"old ")), [base64.b64decode(line) for line in proof]
        text, _, signatures = note.rpartition(b"\n\n")
        text += b"\n"
        origin, size, root = text.split(b"\n")[:3]
        public_key = self.logs.get(origin.decode())
        if public_key is None:
            return 404, "text/plain", b""
        begin = DASH + origin + b" "
        lines = [line.removeprefix(begin) for line in signatures.split(b"\n") if line.startswith(begin)]
        key_id = hashlib.sha256(origin + b"\n\1" + public_key).digest()[:4]
        own = [data[4:] for data in map(base64.b64decode, lines) if data[:4] == key_id]
        try:
            VerifyKey(public_key).verify(text, own[0])
        except (BadSignatureError, IndexError):
            return 403, "text/plain", b""
        seen = self.seen.get(origin.decode(), (0, b""))
        if old != seen[0]:
            return 409, "text/x.tlog.size", b"%d\n" % seen[0]
        if not grows(old, seen[1], int(size), base64.b64decode(root), path):
            return 422, "text/plain", b""
        self.seen[origin.decode()] = int(size), base64.b64decode(root)
        return 200, "text/plain", self.cosigned(text)

    def cosigned(self, text: bytes) -> bytes:
        """Its signature line of a text."""
        now = int(time.time())
        signature = self._secret.sign(b"cosignature/v1\ntime %d\n" % now + text).signature
        return line_of(self.name, 4, self.public_key, now.to_bytes(8, "big") + signature)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
