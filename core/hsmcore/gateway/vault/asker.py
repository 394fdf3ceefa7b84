"""Who asks over HTTP: a client, by its token or certificate, or a stranger, whose requests wait for their turns."""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hsmcore.base.listening.http import MAX_HEAD_BYTES
from hsmcore.base.listening.rates import has_turn
from hsmcore.base.log import get_logger
from hsmcore.gateway.front.core import Core
from hsmcore.gateway.tls import Tls, names_in

WAIT_SECONDS: Final = 0.5
"""The most seconds that a stranger's request waits for its turn."""


class Guarded:
    """The outermost layer: who asks, turns of strangers, the size of the head. An unforeseen error, which is
    answered by then, is logged."""

    def __init__(self, app: ASGIApp, core: Core, tls: Tls, too_long: ASGIApp) -> None:
        """`too_long` answers a request with too long a head."""
        self._app, self._core, self._tls, self._too_long = app, core, tls, too_long

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not await self._has_turn(Request(scope)):
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            size = (
                len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
            )
            await (self._too_long if size > MAX_HEAD_BYTES else self._app)(scope, receive, send)
        except Exception:  # noqa: BLE001  # whatever it is: logged here
            get_logger().exception("a request to the gateway failed", path=scope["path"][:200])

    async def _has_turn(self, request: Request) -> bool:
        state, peer = request.scope["state"], peer_of(request)
        client, _ = state["asker"] = self._asker(request)
        place = state.get("connection")
        if place is None:
            return True
        if client is None:
            return await has_turn(self._core.unknown.turn(peer, WAIT_SECONDS), place)
        place.known()
        return True

    def _asker(self, request: Request) -> tuple[str | None, str]:
        """The client that sends a request, by its token, and if it sent none, by its certificate; or why it is none."""
        clients, tls = self._core.clients, request.scope["state"].get("tls")
        if token := _token(request):
            client = clients.by_token(token)
            return client, "" if client is not None else clients.refusal_of(token)
        certificate = tls.getpeercert() if tls is not None and time.time() < self._tls.ends(tls) else None
        return clients.by_names(names_in(certificate)), "unknown certificate" if certificate else "no token"


def asker_of(request: Request) -> tuple[str | None, str]:
    """Return the client that sends a request; or None, and why it is none."""
    found: tuple[str | None, str] = request.scope["state"]["asker"]
    return found


def peer_of(request: Request) -> str:
    """Return the address of the other end, or ""."""
    return request.client.host if request.client is not None else ""


def _token(request: Request) -> str:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-vault-token", "") or (bearer.strip() if scheme.lower() == "bearer" else "")
