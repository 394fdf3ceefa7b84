"""Send a transaction with solana-py: its client takes one that is signed already, so it needs no signer of its own."""

from __future__ import annotations

import asyncio

from _chain import Chain, node
from _token import tokens
from solana.rpc.async_api import AsyncClient
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

import hsmcore
from hsmcore.solana import sign_transactions

TO = Pubkey.new_unique()


async def main() -> None:
    with tokens("example") as made:
        config = {"sequencer": {"keyManager": made.provider("example")}}
        async with hsmcore.create_key_manager(config) as km:
            payer = Pubkey(km.public_key)  # an Ed25519 key is an address
            # Instead of `node`, the URL of a cluster.
            with node(Chain(payer)) as url:
                async with AsyncClient(url) as client:
                    latest = await client.get_latest_blockhash()
                    instruction = transfer(TransferParams(from_pubkey=payer, to_pubkey=TO, lamports=1_000_000))
                    message = MessageV0.try_compile(payer, [instruction], [], latest.value.blockhash)
                    transaction = VersionedTransaction.populate(message, [Signature.default()])

                    await sign_transactions(km, [transaction], address=payer)
                    sent = await client.send_transaction(transaction)

                    balance = await client.get_balance(TO)
                    print(f"sent       {sent.value == transaction.signatures[0]}")
                    print(f"received   {balance.value:,} lamports")


if __name__ == "__main__":
    asyncio.run(main())
