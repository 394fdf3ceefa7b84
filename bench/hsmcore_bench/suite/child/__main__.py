"""`python -m hsmcore_bench.suite.child JOB`: one contender."""

from __future__ import annotations

import sys

from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.suite.child.protocol import Job, Replies, Signer, one_at_a_time, serve


def open_signer(job: Job) -> Signer:
    """Only what this contender needs is imported: the others may be missing."""
    if job.kind in ("sign", "sign-many", "sign-open", "cache-hit"):
        from hsmcore_bench.suite.child.ours import OurSigner

        return OurSigner(job)
    if job.kind in ("pynacl", "cryptography"):
        from hsmcore_bench.suite.child.software import SoftwareSigner

        return SoftwareSigner(job)
    if job.kind == "recovery-rotation":
        from hsmcore_bench.suite.child.rotation import Rotating

        return Rotating(job)
    if job.kind.startswith("recovery-"):
        from hsmcore_bench.suite.child.recovery import Recovering

        return Recovering(job)
    if job.kind.startswith("failover-"):
        from hsmcore_bench.suite.child.failover import Switching

        return Switching(job)
    if job.kind == "pykcs11":
        from hsmcore_bench.suite.child.pykcs11 import PyKCS11Signer

        return PyKCS11Signer(job)
    if job.kind == "pkcs11-executor":
        from hsmcore_bench.suite.child.pypkcs11 import ExecutorSigner

        return ExecutorSigner(job)
    from hsmcore_bench.suite.child.pypkcs11 import ThreadSigner

    return ThreadSigner(job)


def main() -> int:
    die_with_parent()
    replies = Replies()
    try:
        job = Job.from_json(sys.argv[1])
        with one_at_a_time(job.turn):
            signer = open_signer(job)
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
