"""One key for blocks, at most one for each position, one for other messages: on one token, with one audit log."""

from __future__ import annotations

import asyncio
import hashlib

from _token import tokens

import hsmcore


async def main() -> None:
    with tokens("example", keys=("block-key", "message-key")) as made:
        blocks = made.provider("example", keyLabel="block-key")
        messages = made.provider("example", keyLabel="message-key")
        config = {
            "keyManagers": {
                "blocks": {
                    **blocks,
                    "policy": {"kinds": ["block"], "domain": "example"},
                    "stateFile": str(made.folder / "blocks.db"),
                },
                "messages": {**messages, "policy": {"kinds": ["raw"]}},
            },
            "auditLogFile": str(made.folder / "audit.log"),
        }
        async with hsmcore.create_key_managers(config) as managers:
            block = hsmcore.payload("block", "example", 42, hashlib.sha256(b"block 42").digest())
            print(f"blocks     {(await managers['blocks'].sign(block)).hex()}")
            print(f"by kind    {(await managers.sign(block, kind='block')).hex()}")
            print(f"messages   {(await managers['messages'].sign(b'hello')).hex()}")
            try:
                await managers.sign(b"\xffsolana offchain", kind="off-chain")
            except hsmcore.PolicyRefused as error:
                print(f"refused    {error.status}")
            async for record in managers.audit.query(match={"operation": "sign"}):
                print(f"record     {record['seq']}: {record.get('manager')} {record['result']}")


if __name__ == "__main__":
    asyncio.run(main())
