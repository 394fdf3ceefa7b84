"""Checks of several kinds of providers: the configuration with its secret, and the pinned public key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from hsmcore.config import Config
from hsmcore.config.policy import BATCH_ROOT
from hsmcore.config.targets import MISSING, problem_of
from hsmcore.doctor.report import Step, fail, failed, ok, warn
from hsmcore.doctor.subject import Subject
from hsmcore.errors import HsmError


def check_configuration(subject: Subject, fetch: Callable[[], bytearray | None] | None) -> Iterator[Step]:
    """Check that no placeholder of an example is left, and that `fetch` returns the secret, which is then wiped."""
    where = subject.provider.where
    blanks = [path for path in subject.config.placeholders if path.startswith(f"{where}.config")]
    if blanks:
        yield Step(
            name="configuration",
            outcome="fail",
            found=f"placeholders are left: {', '.join(blanks)}",
            hint="Put in the real values.",
            configuration=True,
            data={"placeholders": blanks},
        )
        return
    if fetch is not None:
        try:
            secret = fetch()
        except HsmError as error:
            yield failed("configuration", error)
            return
        if secret is not None:
            secret[:] = bytes(len(secret))
    if any(path.startswith(f"{where}.config") for path in subject.config.plain_secrets):
        hint = 'Use {"env": "NAME"} or {"file": "path"}.'
        yield warn("configuration", f"{where}.config holds a secret in plain text", hint)
    else:
        yield ok("configuration", f"complete at {where}")


NAME: Final = "policy"


def check_policy(config: Config) -> Iterator[Step]:
    """Say what may be signed."""
    policy = config.key_manager.policy
    if policy is None:
        yield ok(NAME, "there is none: the key signs any bytes that a caller gives it", kinds=None)
        return
    kinds = list(policy.kinds)
    if "raw" in kinds:
        instead = (
            "messages of batches need it not (docs/BATCHING.md)"
            if BATCH_ROOT in kinds
            else "give the layer 2's own payloads a format (docs/POLICY.md)"
        )
        yield warn(
            NAME,
            f"the key signs {', '.join(kinds)}: raw bytes may mean anything to another program",
            f'Leave "raw" out of policy.kinds; {instead}.',
            kinds=kinds,
        )
    else:
        yield ok(NAME, f"the key signs {', '.join(kinds)}, and nothing else", kinds=kinds)


def check_emergency(config: Config) -> Iterator[Step]:
    """Warn of an emergency key that signs as soon as the only member is late."""
    failover = config.key_manager.active_failover
    if failover is None or not failover.emergency_mode_enabled or failover.emergency_delay_ms != 0:
        return
    if sum(level != "emergency" for level, _ in config.key_manager.members()) == 1:
        yield warn(
            "emergency",
            "emergencyDelayMs is 0: the emergency key signs as soon as the only member is late, as on a busy machine",
            "Leave emergencyDelayMs out: then it takes 2 s, a failed probe or an error of the device.",
        )


def check_notices(config: Config) -> Iterator[Step]:
    """Check that notices can be sent to each target; none is."""
    rules = config.key_manager.notices
    if rules is None:
        return
    found = [(target.where, problem_of(target)) for target in rules.targets]
    data = {"targets": [{"path": path, "problem": problem} for path, problem in found]}
    problems = "; ".join(f"{path}: {problem}" for path, problem in found if problem)
    if problems:
        wrong = any(problem not in ("", MISSING) for _, problem in found)
        yield fail("notices", problems, _TARGET_HINT, **data).model_copy(update={"configuration": wrong})
    else:
        yield ok("notices", f"apprise understands {len(found)} targets: hsmcore notices test sends to each", **data)


_TARGET_HINT: Final = "Write the address as its service's page of appriseit.com says, then: hsmcore notices test"
