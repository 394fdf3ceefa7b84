"""The routes, and the rules that hold for all of them: headers, hosts, tokens, sizes."""

from __future__ import annotations

import asyncio
import mimetypes
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hsmcore.base.listening.http import MAX_HEAD_BYTES
from hsmcore.base.listening.rates import has_turn
from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument
from hsmcore.serve import trail
from hsmcore.serve.access import Access, Role, Verdict
from hsmcore.serve.checks import ready
from hsmcore.serve.feed import Full, message
from hsmcore.serve.monitor import Monitor
from hsmcore.serve.refusals import Refusals
from hsmcore.serve.source import Unanswered
from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.key_set import after, serial_of

MAX_BODY_BYTES: Final = 4096
MAX_QUERY_BYTES: Final = 1024
"""To read 16 KiB of them takes 8 ms, in which no other thread has the interpreter."""
SEND_SECONDS: Final = 30.0
"""Seconds after which a watcher that reads nothing is disconnected."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_PAGE: Final = "index.html"
_STATUS: Final = {"missing": 401, "wrong": 401, "forbidden": 403, "limited": 429}
_SAID: Final = {
    "missing": "a token is needed: Authorization: Bearer …",
    "wrong": "this token is not known",
    "forbidden": "this token may look, but not act",
    "limited": "too many wrong tokens came from this address: wait a second",
}


class _Number(IntegerConvertor):
    """Starlette's own takes any count of digits, which int() does not: no path of this kind is longer."""

    regex = "[0-9]{1,18}"


_PUBLIC_FILE: Final = re.compile(
    r"[a-z-]{1,32}/(checkpoint|tile/([0-7]|entries)/(x[0-9]{3}/){0,6}[0-9]{3}(\.p/[1-9][0-9]{0,2})?)", re.ASCII
)
register_url_convertor("number", _Number())


