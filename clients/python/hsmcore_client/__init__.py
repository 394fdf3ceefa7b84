"""hsmcore-client: signatures from `hsmcore gateway`, for programs that need neither hsmcore nor its native core.

    async with hsmcore_client.Client("unix:/run/hsmcore/sign.sock") as km:
        signature = await km.sign(message)

The names are those that hsmcore and hsmcore.gateway have, with the errors of hsmcore.errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hsmcore import errors as errors
    from hsmcore import gateway as gateway
    from hsmcore.base.keyring import KeyVersion as KeyVersion
    from hsmcore.base.payload import payload as payload
    from hsmcore.base.receipt import Receipt as Receipt
    from hsmcore.base.version import __version__ as __version__
    from hsmcore.errors import *  # noqa: F403
    from hsmcore.gateway.client.client import Client as Client
    from hsmcore.gateway.client.dialing import ClientTls as ClientTls
    from hsmcore.tlog.batch_proof import verify_batched as verify_batched
    from hsmcore.tlog.key_set import KeySet as KeySet
    from hsmcore.tlog.proof_bytes import proof_from_bytes as proof_from_bytes
    from hsmcore.tlog.proof_bytes import proof_to_bytes as proof_to_bytes

# As in hsmcore, a name is loaded when it is used. Those that verify need the extra `verify`.
_HOMES: Final = {
    "Client": "gateway.client.client",
    "ClientTls": "gateway.client.dialing",
    "KeySet": "tlog.key_set",
    "KeyVersion": "base.keyring",
    "Receipt": "base.receipt",
    "__version__": "base.version",
    "payload": "base.payload",
    "proof_from_bytes": "tlog.proof_bytes",
    "proof_to_bytes": "tlog.proof_bytes",
    "verify_batched": "tlog.batch_proof",
}
"""Of the names that are not in errors.py."""


if not TYPE_CHECKING:  # a type checker would take every name, also a misspelled one, for Any

    def __getattr__(name: str) -> Any:
        if name in ("errors", "gateway"):
            return import_module(f"{__name__}.{name}")
        module = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
        if not hasattr(module, name):
            raise AttributeError(
                f"hsmcore-client has no {name}: it is a gateway's client. Install hsmcore for the rest."
            )
        value = globals()[name] = getattr(module, name)
        return value
