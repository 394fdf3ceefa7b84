"""Vault's face: the signing part of Vault Transit's API over HTTPS, for clients that speak it already. docs/GATEWAY.md.

Runs in a front, and asks the key managers through ../front/link.py. Next: asker.py (who asks), text.py (what requests
and answers say), signing.py, openapi.py.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from socket import socket
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from hsmcore.base.listening.http import HttpServer
from hsmcore.base.version import __version__
from hsmcore.errors import BadArgument, HsmError, InternalError, PolicyRefused, QueueFull
from hsmcore.gateway.front.core import Core
from hsmcore.gateway.front.link import Links, RemoteKey, Trail
from hsmcore.gateway.refusals import outcome_of_request
from hsmcore.gateway.tls import Tls
from hsmcore.gateway.vault import text as transit
from hsmcore.gateway.vault.asker import Guarded, asker_of, peer_of
from hsmcore.gateway.vault.openapi import described
from hsmcore.gateway.vault.signing import Signing
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Label

MAX_BODY_BYTES: Final = 1 << 20
_STATUS: Final = {"POLICY_REFUSED": 403, "QUEUE_FULL": 429, "CLOSED": 503, "FLEET_BEHIND": 503}
"""HTTP's, by ours. Else 503 if the same request may succeed later, 400 if the request is at fault, 500."""
_DENIED: Final = "permission denied"
_MOST_SIGNATURE: Final = 128
"""Bytes of a signature: a longer one is none, however it goes on."""


