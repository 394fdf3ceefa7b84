"""The commands that read a log, beside a key manager that signs as fast as the module allows and rotates its files."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import NOOP
from tests.support.terminal import PROGRAM
from tests.support.zygote import Forked

from hsmcore.audit.check.prove import latest
from hsmcore.audit.layout import Layout


@contextmanager
def signing(folder: Path) -> Iterator[Layout]:
    """A signer whose log has several files and checkpoints. It must still run at the end."""
    pkcs11 = {"modulePath": str(NOOP), "tokenLabel": "noop", "keyLabel": "noop-key", "pin": "1234", "quirks": "softhsm"}
    rules = {"rotateBytes": 1 << 18, "durability": "write", "checkpointEveryRecords": 2000}
    manager = {"type": "softhsm", "config": pkcs11, "auditLogFile": str(folder / "audit.log"), "audit": rules}
    config = {"sequencer": {"keyManager": {**manager, "maxCacheSize": 0}}}
    (folder / "config.json").write_text(json.dumps(config))
    signer = Forked(["tests.support.signing_victim", str(folder / "config.json")], stdout=subprocess.PIPE)
    assert signer.stdout is not None
    drain = None
    try:
        for _ in range(20_000):
            assert signer.stdout.readline()
        drain = subprocess.Popen(["cat"], stdin=signer.stdout, stdout=subprocess.DEVNULL)
        layout = Layout(folder / "audit.log")
        while latest(layout).size < 2000:
            time.sleep(0.01)
        yield layout
        assert signer.poll() is None
    finally:
        signer.kill()
        signer.communicate()
        if drain is not None:
            drain.wait(60)


def look(layout: Layout, verb: str, seed: int) -> str:
    """Run one of the commands. Returns what is wrong with its answer; "": nothing."""
    log = str(layout.log)
    arguments = {
        "verify": (log,),
        "mend": (log,),
        "query": ("--limit", "2000", "--folder", log),
        "prove": (str(random.Random(seed).randrange(1, latest(layout).size + 1)), "--folder", log),
    }[verb]
    done = subprocess.run(
        [*PROGRAM, "audit", verb, *arguments, "--json"], capture_output=True, text=True, check=False, timeout=300
    )
    if verb == "mend":  # it changes files, so it leaves those of a key manager alone
        return "" if "FolderInUse" in done.stderr and done.returncode == 1 else f"mend: {done}"
    if done.returncode:
        return f"{verb}: {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    if verb == "query":
        found = [json.loads(line)["seq"] for line in done.stdout.splitlines()]
        if found != list(range(found[0], found[0] + 2000)):
            return f"query: records are missing between {found[0]} and {found[-1]}"
    return ""
