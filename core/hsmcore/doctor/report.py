"""The report: plain data, printed by `hsmcore doctor` and returned as JSON by `--json`.

The models are the schema: `hsmcore doctor --schema` prints it as JSON Schema. Fields are only ever added.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from hsmcore.base.log import printable
from hsmcore.base.receipt import LevelName
from hsmcore.errors import ConfigurationError, HsmError

Outcome = Literal["ok", "warn", "fail", "skipped"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Step(_Model):
    """The result of one check."""

    name: str = Field(description="Which check: a word of its own, the same in every report.")
    outcome: Outcome
    found: str = Field(description="What was found, as a sentence without a full stop.")
    hint: str = Field("", description="What to do next; empty where there is nothing to do.")
    configuration: bool = Field(False, description="Whether the fault is the configuration's own (exit code 2).")
    data: dict[str, Any] = Field(default_factory=dict, description="The same as numbers and names.")


class Identity(_Model):
    """A public key that a provider signs with."""

    fixed: bool = Field(description="False: the key is made anew at each start, so it has no identity before.")
    algorithm: str
    key_id: str | None = Field(None, description="CKA_ID in hexadecimal, or the provider's own id.")
    label: str | None = None
    public_key: str | None = Field(None, description="In hexadecimal: 32 bytes, or 04 || X || Y.")
    address: str | None = Field(None, description="The same as a Solana address (base58); Ed25519 only.")


class ProviderReport(_Model):
    """The steps of one provider, and its identity."""

    name: str
    type: str
    level: LevelName
    where: str = Field(description="The provider's JSON path in the configuration.")
    steps: tuple[Step, ...]
    identity: Identity | None = None

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of its steps."""
        return worst(self.steps)


class DoctorReport(_Model):
    """The output of `hsmcore doctor --json`."""

    schema_version: Literal[1] = 1
    version: str = Field(description="Of hsmcore.")
    outcome: Outcome
    exit_code: Literal[0, 1, 2]
    providers: tuple[ProviderReport, ...]

    @classmethod
    def of(cls, version: str, providers: tuple[ProviderReport, ...]) -> DoctorReport:
        """Return the report with its exit code: 2 if the configuration is at fault, else 1 if anything failed."""
        steps = tuple(step for provider in providers for step in provider.steps)
        failed = [step for step in steps if step.outcome == "fail"]
        code: Literal[0, 1, 2] = 2 if any(step.configuration for step in failed) else 1 if failed else 0
        return cls(version=version, outcome=worst(steps), exit_code=code, providers=providers)


def worst(steps: tuple[Step, ...]) -> Outcome:
    """Return "fail", "warn" or "ok". Skipped steps do not count."""
    found = {step.outcome for step in steps}
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


def ok(name: str, found: str, **data: Any) -> Step:
    return Step(name=name, outcome="ok", found=found, data=data)


def warn(name: str, found: str, hint: str = "", **data: Any) -> Step:
    return Step(name=name, outcome="warn", found=found, hint=hint, data=data)


def fail(name: str, found: str, hint: str = "", **data: Any) -> Step:
    return Step(name=name, outcome="fail", found=found, hint=hint, data=data)


def skipped(name: str, found: str) -> Step:
    return Step(name=name, outcome="skipped", found=found)


def failed(name: str, error: HsmError) -> Step:
    """Return the step of a check that ended with an error."""
    what = str(error).removesuffix(error.hint).rstrip().removesuffix(".")
    data: dict[str, Any] = {"status": error.status}
    if error.call:
        data["call"] = error.call
    if error.ckr is not None:
        data |= {"ckr": error.ckr, "ckrName": error.ckr_name}
    return Step(
        name=name,
        outcome="fail",
        found=printable(what),
        hint=error.hint,
        configuration=isinstance(error, ConfigurationError),
        data=data,
    )