class Face:
    """Serves the API on sockets that are bound already. Belongs to one event loop."""

    def __init__(self, core: Core, sockets: list[socket], tls: Tls, drain_seconds: int) -> None:
        """`drain_seconds`: how long the end waits for answers."""
        self._listening = asyncio.Event()
        app = Transit(core, tls).app()
        refused = partial(core.reports.refused, what="https")
        more: Any = {"drain_seconds": drain_seconds, "refused": refused, "handshakes": core.handshakes}
        self._server = HttpServer(app, sockets, lambda: tls.context, self._listening.set, **more)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen from now on."""
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())
        await self._listening.wait()

    async def close(self, *, at_once: bool = False) -> None:
        """Accept no more, answer the open requests unless it is to be `at_once`, and end. Idempotent."""
        self._server.end(at_once=at_once)
        if self._serving is not None:
            await self._serving


class Transit:
    """The handlers."""

    def __init__(self, core: Core, tls: Tls) -> None:
        self._core, self._tls, self._links = core, tls, Links(core)

    def app(self) -> ASGIApp:
        """Return the whole application."""
        write = ["POST", "PUT"]
        sign, verify = self._counted(self.sign), self._counted(self.verify)
        routes = [
            Route("/keys", self.key_set, methods=["GET"]),
            Route("/keys/{name}", self.key_set, methods=["GET"]),
            Route("/v1/sys/health", self.health, methods=["GET"]),
            Route("/v1/sys/seal-status", self.seal_status, methods=["GET"]),
            Route("/v1/sys/init", self.init, methods=["GET"]),
            Route("/v1/sys/leader", self.leader, methods=["GET"]),
            Route("/v1/sys/internal/specs/openapi", self.openapi, methods=["GET"]),
            Route("/v1/sys/capabilities-self", self.capabilities_self, methods=write),
            Route("/v1/auth/token/lookup-self", self.lookup_self, methods=["GET"]),
            Route("/v1/auth/token/renew-self", self.renew_self, methods=write),
            Route("/v1/auth/token/revoke-self", self.revoke_self, methods=write),
            Route("/v1/transit/keys", self.keys, methods=["GET", "LIST"]),
            Route("/v1/transit/keys/", self.keys, methods=["GET", "LIST"]),
            Route("/v1/transit/keys/{name}", self.key, methods=["GET"]),
            Route("/v1/transit/sign/{name}", sign, methods=write),
            Route("/v1/transit/sign/{name}/{hash}", sign, methods=write),
            Route("/v1/transit/verify/{name}", verify, methods=write),
            Route("/v1/transit/verify/{name}/{hash}", verify, methods=write),
        ]
        handlers: Any = {HTTPException: _http_error, HsmError: _hsm_error, ClientDisconnect: _gone, Exception: _failed}
        self._described = described([(each.path, each.methods or (), each.endpoint) for each in routes])
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return Guarded(app, self._core, self._tls, _errors("the head of the request is too long", 431))

    async def health(self, request: Request) -> Response:
        """Whether every key can sign. Needs no token; "sealed" is a key that cannot, "standby" a fleet's other host."""
        sealed, standby = self._core.state["sealed"], self._core.state["standby"]
        condition = "sealed" if sealed else "standby" if standby else "active"
        asked = request.query_params
        code = {"sealed": 503, "standby": 429, "active": 200}[condition]
        if condition == "standby" and "standbyok" in asked:
            condition, code = "active", 200
        wanted = asked.get(f"{condition}code", "")
        if wanted.isascii() and wanted.isdigit() and 200 <= int(wanted[:4]) < 600:
            code = int(wanted)
        state = {
            "initialized": True,
            "sealed": sealed,
            "standby": standby,
            "performance_standby": False,
            "replication_performance_mode": "disabled",
            "replication_dr_mode": "disabled",
            "server_time_utc": int(datetime.now(UTC).timestamp()),
            "version": f"hsmcore-{__version__}",
        }
        return _json(state, code)

    async def seal_status(self, _request: Request) -> Response:
        """Whether every key can sign, as `vault status` asks. Needs no token."""
        shares = {"t": 0, "n": 0, "progress": 0, "nonce": ""}
        server = {"type": "pkcs11", "storage_type": "", "version": f"hsmcore-{__version__}", "build_date": ""}
        return _json(
            {"initialized": True, "sealed": self._core.state["sealed"], "migration": False, **shares, **server}
        )

    async def init(self, _request: Request) -> Response:
        """That there is nothing to initialize. Needs no token."""
        return _json({"initialized": True})

    async def leader(self, _request: Request) -> Response:
        """Whether this host holds the epoch, in a fleet. Needs no token."""
        holder = self._core.state["holder"]
        return _json({"ha_enabled": holder is not None, "is_self": bool(holder), "leader_address": ""})

    async def openapi(self, request: Request) -> Response:
        """This API as OpenAPI 3.1."""
        self._client(request)
        return _json(self._described)

    async def key_set(self, request: Request) -> Response:
        """The signed set of a key's versions, for anybody: it vouches for itself. `since`: all after a serial."""
        from hsmcore.tlog.key_set import after, serial_of  # for few requests: it needs the native core

        sets = self._core.state["keySets"]
        name = request.path_params.get("name") or (next(iter(sets)) if len(sets) == 1 else "")
        since = serial_of(request.query_params.get("since"))
        newest, every = sets.get(name, ("", ""))
        if not newest:
            raise HTTPException(404, "there is no signed set of keys here")
        notes = newest if since is None else after(every, since)
        return Response(notes, media_type="text/plain; charset=utf-8", headers={"cache-control": "no-store"})

    async def lookup_self(self, request: Request) -> Response:
        """What clients look at to see whether their token counts. The token itself is not repeated."""
        client = self._client(request)
        about = {
            "id": "",
            "accessor": "",
            "display_name": client,
            "policies": [client],
            "path": "gateway.clients",
            "type": "service",
            "meta": None,
            "entity_id": "",
            "orphan": True,
            "renewable": False,
            "num_uses": 0,
            "ttl": 0,
            "creation_ttl": 0,
            "explicit_max_ttl": 0,
            "creation_time": 0,
            "expire_time": None,
        }
        return _answer(about)

    async def renew_self(self, request: Request) -> Response:
        """What a token that has no end answers: it is not renewable."""
        client = self._client(request)
        auth = {"client_token": "", "accessor": "", "policies": [client], "token_policies": [client]}
        rest = {"metadata": None, "lease_duration": 0, "renewable": False, "entity_id": "", "token_type": "service"}
        return _answer(None, auth={**auth, **rest, "orphan": True, "num_uses": 0})

    async def revoke_self(self, request: Request) -> Response:
        """Refused: a token ends when the configuration no longer lists it."""
        self._client(request)
        raise HTTPException(400, "a token ends when gateway.clients no longer lists it and the gateway has a SIGHUP")

    async def capabilities_self(self, request: Request) -> Response:
        """What the client may do at each of `paths`."""
        client, body = self._client(request), await _body(request)
        paths = body.get("paths", body.get("path"))
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise BadArgument("paths must be a list of texts")
        may = {path: transit.capabilities(path, self._core.clients.keys[client]) for path in paths}
        return _answer({**may, "capabilities": may[paths[0]]})

    async def keys(self, request: Request) -> Response:
        """The names of the keys that the client may use."""
        client = self._client(request)
        if request.method != "LIST" and request.query_params.get("list") != "true":
            raise HTTPException(405, "unsupported operation")
        return _answer({"keys": sorted(self._core.clients.keys[client])})

    async def key(self, request: Request) -> Response:
        """A key and its versions."""
        key = await self._key(request, self._client(request))
        versions = await key.versions()
        name, signs = request.path_params["name"], key.current
        return _answer(transit.key_data(name, signs.algorithm, versions, signs.version))

    async def sign(self, request: Request, client: str, trail: Trail) -> dict[str, Any]:
        """One signature, or those of a batch, in which each item has its own answer."""
        key = await self._key(request, client)
        body = await _body(request)
        options = transit.options(body, request.path_params.get("hash"), key.current.algorithm)
        work = Signing(key, options, trail)
        items = transit.batch(body)
        if items is None:
            return await work.one(transit.wanted(body))
        _require_room(key, items)
        answers = await work.many([_read(item) for item in items])
        return transit.results(items, answers, {"key_version": 0})

    async def verify(self, request: Request, client: str, trail: Trail) -> dict[str, Any]:
        """Whether a signature is good, or those of a batch."""
        key = await self._key(request, client)
        body = await _body(request)
        options = transit.options(body, request.path_params.get("hash"), key.current.algorithm)
        items = transit.batch(body)
        if items is None:
            return await _verified(key, body, options, trail)
        _require_room(key, items)
        asked = (_verified(key, item, options, trail) for item in items)
        found = await asyncio.gather(*asked, return_exceptions=True)
        return transit.results(items, found, {"valid": False})

    def _counted(
        self, handler: Callable[[Request, str, Trail], Awaitable[dict[str, Any]]]
    ) -> Callable[..., Awaitable[Response]]:
        """Count each answer to a client, as the wire's face does. Records of its work have the trail's `request_id`,
        and the trace that the client names."""

        @wraps(handler)
        async def counted(request: Request) -> Response:
            client, request_id = self._client(request), uuid.uuid4()
            try:
                parent = transit.parent(request.headers.getlist("traceparent"))
                trail = Trail(parent, Label(request_id.bytes, peer_of(request)))
                data = await handler(request, client, trail)
            except ClientDisconnect:
                raise
            except Exception as error:
                self._core.reports.count(client, outcome_of_request(_counted_as(error)))
                raise
            self._core.reports.count(client, outcome_of_request(None))
            return _answer(data, request_id=str(request_id))

        return counted

    def _client(self, request: Request) -> str:
        """The client that sent a request."""
        client, why = asker_of(request)
        if client is None:
            self._refused(request, peer_of(request), why)
            raise HTTPException(403, _DENIED)
        return client

    async def _key(self, request: Request, client: str) -> RemoteKey:
        name = request.path_params["name"]
        if name not in self._core.clients.keys[client]:
            self._refused(request, client, "key not listed")
            raise HTTPException(403, _DENIED) from PolicyRefused(hint="")
        return await self._links.key(client, name, peer_of(request))

    def _refused(self, request: Request, who: str, why: str) -> None:
        asked = f"{request.method} {request.scope['raw_path'].decode('latin-1')}"[:100]
        self._core.reports.refused(who, why, asked)

    def close(self) -> None:
        """Nothing more is asked."""
        self._links.close()


