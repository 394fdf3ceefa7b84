"""The gateway: one or several key managers for programs in other processes and other languages.

    async with hsmcore.gateway.Client("unix:/run/hsmcore/sign.sock") as km:
        signature = await km.sign(message)

Reading order: docs/WIRE.md, frames, wire; then the gateway's side: clients, desk; and a client's: request, outbox,
link, client.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsmcore.gateway.client import Client
    from hsmcore.gateway.dialing import ClientTls

__all__ = ["Client", "ClientTls"]


def __getattr__(name: str) -> Any:
    # When it is used: the gateway needs no client, and a client nothing of the gateway, such as the native core.
    if name == "Client":
        from hsmcore.gateway.client import Client

        return Client
    if name == "ClientTls":
        from hsmcore.gateway.dialing import ClientTls

        return ClientTls
    raise AttributeError(f"module 'hsmcore.gateway' has no attribute {name!r}")
