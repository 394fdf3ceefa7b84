"""Known issues of modules, as data: one row for each issue.

Each row was measured on the module, read in its source, or is documented by its vendor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hsmcore.doctor.context import ProbeContext
from hsmcore.doctor.report import Step, ok, warn


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue. A condition that is None or 0 always holds; one about the algorithm also where that is unknown."""

    module: str
    name: str
    text: str
    hint: str = ""
    below: tuple[int, int] | None = None
    """The first version of the library without the issue."""
    isolation: str | None = None
    algorithm: str | None = None
    more_sessions_than: int = 0
    sessions_given: bool = False
    """Only if the configuration says how many sessions."""
    note: bool = False
    """Every workaround has its own price, so it is told and not warned of."""

    def concerns(self, context: ProbeContext) -> bool:
        question = context.question
        key = getattr(context, "key", None)  # not there unless the token showed it
        algorithm = question.algorithm or (None if key is None else key.algorithm)
        return (
            self.module == context.quirks.name
            and (self.below is None or context.info.library < self.below)
            and self.isolation in (None, question.isolation)
            and (self.algorithm is None or algorithm in (None, self.algorithm))
            and question.sessions > self.more_sessions_than
            and question.sessions_given >= self.sessions_given
        )


ISSUES: Final = (
    Issue(
        "softhsm",
        "signature-leak",
        "SoftHSM before 2.7 leaks some 64 bytes of memory with each Ed25519 signature: 64 MB a million",
        'Isolation "process" with hostMemoryLimitBytes bounds that, and 2.7 is free of it.',
        below=(2, 7),
        algorithm="ed25519",
        note=True,
    ),
    Issue(
        "softhsm",
        "logout-crash",
        "SoftHSM before 2.7 can crash in C_Logout while another thread is inside the module",
        'Isolation "process" keeps a crash out of the application, and 2.7 is free of it.',
        below=(2, 7),
        isolation="thread",
        note=True,
    ),
    Issue(
        "softhsm",
        "truncated-object",
        "SoftHSM before 2.7 may leave a truncated token.object if its process is killed while it logs in",
        'So keep a copy of the token\'s folder, and for keys that matter isolation "thread", which kills no process.',
        below=(2, 7),
        note=True,
    ),
    Issue(
        "yubihsm",
        "no-read-timeout",
        "yubihsm_pkcs11 has no read timeout: a connector that hangs keeps C_Sign from ever returning",
        'Use isolation "process": the host is killed when its calls overrun, and started again.',
        isolation="thread",
    ),
    Issue(
        "yubihsm",
        "one-at-a-time",
        "a YubiHSM 2 signs one message at a time; more sessions on one connector only wait",
        "Set sessions to the number of connectors.",
        more_sessions_than=16,
    ),
    Issue(
        "aws-cloudhsm",
        "ed25519-mode",
        "AWS CloudHSM signs Ed25519 on hsm2m.medium in non-FIPS mode only, and messages of 16,000 bytes at most",
        "Check the cluster's HsmType and Mode (aws cloudhsmv2 describe-clusters).",
        algorithm="ed25519",
    ),
    Issue(
        "tpm2",
        "one-session",
        "sessions of tpm2-pkcs11 disturb each other and can crash: hsmcore signs with one, whatever sessions says",
        "Set sessions to 1 or leave it out; a TPM works on one command at a time, more sessions would only wait.",
        more_sessions_than=1,
        sessions_given=True,
    ),
    Issue(
        "tpm2",
        "concurrent-crash",
        "tpm2-pkcs11 can crash while two threads are inside it, such as one that makes a key beside one that signs",
        'Use isolation "process": a crash then costs a restart of the host and not of the application.',
        isolation="thread",
    ),
)


def check_issues(context: ProbeContext) -> Iterator[Step]:
    """Warn of each issue that concerns this module in this configuration."""
    found = [issue for issue in ISSUES if issue.concerns(context)]
    for issue in found:
        if issue.note:
            yield ok("known-issues", f"{issue.text}. {issue.hint}".rstrip(". "), issue=issue.name)
        else:
            yield warn("known-issues", issue.text, issue.hint, issue=issue.name)
    if not found:
        yield ok("known-issues", "none is known")
