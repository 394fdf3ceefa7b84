"""Replace the signing key while the application runs; what must obey the new key is told before it signs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from _token import tokens

import hsmcore
from hsmcore.handover import HandoverKey, Settled


class Registry:
    """Stands for whatever obeys the key: a program's authority on chain, a list of allowed signers, a peer.

    It is an `hsmcore.handover.Handover`. All calls are idempotent: a rotation that a crash cut off calls them again.
    `hsmcore.handover.solana` has ready ones for Solana.
    """

    def __init__(self) -> None:
        self.obeys = b""

    async def handover(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any]:
        """Make the registry obey the new key. The old one signs the change."""
        if self.obeys != new.public_key:
            consent = await old.sign(b"from now on " + new.public_key)
            assert await km.verify(b"from now on " + new.public_key, consent)
            self.obeys = new.public_key
            print(f"handover   {old.id} → {new.id}")
        return {"obeys": new.id}

    async def revert(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any]:  # noqa: ARG002
        """Make it obey the old key again: the rotation failed."""
        self.obeys = old.public_key
        return {"obeys": old.id}

    async def settled(self, old: HandoverKey, new: HandoverKey) -> Settled:
        """Say which key it obeys, at finality. Only after "new" the new key signs; only after "old" it may go."""
        return "new" if self.obeys == new.public_key else "old" if self.obeys == old.public_key else "unknown"


async def main() -> None:
    with tokens("example") as made:
        rules = {"stateFile": str(made.folder / "state.db"), "keyRotation": {"requireHandover": True}}
        config = {"sequencer": {"keyManager": made.provider("example") | rules}}
        km, registry = hsmcore.create_key_manager(config), Registry()
        km.on_rotation(registry)  # before initialize(), so that a rotation that was cut off finds it
        async with km:
            registry.obeys = km.public_key
            first, before = await km.get_current_key_id(), await km.sign(b"block 1")

            second = await km.rotate_key("an example")
            after = await km.sign(b"block 1")

            print(f"rotated    {first} → {second}")
            print(f"obeys new  {registry.obeys == km.public_key}")
            print(f"old key    still verifies: {await km.verify(b'block 1', before, first)}")
            print(f"new key    verifies: {await km.verify(b'block 1', after, second)}, as before: {before == after}")


if __name__ == "__main__":
    asyncio.run(main())
