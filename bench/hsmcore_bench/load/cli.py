"""The `load` command."""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hsmcore.cli.output import FAILED, INTERRUPTED, BadUsage, print_json
from hsmcore.cli.settings import JsonOption, load_config
from hsmcore_bench.harness.signals import raising

if TYPE_CHECKING:
    from hsmcore_bench.load.objectives import Objective
    from hsmcore_bench.load.run import Plan
    from hsmcore_bench.load.target import Target, Wanted

_RATE: Final = "1000"
app = typer.Typer()


@app.command()
def load(
    path: Annotated[
        str,
        typer.Option(
            help="What is measured: facade (await km.sign), ring (the engine alone), raw (C, for comparison)."
        ),
    ] = "facade",
    rate: Annotated[
        str, typer.Option(help="Requests per second, or a share of what raw C reaches on the token: 80%.")
    ] = _RATE,
    share_of: Annotated[
        str,
        typer.Option(help="What a rate in % is a share of: raw (what raw C signs), path (what --path itself does)."),
    ] = "raw",
    shape: Annotated[str, typer.Option(help="constant, ramp, spike or soak.")] = "constant",
    peak: Annotated[str | None, typer.Option(help="The rate that a ramp ends with, or that a spike has.")] = None,
    duration: Annotated[
        str | None, typer.Option(help="How long, such as 30s or 10m (default: 10s, ramp and spike 30s, soak 10m).")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the rate.")] = 1,
    arrivals: Annotated[
        str, typer.Option(help="uniform: evenly spaced; poisson: at random, as callers come.")
    ] = "uniform",
    mix: Annotated[
        str | None,
        typer.Option(metavar="NAME=SHARE:BYTES,…", help="What is signed; repeats=SHARE sends earlier messages again."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Of each request (default: the configuration's requestTimeoutMs).")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="WHEN:FUNCTION:ACTION", help="A fault, such as 5s:C_Sign:hang:200ms. Repeatable."),
    ] = None,
    timeline: Annotated[Path | None, typer.Option(metavar="FILE", help="Faults from a JSON file.")] = None,
    chaos: Annotated[
        str | None,
        typer.Option(metavar="PROFILE|FILE|none", help="Put the chaos module in front: as a device, or plain (none)."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="'FIGURE < LIMIT'", help="What must be achieved, such as 'p99 < 10ms'. Repeatable."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify every signature afterwards.")] = False,
    beside_raw: Annotated[
        bool, typer.Option("--beside-raw", help="In turn with raw C at the same rate; for the figures 'ratio p99.9'.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Turns of each with --beside-raw.")] = 5,
    hdr: Annotated[Path | None, typer.Option(metavar="FILE", help="Write HdrHistogram logs of each second.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write charts over time, and the figures.")
    ] = None,
    noop: Annotated[
        bool, typer.Option("--noop", help="Load the module that does nothing: the cost of hsmcore.")
    ] = False,
    algorithm: Annotated[str, typer.Option(help="Of the key on the token that is made.")] = "ed25519",
    sessions: Annotated[int | None, typer.Option(min=1, max=1024, help="Sessions, one worker each.")] = None,
    cache: Annotated[int | None, typer.Option(min=0, help="Signatures that the cache holds (default: none).")] = None,
    isolation: Annotated[str | None, typer.Option(help="thread or process: where the module is loaded.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="With an audit log, on the token that is made.")] = False,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Load running gateways: unix:/path, tls:host:port (--tls), with commas."),
    ] = None,
    key_manager: Annotated[str, typer.Option(metavar="NAME", help="Of the gateway.")] = "default",
    connections: Annotated[int, typer.Option(min=1, max=64, help="To the gateway, of each process.")] = 1,
    tls: Annotated[
        str | None, typer.Option(metavar="CERTIFICATE,KEY,AUTHORITIES", help="PEM files for a tls: gateway.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of messages, their order, and Poisson arrivals.")] = 1,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="PATH", help="Load what this configuration names instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign at a given rate, whatever happens, and say how long it took from when each request should have started.

    Without --config it makes a SoftHSM token in a temporary folder and removes it. Every request has a planned start;
    latency counts from there (coordinated omission corrected), with the uncorrected figure beside it. No request may be
    lost, answered twice or, with --verify, wrong; none may fail unless faults are injected or an objective allows it.

    Exit code: 0, 1 (an objective was missed, or it could not run), 2 (bad usage).

    Examples:

      hsmcore load --rate 80% --duration 60s --objective 'p99.9 < 20ms'

      hsmcore load --rate 80% --beside-raw --objective 'ratio p99.9 <= 2x'

      hsmcore load --rate 90% --share-of path --shape soak --isolation process --verify

      hsmcore load --shape ramp --rate 1000 --peak 20000 --html ramp.html

      hsmcore load --mix transactions=0.9:180-1232,repeats=0.1 --cache 9000

      hsmcore load --fault 'every 5s:C_Sign:return:CKR_DEVICE_ERROR' --verify

      hsmcore load --noop --path ring --sessions 1 --rate 100000

      hsmcore load --gateway unix:/run/hsmcore/sign.sock --rate 20000 --connections 4

      hsmcore load --config sequencer.json --rate 50 --objective 'failed = 0'
    """
    from hsmcore_bench.load.problems import UsageProblem

    given = {name: value for name, value in locals().items() if name not in ("UsageProblem", "as_json", "html")}
    try:
        asked = _Asked.of(given)
        with raising(lambda _number: KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
            result = _run(asked, given)
    except UsageProblem as problem:
        raise BadUsage(str(problem)) from None
    if html is not None:
        _write_page(html, result)
    if as_json:
        print_json(result)
    else:
        from hsmcore_bench.load.report import text_of

        print(text_of(result))
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)
    if not result["ok"]:
        raise typer.Exit(FAILED)


def _write_page(path: Path, result: Mapping[str, Any]) -> None:
    from hsmcore_bench.load.picture import page

    try:
        path.write_text(page(result), encoding="utf-8")
    except OSError as error:
        raise BadUsage(f"--html {path}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options, parsed: everything that can be wrong is found before anything is made."""

    given: Mapping[str, Any]
    rate: tuple[float, bool]
    peak: tuple[float, bool] | None
    seconds: float
    objectives: Sequence[Objective]
    wanted: Wanted
    plan: Plan
    """Its segments are put in when the capacity of the token is known."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Asked:
        from hsmcore.members.control.curves import ALGORITHMS
        from hsmcore_bench.load.faults import fault_of, timeline_of
        from hsmcore_bench.load.generator import PATHS
        from hsmcore_bench.load.mix import DEFAULT, kinds_of
        from hsmcore_bench.load.objectives import objective_of
        from hsmcore_bench.load.run import Plan
        from hsmcore_bench.load.shapes import segments_of, shape_of
        from hsmcore_bench.load.target import Wanted
        from hsmcore_bench.load.units import positive_seconds, rate_of

        _choice("--path", given["path"], PATHS)
        _choice("--share-of", given["share_of"], ("raw", "path"))
        _choice("--arrivals", given["arrivals"], ("uniform", "poisson"))
        _choice("--algorithm", given["algorithm"], ALGORITHMS)
        if given["isolation"] is not None:
            _choice("--isolation", given["isolation"], ("thread", "process"))
        _check_together(given)
        shape = shape_of(given["shape"])
        rate = rate_of(given["rate"], "--rate")
        peak = rate_of(given["peak"], "--peak") if given["peak"] is not None else None
        seconds = positive_seconds(given["duration"], "--duration") if given["duration"] is not None else shape.seconds
        segments_of(given["shape"], 1.0, None if peak is None else 1.0, seconds)
        objectives = [objective_of(text) for text in given["objective"] or ()]
        if not given["beside_raw"] and any(objective.metric.startswith("ratio") for objective in objectives):
            raise BadUsage("--objective: a ratio needs --beside-raw")
        faults = [fault_of(text) for text in given["fault"] or ()]
        if given["timeline"] is not None:
            faults += timeline_of(given["timeline"])
        chaos = given["chaos"]
        if chaos is None and faults and given["config"] is None:
            chaos = ""
        verify = given["verify"] or any(objective.metric == "wrong" for objective in objectives)
        wanted = Wanted(
            given["algorithm"],
            given["sessions"],
            given["cache"],
            given["isolation"],
            given["audit"],
            "" if chaos == "none" else chaos,
        )
        plan = Plan(
            given["path"],
            (),
            kinds_of(given["mix"] or DEFAULT),
            given["processes"],
            given["arrivals"] == "poisson",
            given["seed"],
            positive_seconds(given["timeout"], "--timeout") if given["timeout"] is not None else None,
            verify,
            faults,
            given["hdr"],
        )
        objectives += map(objective_of, _standing_objectives(objectives, verify=verify, faulty=bool(faults)))
        return cls(given, rate, peak, seconds, objectives, wanted, plan)


def _standing_objectives(objectives: Sequence[Objective], *, verify: bool, faulty: bool) -> list[str]:
    """What goes without saying, unless something is said about it."""
    said = {objective.metric for objective in objectives}
    standing = ["lost", "twice", *(["wrong"] if verify else []), *([] if faulty else ["failed"])]
    return [f"{metric} = 0" for metric in standing if metric not in said]


def _check_together(given: Mapping[str, Any]) -> None:
    if given["gateway"] is not None:
        here = ("config", "noop", "audit", "chaos", "fault", "timeline", "beside_raw", "sessions", "cache", "isolation")
        for name in here:
            if given[name]:
                raise BadUsage(f"--{name.replace('_', '-')} is for a token that is opened here: leave --gateway out")
        if given["path"] != "facade" or given["rate"].endswith("%"):
            raise BadUsage("--gateway is loaded by await sign, at a rate that is a number")
    if given["config"] is not None:
        for name in ("noop", "audit"):
            if given[name]:
                raise BadUsage(f"--{name} is for a token that is made here: leave --config out")
    if given["path"] == "raw" and given["fault"] and any(":crash" in text for text in given["fault"]):
        raise BadUsage("--path raw: a crash would end the reference itself")
    if given["path"] != "facade" and given["isolation"] == "process":
        raise BadUsage("--isolation process is the key manager's: use --path facade")


def _choice(option: str, value: str, known: Sequence[str] | Mapping[Any, Any]) -> None:
    if value not in known:
        raise BadUsage(f"{option} {value}: expected one of {', '.join(known)}")


def _run(asked: _Asked, given: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import replace

    from hsmcore_bench.harness.environment import ProcessorTimes, describe
    from hsmcore_bench.load.beside import run_beside
    from hsmcore_bench.load.capacity import measure
    from hsmcore_bench.load.progress import watcher
    from hsmcore_bench.load.report import result_of
    from hsmcore_bench.load.run import Tick, run
    from hsmcore_bench.load.shapes import segments_of

    with watcher() as watch, _target(asked) as target:
        capacity = None
        if asked.rate[1] or (asked.peak is not None and asked.peak[1]):
            watch(Tick("measuring the token's capacity", 0, 1))
            capacity = measure(target, asked.plan.kinds, asked.plan.path if given["share_of"] == "path" else "raw")
        rate, peak = (
            None if r is None else r[0] * (capacity or 1.0) if r[1] else r[0] for r in (asked.rate, asked.peak)
        )
        plan = replace(asked.plan, segments=segments_of(given["shape"], rate or 0.0, peak, asked.seconds))
        environment, before, own = describe(), ProcessorTimes.read(), _own_seconds()
        reference = None
        if given["beside_raw"]:
            outcome, reference = run_beside(plan, target, watch, given["rounds"])
        else:
            outcome = run(plan, target, watch)
        after, spent = ProcessorTimes.read(), _own_seconds() - own
        environment |= {
            "others": before.others_share(after, spent),
            "stolen": before.stolen_share(after),
            "processor_seconds": spent,
        }
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        manager = target.config.key_manager
        settings |= {
            "rate": rate,
            "peak": peak,
            "duration": asked.seconds,
            "capacity": capacity,
            "verify": plan.verify,
            "timeout": plan.timeout or manager.request_timeout_ms / 1e3,
            "cache": manager.max_cache_size,
            "sessions": getattr(manager.config, "sessions", None),
            "queueSize": manager.queue_size,
            "isolation": getattr(manager.config, "isolation", None),
            "chaos": asked.wanted.chaos,
        }
        return result_of(plan, target, outcome, asked.objectives, settings, environment, reference)


def _target(asked: _Asked) -> AbstractContextManager[Target]:
    import json

    from hsmcore_bench.load.problems import UsageProblem
    from hsmcore_bench.load.target import behind_gateway, configured, noop_token, own_token

    given = asked.given
    if given["gateway"] is not None:
        return behind_gateway(given["gateway"], given["key_manager"], given["connections"], given["tls"])
    path: Path | None = asked.given["config"]
    if path is None:
        return noop_token(asked.wanted) if asked.given["noop"] else own_token(asked.wanted)
    config = load_config(path, None)
    if asked.plan.processes > 1 and config.key_manager.audit_log_file is not None and asked.plan.path == "facade":
        raise UsageProblem(
            "--processes: one audit log belongs to one process; leave auditLogFile out, or use one process"
        )
    return configured(config, json.loads(path.read_bytes()), asked.wanted)


def _own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
