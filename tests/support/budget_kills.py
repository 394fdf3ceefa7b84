"""An emergency budget that is spent by processes which are killed: what they hand out never exceeds it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.chaos import send_signal
from tests.support.paths import ROOT
from tests.support.softhsm import Token
from tests.support.zygote import Forked

from hsmcore.failover.budget import BLOCK


def spend_under_kills(fresh_token: Callable[..., Token], store: Path, most: int, kills: int) -> None:
    """Signers of a budget of `most` are killed so often; the last ones end by themselves, refused."""
    token = fresh_token({"name": "a", "kind": "ed25519"}, {"name": "b", "kind": "ed25519"})
    configs = json.dumps([token.config(name, settings={"sessions": 1}, maxCacheSize=0) for name in "ab"])
    command = ["tests.support.emergency", str(store), configs, str(most)]
    environment = {**token.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    chance = random.Random(7)
    released, killed, ended = 0, 0, False
    for _ in range(kills + 2):
        child = Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            if killed < kills:
                released += _read_until(child.stdout.fileno(), chance.randint(1, 30))
                killed += send_signal(child.pid, signal.SIGKILL)
            released += _read_until(child.stdout.fileno(), 10 * most)
            error = child.stderr.read()
            assert child.wait(60) in (0, -signal.SIGKILL), error.decode()
        finally:
            child.stdout.close()
            child.stderr.close()
        assert released <= most
        ended = child.returncode == 0 and killed == kills
        if ended:
            break
    assert ended
    # What a kill wastes: the rest of a block, and what was signed and not handed out.
    assert released >= most - kills * (BLOCK + 64)


def _read_until(fd: int, count: int) -> int:
    """Read what a child reports until it has reported so much, or has ended."""
    got = 0
    while got < count and (data := os.read(fd, count - got)):
        got += len(data)
    return got
