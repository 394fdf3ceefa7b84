"""Sign one message with a key that stays on a token, verify the signature, and see which member made it."""

from __future__ import annotations

import asyncio

from _token import tokens

import hsmcore


async def main() -> None:
    with tokens("example") as made:
        config = {"sequencer": {"keyManager": made.provider("example")}}
        async with hsmcore.create_key_manager(config) as km:
            message = b"state root 4711"

            signature = await km.sign(message, timeout=0.5)  # seconds; it holds even if the module hangs
            print(f"signature  {signature.hex()}")
            print(f"verified   {await km.verify(message, signature)}")
            print(f"forged     {await km.verify(message + b'0', signature)}")

            receipt = await km.sign_with_receipt(b"block 42")
            print(f"signed by  {receipt.member} of level {receipt.level}, key {receipt.key_id}")
            print(f"public key {km.public_key.hex()}")
            print(f"address    {km.address}")
            print(f"took       {receipt.latency_ns / 1000:.0f} µs")

            try:
                await km.sign(b"")
            except hsmcore.HsmError as error:
                print(f"refused    {error.status}, retryable: {error.retryable}")


if __name__ == "__main__":
    asyncio.run(main())
