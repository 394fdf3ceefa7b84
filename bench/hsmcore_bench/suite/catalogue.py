"""The scenarios, as files: what each of `scenarios/*.toml` may say, and what it stands for on this machine.

A value that is a list stands for one contender for each of its values; `{field}` in a name, title, series or reference
is that contender's value. "cores" is the number of processors.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hsmcore.members.control.curves import Algorithm
from hsmcore_bench.suite.devices import DEVICES
from hsmcore_bench.suite.model import (
    Contender,
    Durability,
    FailoverCase,
    Isolation,
    Kind,
    RecoveryCase,
    Scenario,
    Strike,
    TokenName,
    VerifySignatures,
)

FOLDER = Path(__file__).parent / "scenarios"
_NAME = r"[a-z0-9]([a-z0-9-]*(\{[a-z_]+\})?)*"
_FIELD = re.compile(r"\{([a-z_]+)\}")
_TEXTS = ("name", "title", "series", "reference")

Name = Annotated[str, Field(pattern=rf"^{_NAME}$", max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1024)]
Counts = Annotated[list[Count], Field(min_length=1, max_length=64)]
Callers = Annotated[int, Field(ge=1, le=65_536)]
PerCore = Count | Counts | Literal["cores"]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Bytes = Annotated[int, Field(ge=4, le=1 << 20)]  # callers' messages differ in their first four bytes
Rate = Annotated[float, Field(gt=0, le=1e7)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class ContenderRow(_Part):
    """`[[contender]]`: the fields of model.Contender, some of which may be lists."""

    name: Name
    title: Text
    kind: Kind
    series: Text = ""
    reference: Name | None = None
    token: TokenName = "hsm"
    algorithm: Algorithm = "ed25519"
    in_flight: Callers | PerCore = 1
    sessions: PerCore = 1
    batch: Batch | Annotated[list[Batch], Field(min_length=1)] = 1
    message_bytes: Bytes | Annotated[list[Bytes], Field(min_length=1)] | None = None
    per_second: Rate | Annotated[list[Rate], Field(min_length=1)] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    latency_of: Text = "call"
    timed_every: Count = 1
    watch_lag: bool = False
    isolation: Isolation = "thread"
    verify: VerifySignatures = "never"
    audit: Durability | None = None
    scrape: bool = False
    transactions: bool = False
    policy: bool = False
    publish: bool = False
    interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 20
    strangers: Annotated[int, Field(ge=0, le=20_000)] = 0
    neighbour: Annotated[int, Field(ge=0, le=4096)] = 0
    blocks: Annotated[float, Field(ge=0, le=1)] = 0.0
    device: str | None = None
    members: Annotated[int, Field(ge=0, le=64)] | Counts = 0
    slices: Annotated[float, Field(gt=0, le=60)] = 1.0
    quick: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device is not None and self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}")
        if [self.per_second, self.share].count(None) != 2 - self.kind.endswith("-open"):
            raise ValueError('per_second or share belongs to kinds "sign-open" and "raw-open", which need one of them')
        for text in (self.name, self.title, self.series, self.reference or ""):
            for field in _FIELD.findall(text):
                if field not in type(self).model_fields or field in _TEXTS:
                    raise ValueError(f"{{{field}}} is no field of a contender")
            if "{" in _FIELD.sub("", text) or "}" in _FIELD.sub("", text):
                raise ValueError(f"a brace without its partner in {text!r}")
        lists = {name: len(value) for name, value in self if isinstance(value, list)}
        if len(set(lists.values())) > 1:
            raise ValueError(f"lists must be equally long: {', '.join(f'{n} has {c}' for n, c in lists.items())}")
        return self

    def contenders(self, scenario: str, group: str, cores: int) -> Iterator[tuple[Contender, bool]]:
        """One, or one for each value of its lists; and whether it takes part in a quick run."""
        own = {name: value for name, value in self if name != "quick"}
        for number in range(max([len(value) for value in own.values() if isinstance(value, list)], default=1)):
            values = {name: value[number] if isinstance(value, list) else value for name, value in own.items()}
            values = {name: cores if value == "cores" else value for name, value in values.items()}
            plain = {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}
            grouped = {n: f"{v:,g}" if isinstance(v, int | float) else v for n, v in values.items()}
            for name in _TEXTS:
                if values[name] is not None:
                    values[name] = values[name].format_map(grouped if name == "title" else plain)
            yield Contender(**values, group=group, scenario=scenario), self.quick


class KillRow(_Part):
    """`[[kill]]`: the fields of model.RecoveryCase."""

    name: Name
    title: Text
    kind: Literal["recovery-host", "recovery-sessions", "recovery-rotation"]
    times: Count
    token: Literal["hsm", "noop"]
    device: str | None = None
    isolation: Isolation = "thread"
    sessions: Count | None = None
    in_flight: Count = 64


class FailureRow(_Part):
    """`[[failure]]`: the fields of model.FailoverCase."""

    name: Strike
    title: Text
    times: Count
    device: str
    isolation: Isolation = "thread"
    seconds: Annotated[float, Field(gt=0, le=600)]
    quick_seconds: Annotated[float, Field(gt=0, le=600)]
    bound_ms: Annotated[float, Field(gt=0)] | None = None
    median_ms: Annotated[float, Field(gt=0)] | None = None


class ScenarioFile(_Part):
    title: Text
    about: Annotated[str, Field(max_length=1000)]
    order: Annotated[int, Field(ge=0, le=9999)]
    table: Literal["main", "apart"] = "apart"
    chart: Literal["bars", "curve", "parts", "open", "latency"] = "bars"
    x: Literal["in_flight", "sessions", "batch", "message_bytes", "members", "per_second"] | None = None
    sizes: Text | None = None
    words: list[Name] = []
    rounds: Annotated[int, Field(ge=1, le=1000)] | None = None
    quick: bool = True
    event: Literal["memory", "recovery", "failover-primary"] | None = None
    contender: list[ContenderRow] = []
    kill: list[KillRow] = []
    failure: list[FailureRow] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.chart in ("curve", "open")) != (self.x is not None):
            raise ValueError('x belongs to chart "curve" and "open", which need it')
        if not (self.contender or self.event):
            raise ValueError("needs a [[contender]] or an event")
        return self


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `name` is the file's."""

    name: str
    said: ScenarioFile

    @property
    def scenario(self) -> Scenario:
        return Scenario(self.name, **{f.name: getattr(self.said, f.name) for f in fields(Scenario) if f.name != "name"})


