"""Solana transactions, signed by a key manager: `pip install "hsmcore[solana]"`.

    signer = HsmcoreSigner(km)
    signed = await signer.sign_transaction(transaction)

Reading order: transactions (slots, sizes, verification), address (one key's signatures), keychain (the interface of
solana-keychain), off_chain. All but HsmcoreSigner need solders alone, of 0.26 or newer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hsmcore.solana.address import SigningKeys, sign_transactions
    from hsmcore.solana.keychain import HsmcoreSigner
    from hsmcore.solana.off_chain import off_chain_message
    from hsmcore.solana.transactions import verify_transaction

__all__ = ["HsmcoreSigner", "SigningKeys", "off_chain_message", "sign_transactions", "verify_transaction"]

# Loaded when it is used: solana-keychain needs a newer solders than anchorpy.
_HOMES: Final = {
    "HsmcoreSigner": "keychain",
    "SigningKeys": "address",
    "off_chain_message": "off_chain",
    "sign_transactions": "address",
    "verify_transaction": "transactions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hsmcore.solana' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"hsmcore.solana.{_HOMES[name]}"), name)
    return value
