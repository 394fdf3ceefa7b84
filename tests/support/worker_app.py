"""A service that uvicorn runs in several workers, each with a key manager and a console of its own; WORKER_CONFIG names
the configuration."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import hsmcore
from hsmcore.serve import attached


@asynccontextmanager
async def lifespan(service: Starlette) -> AsyncIterator[None]:
    """Loaded here, in the worker: {pid} is its own."""
    async with hsmcore.create_key_manager(os.environ["WORKER_CONFIG"]) as manager, attached(manager) as console:
        service.state.manager, service.state.console = manager, console.address
        yield


async def sign(request: Request) -> JSONResponse:
    """Sign the body."""
    state = request.app.state
    signature = await state.manager.sign(await request.body())
    return JSONResponse({"pid": os.getpid(), "signature": signature.hex(), "console": state.console})


app = Starlette(routes=[Route("/sign", sign, methods=["POST"])], lifespan=lifespan)