def _counted_as(error: Exception) -> HsmError:
    """The error that the wire's face would answer with."""
    if isinstance(error, HTTPException):
        return error.__cause__ if isinstance(error.__cause__, HsmError) else BadArgument(error.detail)
    return error if isinstance(error, HsmError) else InternalError()


async def _verified(key: RemoteKey, item: object, options: transit.TransitOptions, trail: Trail) -> dict[str, Any]:
    message, number, text = transit.parsed(item)
    version = (await key.version(number)).key
    signature = transit.signature_of(text, version.algorithm, jws=options.jws)[:_MOST_SIGNATURE]
    said, digest = wire.Verify(version.id, signature, message), options.prehashed
    answer = await key.ask(lambda number: trail.along(wire.verify(number, said, slot=key.slot, digest=digest)))
    return {"valid": wire.read_verified(answer.body)}


def _require_room(key: RemoteKey, items: Sequence[object]) -> None:
    if len(items) > key.credits:
        raise BadArgument(f"batch_input has {len(items)} items; this client may have {key.credits} open")


def _read(item: object) -> transit.Wanted | HsmError:
    """What an item wants signed."""
    try:
        return transit.wanted(item)
    except HsmError as error:
        return error


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("x-vault-wrap-ttl"):
        raise HTTPException(400, "X-Vault-Wrap-TTL is not supported: answers are not wrapped")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes", {"connection": "close"})
    try:
        found = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        raise HTTPException(400, "failed to parse JSON input") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "failed to parse JSON input: it must be an object")
    return found


async def _hsm_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HsmError):
        raise error
    status = _STATUS.get(error.status)
    if status is None:
        status = 503 if error.retryable else 400 if error.error_class == "REQUEST_FATAL" else 500
    headers = {}
    if isinstance(error, QueueFull):
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000) or 1)
    return _errors(str(error), status, headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    text = {404: "unsupported path", 405: "unsupported operation"}.get(error.status_code, error.detail)
    return _errors(text, error.status_code, dict(error.headers or {}))


async def _gone(_request: Request, _error: Exception) -> Response:
    """For a client that hung up before it had sent its request: it reads nothing."""
    return Response(status_code=400)


async def _failed(_request: Request, _error: Exception) -> Response:
    """For an unforeseen error, of which nothing goes out."""
    return _errors("internal error", 500)


def _errors(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return _json({"errors": [text]}, status, headers)


def _answer(data: Mapping[str, Any] | None, auth: Mapping[str, Any] | None = None, request_id: str = "") -> Response:
    """The envelope of all answers."""
    return _json(
        {
            "request_id": request_id or str(uuid.uuid4()),
            "lease_id": "",
            "renewable": False,
            "lease_duration": 0,
            "data": data,
            "wrap_info": None,
            "warnings": None,
            "auth": auth,
            "mount_type": "transit",
        }
    )


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    plain = {"cache-control": "no-store", **(headers or {})}
    return Response(orjson.dumps(value), status, plain, media_type="application/json")
