"""Solana transactions, signed by a key manager: the extra `solana`.

    signer = HsmcoreSigner(km)
    signed = await signer.sign_transaction(transaction)

Reading order: transactions (slots, sizes, verification), address (one key's signatures), keychain (the interface of
solana-keychain), off_chain. All but HsmcoreSigner need solders alone, of 0.26 or newer.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.solana.address import SigningKeys, sign_transactions
    from hsmcore.solana.keychain import HsmcoreSigner
    from hsmcore.solana.off_chain import off_chain_message
    from hsmcore.solana.transactions import verify_transaction

__all__ = ["HsmcoreSigner", "SigningKeys", "off_chain_message", "sign_transactions", "verify_transaction"]

# Loaded when it is used: solana-keychain needs a newer solders than anchorpy.
if not TYPE_CHECKING:
    __getattr__ = names(
        __name__,
        {
            "address": ["SigningKeys", "sign_transactions"],
            "keychain": ["HsmcoreSigner"],
            "off_chain": ["off_chain_message"],
            "transactions": ["verify_transaction"],
        },
        "solana",
    )
