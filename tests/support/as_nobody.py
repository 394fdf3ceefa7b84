"""A service that another user runs: open a key manager, sign, close. Root starts it.

The interpreter may lie where `nobody` cannot read. So root does the same with another log and store first: whatever is
imported late is imported then.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import sys

import hsmcore

USER = "nobody"


def become_nobody() -> None:
    """Change the user permanently, in all threads."""
    entry = pwd.getpwnam(USER)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


async def serve(config: str) -> str:
    os.environ["XDG_STATE_HOME"] = f"{config}.state-home"  # what the key promises to each is its own
    async with hsmcore.create_key_manager(config) as manager:
        return (await manager.sign(b"message")).hex()


if __name__ == "__main__":
    before, config = sys.argv[1:]
    asyncio.run(serve(before))
    become_nobody()
    sys.stdout.write(asyncio.run(serve(config)))
