"""The steps of a rotation and their order: pure, without I/O. `Run` holds the whole state of a rotation.

A step's beginning is durable before its effect, its end after it. So after a crash the step that was begun is done once
more, and every effect is idempotent. Until `activate` a failure undoes the steps done, newest first, and the old key
has never stopped signing. From `activate` on there is only forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

Status = Literal["running", "undoing", "overlap", "done", "failed", "aborted"]
StepName = Literal[
    "approve",
    "backup-old",
    "generate",
    "pin",
    "backup-new",
    "drill",
    "replicate",
    "notify",
    "handover",
    "activate",
    "deactivate",
    "destroy",
]


@dataclass(frozen=True, slots=True)
class RotationStep:
    name: StepName
    undone: bool = False
    """Whether undoing it has an effect."""


NAMES: Final[tuple[StepName, ...]] = get_args(StepName)
STEPS: Final = tuple(RotationStep(name, undone=name in ("generate", "drill", "handover")) for name in NAMES)
_SWITCH: Final = NAMES.index("activate")
OPEN: Final = ("running", "undoing", "overlap")
"""Statuses with which a run goes on after a restart."""
SECOND: Final = 1_000_000_000
MOST_WAIT_NS: Final = 3600 * SECOND
"""Longest wait of a step that failed, or that waits for something else than a date."""


@dataclass(frozen=True, slots=True)
class Run:
    """One rotation. `step`: the next one to do or undo. Times are Unix nanoseconds."""

    status: Status = "running"
    step: StepName = NAMES[0]
    begun: bool = False
    """Whether `step` was begun: it may have had its effect."""
    wait_ns: int = 0
    """Nothing is done before this time."""
    tries: int = 0
    """Failures of the present step, if failing means trying again."""
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    kind: Literal["do", "undo", "wait", "end"]
    step: StepName
    until_ns: int = 0


def next_action(run: Run, now_ns: int) -> Action:
    """Return the present task."""
    if run.status not in OPEN:
        return Action("end", run.step)
    if now_ns < run.wait_ns:
        return Action("wait", run.step, run.wait_ns)
    return Action("undo" if run.status == "undoing" else "do", run.step)


def begun(run: Run) -> Run:
    """Note that the step is about to have its effect."""
    return replace(run, begun=True)


def done(run: Run, wait_ns: int = 0) -> Run:
    """Note that the step was done, or undone. The next one begins no sooner than `wait_ns`."""
    index = NAMES.index(run.step)
    if run.status == "undoing":
        return _undo_from(replace(run, tries=0), index - 1)
    if index + 1 == len(STEPS):
        return replace(run, status="done", begun=False, wait_ns=0, tries=0)
    status: Status = "overlap" if index >= _SWITCH else "running"
    return replace(run, status=status, step=NAMES[index + 1], begun=False, wait_ns=wait_ns, tries=0)


def pending(run: Run, until_ns: int) -> Run:
    """Note that the step cannot be done yet, for example without an approval: look again at that time."""
    return replace(run, wait_ns=until_ns)


def failed(run: Run, now_ns: int) -> Run:
    """Note that the step failed. Before the switch every step is undone, with a possible effect of this one. A step
    that cannot be undone is tried again, later each time."""
    if can_abort(run):
        return _undo_from(run, NAMES.index(run.step))
    tries = run.tries + 1
    return replace(run, tries=tries, wait_ns=now_ns + min(SECOND * 2 ** min(tries, 12), MOST_WAIT_NS))


def abort(run: Run) -> Run:
    """End the rotation on request. Once the key was switched this changes nothing."""
    return _undo_from(replace(run, aborted=True), NAMES.index(run.step)) if can_abort(run) else run


def can_abort(run: Run) -> bool:
    """Return whether `abort` would end it."""
    return run.status == "running" and NAMES.index(run.step) < _SWITCH


def _undo_from(run: Run, index: int) -> Run:
    while index >= 0 and not STEPS[index].undone:
        index -= 1
    if index < 0:
        return replace(run, status="aborted" if run.aborted else "failed", step=NAMES[0], begun=False, wait_ns=0)
    return replace(run, status="undoing", step=NAMES[index], begun=False, wait_ns=0)
