"""Sign what anchorpy builds. Its wallet holds a key in memory and signs at once, so it gets a signer that leaves the
slot empty; the slot is filled afterwards.

anchorpy 0.21 needs solders 0.26, which is older than what solana-keychain needs: install hsmcore without the extra
`solana` beside it. `sign_transactions` works with both. So that this program runs without anchorpy, `build` does what
`program.transaction["…"]` does.
"""

from __future__ import annotations

import asyncio

from _chain import Chain
from _token import tokens
from solders.hash import Hash
from solders.message import Message
from solders.null_signer import NullSigner
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

import hsmcore
from hsmcore.solana import sign_transactions, verify_transaction

TO = Pubkey.new_unique()


def build(lamports: int, *, payer: NullSigner, blockhash: Hash) -> VersionedTransaction:
    """As `program.transaction["transfer"](lamports, payer=payer, blockhash=blockhash, ctx=ctx)`."""
    instruction = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=TO, lamports=lamports))
    return VersionedTransaction(Message.new_with_blockhash([instruction], payer.pubkey(), blockhash), [payer])


async def main() -> None:
    with tokens("example") as made:
        config = {"sequencer": {"keyManager": made.provider("example")}}
        async with hsmcore.create_key_manager(config) as km:
            payer = NullSigner(Pubkey(km.public_key))
            chain = Chain(payer.pubkey())

            transaction = build(1_000_000, payer=payer, blockhash=chain.blockhash())
            print(f"built      empty slot: {transaction.signatures == [Signature.default()]}")

            await sign_transactions(km, [transaction], address=payer.pubkey())
            print(f"signed     verified: {verify_transaction(transaction)}")

            # Then `await program.provider.send(transaction)`.
            print(f"chain      {chain.execute(transaction)}, {chain.balance(TO):,} lamports")


if __name__ == "__main__":
    asyncio.run(main())
