"""Record each signature before it is handed out, read the records, verify the log, and detect a changed record."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from _token import tokens

import hsmcore

COMMAND = Path(sys.executable).with_name("hsmcore")


def verify(log: Path) -> str:
    """What an auditor runs; needs neither HSM nor configuration."""
    done = subprocess.run([COMMAND, "audit", "verify", log, "--json"], capture_output=True, text=True, check=False)
    return f"{json.loads(done.stdout)['status']} (exit code {done.returncode})"


async def main() -> None:
    with tokens("example") as made:
        log = made.folder / "audit.log"
        config = {"sequencer": {"keyManager": made.provider("example") | {"auditLogFile": str(log)}}}
        async with hsmcore.create_key_manager(config) as km:
            with hsmcore.audit_tag("batch-7"):
                for number in range(3):
                    receipt = await km.sign_with_receipt(b"transaction %d" % number)
                    print(f"signed     as record {receipt.audit_seq}")
            async for record in km.audit.query(match={"operation": "sign"}):
                print(
                    f"record     {record['seq']}: {record['message_sha256'][:16]}… {record['result']}, {record['tag']}"
                )

        print(f"verify     {verify(log)}")
        text = log.read_bytes()
        log.write_bytes(text.replace(b'"tag":"batch-7"', b'"tag":"batch-8"', 1))
        print(f"changed    {verify(log)}")


if __name__ == "__main__":
    asyncio.run(main())
