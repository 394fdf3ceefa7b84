"""A server in a process of its own, for measurements: `python -m tests.support.kms LATENCY_SECONDS` prints the port and
the id of an Ed25519 key, and ends with its input."""

from __future__ import annotations

import sys

from tests.support.kms.server import KmsServer

with KmsServer() as server:
    key = server.store.make()
    server.faults.latency = float(sys.argv[1])
    print(server.port, key.id, key.raw_public.hex(), flush=True)  # noqa: T201  # that is its answer
    sys.stdin.read()
