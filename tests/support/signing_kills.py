"""kill -9 while signatures are handed out: each that got out has its record, and the log verifies."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections import Counter
from pathlib import Path

from tests.support.audit_logs import keys_of
from tests.support.zygote import Forked

from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query


def run_and_kill(config: Path, signatures: int) -> list[tuple[bytes, str]]:
    """What got out before the victim was killed, right after so many signatures."""
    with Forked(["tests.support.signing_victim", str(config)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        lines = [line for _, line in zip(range(signatures), victim.stdout, strict=False)]
        victim.kill()
        lines += victim.stdout.read().splitlines(keepends=True)
    words = [line.split() for line in lines if line.endswith(b"\n")]
    return [(message, signature.decode()) for message, signature in words]


def kill_signers(folder: Path, config: dict, kills: int, seed: int) -> tuple[int, int]:
    """Returns how many signatures got out, and how many records there are."""
    dice = random.Random(seed)
    log = folder / "audit.log"
    config["sequencer"]["keyManager"] |= {"auditLogFile": str(log), "audit": {"checkpointEveryRecords": 500}}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    out: Counter[tuple[str, str]] = Counter()
    layout = Layout(log)
    for number in range(kills):
        for message, signature in run_and_kill(path, dice.randrange(1, 3000)):
            out[hashlib.sha256(message).hexdigest(), signature] += 1
        report = verify(layout, Trust(keys=keys_of(layout)))
        assert report.ok, f"after kill {number}: {report.findings}"
    # The next start takes in what lay behind the last checkpoint.
    records = [record for block in Query(layout, None, None, {"operation": "sign"}).blocks() for record in block]
    kept = Counter((r["message_sha256"], r["signature"]) for r in records if r["result"] == "ok")
    missing = {pair: count - kept[pair] for pair, count in out.items() if count > kept[pair]}
    assert missing == {}
    return out.total(), len(records)
