"""The gateway: one or several key managers for programs in other processes and other languages.

    async with hsmcore.gateway.Client("unix:/run/hsmcore/sign.sock") as km:
        signature = await km.sign(message)

Reading order: docs/WIRE.md and wire; then the gateway's side: clients, admission, operations, connection, server,
fronts; then front and vault; then client.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.gateway.client.client import Client
    from hsmcore.gateway.client.dialing import ClientTls

__all__ = ["Client", "ClientTls"]

# Loaded when they are used: the gateway needs no client, and a client nothing of the gateway. It needs no native core.
if not TYPE_CHECKING:
    __getattr__ = names(__name__, {"client.client": ["Client"], "client.dialing": ["ClientTls"]})
