"""The checks of a PKCS#11 module in their order, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from hsmcore.doctor import checks, keychecks, signing
from hsmcore.doctor.context import ProbeContext
from hsmcore.doctor.issues import check_issues
from hsmcore.doctor.report import Step


@dataclass(frozen=True, slots=True)
class Check:
    """One check. It is skipped unless all of `needs` ran without a failure."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[ProbeContext], Iterator[Step]]
    wants_pin: bool = False


CHECKS: Final = (
    Check("module", (), checks.check_module),
    Check("token", ("module",), checks.check_token),
    Check("token-state", ("token",), checks.check_token_state),
    Check("login", ("token-state",), checks.check_login, wants_pin=True),
    Check("sessions", ("login",), checks.check_sessions),
    Check("key", ("login",), keychecks.check_key),
    Check("known-issues", ("module",), check_issues),  # behind "key", which tells the algorithm
    Check("mechanism", ("key",), keychecks.check_mechanism),
    Check("attributes", ("key",), keychecks.check_attributes),
    Check("public-key", ("key",), keychecks.check_public_key),
    Check("signature", ("mechanism", "public-key"), signing.check_signature),
    Check("privileges", ("key",), keychecks.check_privileges),
    Check("backup", ("key",), keychecks.check_backup),
)
BY_NAME: Final = {check.name: check for check in CHECKS}
