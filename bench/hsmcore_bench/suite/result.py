"""The result of a run, and the form that it has as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from hsmcore_bench.suite.contenders import MEMORY
from hsmcore_bench.suite.failover import FAILOVER
from hsmcore_bench.suite.model import (
    Break,
    Contender,
    Memory,
    Percentiles,
    Sample,
    Scenario,
    Spread,
    Summary,
    Switch,
    Verdict,
)
from hsmcore_bench.suite.resilience import RECOVERY
from hsmcore_bench.suite.targets import judge

JSON_FORMAT = 2


@dataclass
class Result:
    started: str  # ISO 8601, UTC
    environment: dict[str, Any]
    rounds: int
    slice_seconds: float
    message_bytes: int
    contenders: list[Contender]
    scenarios: list[Scenario] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    memory: Memory | None = None
    recovery: list[Break] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # contender -> why it could not run here
    failed: dict[str, str] = field(default_factory=dict)  # contender -> what went wrong
    timing_ns: dict[str, float] = field(default_factory=dict)  # contender -> cost of taking one latency
    summaries: list[Summary] = field(default_factory=list)
    interrupted: bool = False
    """Whether it has fewer rounds, or scenarios, than were asked for."""

    def by_round(self) -> dict[int, dict[str, Sample]]:
        rounds: dict[int, dict[str, Sample]] = {}
        for sample in self.samples:
            rounds.setdefault(sample.round, {})[sample.contender] = sample
        return rounds

    @cached_property
    def targets(self) -> list[Verdict]:
        """The verdicts on these rounds. They are made when they are asked for, also those of a file: so files of all
        versions are held against the targets of this one."""
        return self.verdicts()

    def verdicts(self) -> list[Verdict]:
        """On each target of which it has something, by the rounds so far."""
        measured = {MEMORY: self.memory, RECOVERY: self.recovery, FAILOVER: self.switches}
        chosen = {contender.name for contender in self.contenders}
        chosen |= {event for event, found in measured.items() if found or event in self.skipped | self.failed}
        return judge(self.by_round().values(), self.memory, chosen, self.recovery, self.switches)

    def to_dict(self) -> dict[str, Any]:
        """Samples are columns by contender: `samples["raw"]["latency_ns.p50"][0]` belongs to `["raw"]["round"][0]`.
        Contenders are without the fields that have their default."""
        plain = [
            {f.name: value for f in fields(c) if (value := getattr(c, f.name)) != f.default} for c in self.contenders
        ]
        verdicts = [asdict(verdict) for verdict in self.targets]
        own = asdict(self) | {"contenders": plain, "samples": self._columns(), "targets": verdicts}
        return {"format": JSON_FORMAT, **own}

    def _columns(self) -> dict[str, dict[str, list[Any]]]:
        rows: dict[str, list[dict[str, Any]]] = {}
        for sample in self.samples:
            rows.setdefault(sample.contender, []).append(_flat(asdict(sample)))
        columns = {}
        for contender, own in rows.items():
            keys = dict.fromkeys(key for row in own for key in row if key != "contender")
            columns[contender] = {key: [row.get(key) for row in own] for key in keys}
        return columns

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of to_dict, but that verdicts are made again; of an excerpt, which has none, there are none.
        Raises ValueError for a file of another format."""
        if data.get("format") != JSON_FORMAT:
            raise ValueError(f"not a benchmark result of format {JSON_FORMAT}")
        fields = {key: value for key, value in data.items() if key != "format"}
        fields["contenders"] = [Contender(**item) for item in data["contenders"]]
        fields["scenarios"] = [Scenario(**item) for item in data["scenarios"]]
        fields["samples"] = [s for name, columns in data["samples"].items() for s in _samples(name, columns)]
        fields["summaries"] = [_summary(item) for item in data["summaries"]]
        fields["recovery"] = [Break(**item) for item in data.get("recovery", ())]
        fields["switches"] = [Switch(**item) for item in data.get("switches", ())]
        judged = fields.pop("targets")
        if (memory := data["memory"]) is not None:
            fields["memory"] = Memory(tuple(memory["signatures"]), tuple(memory["rss_bytes"]))
        made = cls(**fields)
        if not judged:
            made.targets = []
        return made


def _spread(data: Mapping[str, float] | None) -> Spread | None:
    return None if data is None else Spread(**data)


def read_percentiles(data: Mapping[str, float] | None) -> Percentiles | None:
    return None if data is None else Percentiles(**data)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, without what is None; six figures of a measured number, because what is beyond
    is noise, and most of a file."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in _flat(value).items()}
        elif value is not None:
            flat[key] = float(f"{value:.6g}") if isinstance(value, float) else value
    return flat


def _samples(contender: str, columns: Mapping[str, Sequence[Any]]) -> Iterator[Sample]:
    for row in zip(*columns.values(), strict=True):
        data: dict[str, Any] = {"latency_ns": None}
        for key, value in zip(columns, row, strict=True):
            outer, _, inner = key.partition(".")
            if inner and value is not None:
                data[outer] = (data.get(outer) or {}) | {inner: value}
            elif not inner:
                data[outer] = value
        times = {key: read_percentiles(data.get(key)) for key in ("latency_ns", "lag_ns")}
        yield Sample(contender=contender, **{**data, **times})


def _summary(data: Mapping[str, Any]) -> Summary:
    return Summary(
        **{
            **data,
            "rate": Spread(**data["rate"]),
            "ratio": _spread(data["ratio"]),
            "of_ceiling": _spread(data.get("of_ceiling")),
        }
    )