def read(path: Path) -> Entry:
    """Read one scenario file. Raises ValueError, which names the file and every place in it that is wrong."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return Entry(path.stem, ScenarioFile.model_validate(document))
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for fault in error.errors():
            problems.setdefault(_place(document, fault["loc"]), []).append(_problem(fault))
        told = [f"{place}: {', or '.join(dict.fromkeys(own))}" for place, own in problems.items()]
        raise ValueError(f"{path}: {'; '.join(told)}") from None


@cache
def shipped() -> tuple[Entry, ...]:
    """The files that come with hsmcore, in their order."""
    return tuple(sorted((read(path) for path in FOLDER.glob("*.toml")), key=lambda e: (e.said.order, e.name)))


def entries(own: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    """What is shipped, and the files at `own`. Raises ValueError; also when two contenders have one name, or a
    reference does not exist."""
    more = tuple(read(Path(path)) for path in own)
    everything = (*shipped(), *more)
    names = [entry.name for entry in everything]
    for entry in more:
        if names.count(entry.name) > 1:
            raise ValueError(f"{entry.name}.toml: there is a scenario of this name; choose another file name")
    found: dict[str, str] = {}
    everyone = [c for entry in everything for c, _ in expand(entry, 1)]
    for contender in everyone:
        if contender.name in found:
            raise ValueError(f"{contender.scenario}.toml: {contender.name} is in {found[contender.name]}.toml, too")
        found[contender.name] = contender.scenario
    for contender in everyone:
        if contender.reference is not None and contender.reference not in found:
            raise ValueError(f"{contender.scenario}.toml: {contender.name}: no contender {contender.reference}")
    return everything


def expand(entry: Entry, cores: int) -> Iterator[tuple[Contender, bool]]:
    """The contenders of one file, and whether each takes part in a quick run."""
    for row in entry.said.contender:
        for contender, quick in row.contenders(entry.name, entry.said.title, cores):
            yield contender, quick and entry.said.quick


def kills() -> tuple[RecoveryCase, ...]:
    return tuple(RecoveryCase(**row.model_dump()) for entry in shipped() for row in entry.said.kill)


def failures() -> tuple[FailoverCase, ...]:
    return tuple(FailoverCase(**row.model_dump()) for entry in shipped() for row in entry.said.failure)


def _place(document: Any, location: tuple[str | int, ...]) -> str:
    """`contender[2] (sign-8).in_flight`: a row is easier found by its name."""
    place, at = "", document
    for step in location:
        if isinstance(at, list) and isinstance(step, int) and step < len(at):
            at = at[step]
            name = at.get("name") if isinstance(at, dict) else None
            place += f"[{step}]" + (f" ({name})" if isinstance(name, str) else "")
        elif isinstance(at, dict):
            at = at.get(str(step))
            place += f".{step}" if place else str(step)
        else:
            break  # what follows are the alternatives of a union
    return place or "the file"


def _problem(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        known = {name for row in (ScenarioFile, ContenderRow, KillRow, FailureRow) for name in row.model_fields}
        near = get_close_matches(str(error["loc"][-1]), known, 1)
        return f'no such field; did you mean "{near[0]}"?' if near else "no such field"
    text: str = error["msg"]
    return text.removeprefix("Value error, ").replace("Input should", "should")