class Console:
    """The handlers. For the server's event loop."""

    def __init__(
        self,
        monitor: Monitor,
        access: Access,
        hosts: frozenset[str] | None,
        witness: LogWitness | None = None,
        public: str | None = None,
    ) -> None:
        """`hosts`: names in the Host header; None: any. `public`: the folder of the public logs."""
        self._witness, self._public = witness, public
        self._monitor, self._access, self._hosts = monitor, access, hosts
        self._questions = monitor.questions
        self._refusals = Refusals(self._questions)
        self._disk = asyncio.Semaphore(2)
        self._static = _static_files()

    def app(self) -> ASGIApp:
        """Return the whole application."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/healthz", self.healthz, methods=get),
            Route("/readyz", self.readyz, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/keys", self.key_set, methods=get),
            Route("/api/state", self.state, methods=get),
            Route("/api/session", self.session, methods=get),
            Route("/api/events", Stream(self), methods=get),
            Route("/api/audit", self.records, methods=get),
            Route("/api/audit/consistency", self.consistency, methods=get),
            Route("/api/audit/{seq:number}", self.record, methods=get),
            Route("/api/audit/{seq:number}/proof", self.proof, methods=get),
            Route("/api/actions/{name}", self.action, methods=post),
            *(Route(path, self.page, methods=get) for path in self._static),
        ]
        if self._witness is not None:
            routes += [
                Route("/witness", self.witness_key, methods=get),
                Route("/add-checkpoint", self.add_checkpoint, methods=post),
            ]
        if self._public is not None:
            routes.append(Route("/log/{path:path}", self.public_file, methods=get))
        routed = Starlette(routes=routes, exception_handlers={HTTPException: _plain_error})
        return _Guarded(routed, self._hosts, self._access)

    def verdict(self, request: Request, wanted: Role) -> Verdict:
        """Decide whether a request may view or act."""
        return self._access.judge(request.headers.get("authorization"), wanted, _peer(request))

    async def refusal(self, request: Request, wanted: Role, verdict: Verdict) -> Response:
        """Answer a refused request, and record the refusal."""
        problem = verdict.problem
        if problem in ("wrong", "forbidden", "limited") or wanted == "operator":
            await self._note_refusal(request, verdict)
        status = _STATUS[problem]
        headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}.get(status, {})
        return _json({"error": problem, "message": _SAID[problem]}, status, headers)

    async def _note_refusal(self, request: Request, verdict: Verdict) -> None:
        await self._refusals.note(_peer(request), verdict.problem, _path(request))

    async def _may_look(self, request: Request) -> Response | None:
        verdict = self.verdict(request, "viewer")
        return None if not verdict.problem else await self.refusal(request, "viewer", verdict)

    async def healthz(self, _request: Request) -> Response:
        """Liveness: whether the process is worth keeping."""
        alive = await self._monitor.alive()
        return _json({"status": "alive" if alive else "stalled"}, 200 if alive else 503)

    async def readyz(self, request: Request) -> Response:
        """Readiness: whether the key manager can sign. Names and details of the checks are for viewers."""
        await self._monitor.fresh()
        found = self._monitor.checks()
        exclude = frozenset(request.query_params.getlist("exclude"))
        good = ready(found, exclude)
        body: dict[str, Any] = {"status": "ready" if good else "not ready"}
        verdict = self.verdict(request, "viewer")
        if verdict.problem in ("wrong", "limited"):
            await self._note_refusal(request, verdict)
        elif not verdict.problem:
            body["checks"] = [check.to_json() for check in found if check.name not in exclude]
        return _json(body, 200 if good else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the text for Prometheus."""
        if (refused := await self._may_look(request)) is not None:
            return refused
        try:
            text, kind = await self._questions.learn("metrics", request.headers.get("accept", "")[:200])
        except Unanswered as error:
            return _json({"error": "no answer", "message": str(error)}, 503)
        if not text:
            said = "metrics are counted in the process that signs: attach hsmcore.serve there"
            return _json({"error": "no metrics", "message": said}, 404)
        return Response(text, media_type=None, headers={"content-type": kind})

    async def key_set(self, request: Request) -> Response:
        """Return the signed set of the keys, for anybody: it vouches for itself. `since`: all after a serial."""
        try:
            since = serial_of(request.query_params.get("since") or None)
        except BadArgument as error:
            return _json({"error": "bad request", "message": str(error)}, 400)
        try:
            newest, every = await self._questions.learn("keys")
        except Unanswered as error:
            return _json({"error": "no answer", "message": str(error)}, 503)
        if not newest:
            return _json({"error": "no set", "message": "there is no signed set of keys here"}, 404)
        if since is not None:
            newest = after(every, since)
        return Response(newest, media_type="text/plain; charset=utf-8")

    async def state(self, request: Request) -> Response:
        """Return the whole state."""
        if (refused := await self._may_look(request)) is not None:
            return refused
        await self._monitor.fresh()
        return _json(self._monitor.state())

    async def session(self, request: Request) -> Response:
        """Return the role of the token that was sent: for the page, before it asks for one."""
        verdict = self.verdict(request, "viewer")
        if verdict.problem in ("wrong", "limited"):
            return await self.refusal(request, "viewer", verdict)
        return _json({"role": verdict.role, "canOperate": self._access.can_operate, "open": self._access.open_to_view})

    async def records(self, request: Request) -> Response:
        """Return the newest records."""
        return await self._from_disk(request, lambda layout: {"records": trail.tail(layout)})

    async def record(self, request: Request) -> Response:
        """Return one record."""
        return await self._from_disk(request, lambda layout: trail.line_of(layout, request.path_params["seq"]))

    async def proof(self, request: Request) -> Response:
        """Return one record with the proof that it is in the log."""
        return await self._from_disk(request, lambda layout: trail.proof(layout, request.path_params["seq"]))

    async def consistency(self, request: Request) -> Response:
        """Return the proof that the log only grew since a checkpoint."""
        old, size = (request.query_params.get(name, "") for name in ("old", "size"))
        if not (_is_number(old) and _is_number(size)):
            return _json({"error": "bad request", "message": "old and size must be sizes of checkpoints"}, 400)
        return await self._from_disk(request, lambda layout: trail.consistency(layout, int(old), int(size)))

    async def public_file(self, request: Request) -> Response:
        """Return a file of a public log, for anybody."""
        path = request.path_params["path"]
        if self._public is None or _PUBLIC_FILE.fullmatch(path) is None:
            return _json({"error": "not found"}, 404)
        try:
            async with self._disk:
                content = await asyncio.to_thread(Path(self._public, path).read_bytes)
        except OSError:
            return _json({"error": "not found"}, 404)
        text = path.endswith("checkpoint")
        return Response(content, media_type="text/plain; charset=utf-8" if text else "application/octet-stream")

    async def witness_key(self, _request: Request) -> Response:
        """Return the witness's verifier key."""
        assert self._witness is not None  # noqa: S101  # for the type checker: there is no such route else
        return Response(f"{self._witness.key}\n", media_type="text/plain")

    async def add_checkpoint(self, request: Request) -> Response:
        """Cosign the checkpoint of another log."""
        assert self._witness is not None  # noqa: S101
        body = await _body(request)
        async with self._disk:
            answer = await asyncio.to_thread(self._witness.add, body)
        return Response(answer.content, answer.status, media_type=answer.media_type)

    async def _from_disk(self, request: Request, work: Callable[[Any], dict[str, Any]]) -> Response:
        if (refused := await self._may_look(request)) is not None:
            return refused
        layout = self._monitor.layout
        if layout is None:
            return _json({"error": "no log", "message": "auditLogFile is not configured"}, 404)
        try:
            async with self._disk:
                return _json(await asyncio.to_thread(work, layout))
        except trail.NotSealed as error:
            return _json({"message": str(error)}, 202, {"retry-after": "10"})
        except trail.NoProof as error:
            return _json({"error": "no proof", "message": str(error)}, 404)

    async def action(self, request: Request) -> Response:
        """Carry out an operator's action: drain, force, rotate, …"""
        verdict = self.verdict(request, "operator")
        if verdict.problem:
            return await self.refusal(request, "operator", verdict)
        header, name = request.headers["authorization"], request.path_params["name"]
        body = (await _body(request)).decode("latin-1")
        try:
            status, answer = await self._questions.order("act", header, _peer(request), name, body)
        except Unanswered as error:
            status, answer = 503, {"error": "not done", "message": str(error)}
        if status == 400:
            await self._refusals.note(_peer(request), "bad request", _path(request))
        self._monitor.forget_view()
        return _json(answer, status)

    async def page(self, request: Request) -> Response:
        """Return HTML, styles and modules of the console."""
        body, kind = self._static[request.url.path]
        return Response(body, headers={"content-type": kind})

    async def stream(self, request: Request, send: Send, role: Role | None) -> None:
        """Send server-sent events until either side ends them."""
        viewer = None if role == "operator" else _peer(request)
        watcher = await self._monitor.watch(request.headers.get("last-event-id", ""), viewer)
        try:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            watcher.show("series", message("series", self._monitor.series()))
            watcher.show("state", message("state", self._monitor.state()))
            if (layout := self._monitor.layout) is not None:
                records = await asyncio.to_thread(trail.tail, layout)
                watcher.show("records", message("records", {"records": records}))
            async for part in watcher.messages():
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._monitor.feed.forget(watcher)


