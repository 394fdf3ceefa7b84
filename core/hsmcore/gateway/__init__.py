"""The gateway: one or several key managers for programs in other processes and other languages.

    async with hsmcore.gateway.Client("unix:/run/hsmcore/sign.sock") as km:
        signature = await km.sign(message)

Reading order: docs/WIRE.md, frames, wire; then the gateway's side: clients, desk; and a client's: request, outbox,
link, client.
"""

from typing import TYPE_CHECKING

from hsmcore.lazy import names

if TYPE_CHECKING:
    from hsmcore.gateway.client import Client
    from hsmcore.gateway.dialing import ClientTls

__all__ = ["Client", "ClientTls"]

# Loaded when they are used: the gateway needs no client, and a client nothing of the gateway, such as the native core.
if not TYPE_CHECKING:
    __getattr__ = names(__name__, {"client": ["Client"], "dialing": ["ClientTls"]})
