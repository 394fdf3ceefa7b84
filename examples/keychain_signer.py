"""Sign Solana transactions through solana-keychain's interface: one, a batch, and a text that is no transaction."""

from __future__ import annotations

import asyncio

from _chain import Chain
from _token import tokens
from solana_keychain import SignerError, TransactionSigner
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

import hsmcore
from hsmcore.solana import HsmcoreSigner, off_chain_message, verify_transaction

TO = Pubkey.new_unique()


def transfer_of(lamports: int, payer: Pubkey, chain: Chain) -> VersionedTransaction:
    """A transaction that waits for its signature."""
    instruction = transfer(TransferParams(from_pubkey=payer, to_pubkey=TO, lamports=lamports))
    message = MessageV0.try_compile(payer, [instruction], [], chain.blockhash())
    return VersionedTransaction.populate(message, [Signature.default()])


async def main() -> None:
    with tokens("example") as made:
        config = {"sequencer": {"keyManager": made.provider("example")}}
        async with hsmcore.create_key_manager(config) as km:
            signer: TransactionSigner = HsmcoreSigner(km)  # whatever takes one takes a key in an HSM
            chain = Chain(signer.pubkey)

            signed = await signer.sign_transaction(transfer_of(1_000_000, signer.pubkey, chain))
            print(f"signed     complete: {signed.is_complete}, verified: {verify_transaction(signed.transaction)}")
            print(f"chain      {chain.execute(signed.transaction)}, {chain.balance(TO):,} lamports")

            # A batch crosses to the workers once. With return_exceptions, one that cannot be signed spoils no other.
            batch = [transfer_of(1_000_000 + number, signer.pubkey, chain) for number in range(1, 100)]
            foreign = transfer_of(1, Pubkey.new_unique(), chain)
            results = await HsmcoreSigner(km).sign_transactions([*batch, foreign], return_exceptions=True)
            codes = [one.code.value for one in results if isinstance(one, SignerError)]
            executed = [chain.execute(transaction) for transaction in batch].count("executed")
            print(f"batch      {executed} executed, refused: {', '.join(codes)}")

            text = off_chain_message("I agree to the terms.", [signer.pubkey])
            signature = await signer.sign_message(text)
            print(f"text       verified: {signature.verify(signer.pubkey, text)}")


if __name__ == "__main__":
    asyncio.run(main())
