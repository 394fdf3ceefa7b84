"""`python -m hsmcore_bench.suite.child JOB`: one contender."""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

from hsmcore.base.heap import settle
from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.suite.child.protocol import Job, Replies, Signer, one_at_a_time, serve

SIGNERS = {
    "recovery-rotation": "rotation:Rotating",
    "recovery-*": "recovery:Recovering",
    "failover-*": "failover:Switching",
    "pkcs11-executor": "pypkcs11:ExecutorSigner",
    "pkcs11-*": "pypkcs11:ThreadSigner",
    "pykcs11": "pykcs11:PyKCS11Signer",
    "pynacl": "software:SoftwareSigner",
    "cryptography": "software:SoftwareSigner",
    "verify-batched": "software:BatchVerifier",
    "verify": "software:Verifier",
    "echo": "echo:Echoing",
    "flush": "flush:Flushing",
    "gateway": "gateway:GatewaySigner",
    "gateway-vault": "gateway_vault:VaultSigner",
    "*": "ours:OurSigner",
}
"""Kinds of jobs, the first that fits, and what runs them: a module of this package and its class."""


def open_signer(job: Job) -> Signer:
    """Only what this contender needs is imported: the others may be missing."""
    if job.state:  # what a key promises here binds no other contender with the key
        os.environ["XDG_STATE_HOME"] = str(Path(job.state).parent)
    where = next(place for kind, place in SIGNERS.items() if fnmatchcase(job.kind, kind))
    module, _, name = where.partition(":")
    made: Signer = getattr(import_module(f"hsmcore_bench.suite.child.{module}"), name)(job)
    return made


def main() -> int:
    die_with_parent()
    replies = Replies()
    try:
        job = Job.from_json(sys.argv[1])
        with one_at_a_time(job.turn):
            signer = open_signer(job)
        settle()
    except ImportError as error:
        replies.send({"missing": str(error)})
        return 1
    try:
        serve(signer, replies)
    finally:
        signer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