class Stream:
    """An ASGI application instead of a handler: Starlette would wait for the end of the response, which has none."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        verdict = self._console.verdict(request, "viewer")
        if verdict.problem:
            response = await self._console.refusal(request, "viewer", verdict)
            await response(scope, receive, send)
            return
        gone = asyncio.ensure_future(_disconnected(receive))
        sending = asyncio.ensure_future(self._console.stream(request, send, verdict.role))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.wait((gone, sending))
        error = None if sending.cancelled() else sending.exception()
        if isinstance(error, Full):
            text = "as many pages are open as may be"
            await _json({"error": "full", "message": text}, 503, {"retry-after": "10"})(scope, receive, send)
        elif error is not None and not isinstance(error, TimeoutError):
            raise error


class _Guarded:
    """The outermost layer: turns of strangers, the Host header, security headers, and no traceback to any client."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, access: Access) -> None:
        self._app, self._hosts, self._access = app, hosts, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in _HEADERS if name not in own),
                ]
            await send(message)

        try:
            if not await self._has_turn(scope):
                await _disconnected(receive)
                return
            refused = self._refused(scope)
            await (refused or self._app)(scope, receive, guarded)
        except Exception:  # noqa: BLE001  # whatever it is: logged here, and nothing of it goes out
            get_logger().exception("a request to the console failed", path=scope["path"][:200])
            if not started:
                await _json({"error": "internal", "message": "see the log"}, 500)(scope, receive, guarded)

    async def _has_turn(self, scope: Scope) -> bool:
        """Wait for the request's turn; or close its connection, and return False."""
        request, place = Request(scope), scope["state"]["connection"]
        return await has_turn(self._access.turn(request.headers.get("authorization"), _peer(request)), place)

    def _refused(self, scope: Scope) -> Response | None:
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if size > MAX_HEAD_BYTES:  # the protocol limits only heads that come in several pieces
            return _json({"error": "too large", "message": f"a head has at most {MAX_HEAD_BYTES} bytes"}, 431)
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return _json({"error": "too large", "message": f"a query has at most {MAX_QUERY_BYTES} bytes"}, 414)
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts is not None and name not in self._hosts:
            # Else a page of another site could point its own name here and read the answers (DNS rebinding).
            text = "unknown Host: add it to monitoring.hosts if it is ours"
            return _json({"error": "host", "message": text}, 421)
        if scope["method"] == "POST":
            origin = headers.get(b"origin")
            # A proxy may have taken TLS off; a page without TLS is not the one that TLS protects here.
            ours = (f"https://{host}", f"{scope['scheme']}://{host}")
            if origin is not None and origin.decode("latin-1").lower() not in ours:
                return _json({"error": "origin", "message": "not from this page"}, 403)
        return None


async def _body(request: Request) -> bytes:
    announced = request.headers.get("content-length", "0")
    body = b""
    if _is_number(announced) and int(announced) <= MAX_BODY_BYTES:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return body
    raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes", {"connection": "close"})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _plain_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    body = {"error": str(error.status_code), "message": error.detail}
    return _json(body, error.status_code, dict(error.headers or {}))


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


@lru_cache(maxsize=1)
def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else "unix"


def _path(request: Request) -> str:
    return request.url.path[:100]


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Return the page's files by their path."""
    found = {}
    for item in files("hsmcore.serve").joinpath("static").iterdir():
        kind = mimetypes.guess_type(item.name)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "; charset=utf-8"
        found["/" if item.name == _PAGE else f"/{item.name}"] = (item.read_bytes(), kind)
    return found
