"""How a contender's process is started: its command line, and what its environment says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from hsmcore.members.control.process import python
from hsmcore_bench.harness import locate
from hsmcore_bench.harness.process import Child, MissingError, child_environment
from hsmcore_bench.suite.child.protocol import PIN_ENV, Job
from hsmcore_bench.suite.devices import DEVICES, punctual
from hsmcore_bench.suite.model import RAW, Contender, FailoverCase, HsmToken, Options, RecoveryCase
from hsmcore_bench.suite.softtoken import temporary_token, temporary_twins


@dataclass(frozen=True, slots=True)
class _Target:
    """What to sign on."""

    module: str
    token: str
    label: str
    access: Mapping[str, str]  # for the environment: the PIN, and where the module finds its configuration
    provider: str
    control: str | None = None


class Commands:
    """Starts children. Files that they need are gone when `stack` is closed."""

    def __init__(self, options: Options, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._turn = Path(stack.enter_context(TemporaryDirectory(prefix="hsmcore-bench-"))) / "turn"
        self._twins: tuple[list[str], str, Mapping[str, str]] | None = None
        self.hsm: HsmToken | None = None
        self.access: Mapping[str, str] = {}

    def start(self, contender: Contender) -> Child:
        """A child for the contender. Raises MissingError when something isn't there."""
        command, access = self._command(contender)
        with _clock(contender.device):
            return Child(command, child_environment(access))

    def start_recovery(self, case: RecoveryCase, sessions: int) -> Child:
        """A child that has something killed in each of its slices. Raises MissingError."""
        contender = Contender(
            case.name,
            case.title,
            "sign",
            case.name,
            None,
            token=case.token,
            in_flight=case.in_flight,
            sessions=sessions,
            isolation=case.isolation,
            device=case.device,
        )
        target = self._target(contender, control=True)
        if case.kind == "recovery-rotation":  # no other contender may meet what it makes on the token
            hsm, access = self._stack.enter_context(temporary_token(locate.SOFTHSM_MODULE))
            target = _Target(hsm.module, hsm.token, hsm.labels["ed25519"], access, "softhsm")
        job = self._job(contender, target, kind=case.kind)
        with _clock(case.device):
            return Child(_ours(job), child_environment(target.access))

    def start_failover(self, case: FailoverCase, sessions: int) -> Child:
        """A child whose primary member fails in each of its slices. Raises MissingError, ChildError."""
        if self._twins is None:
            self._twins = self._stack.enter_context(temporary_twins(locate.SOFTHSM_MODULE))
        labels, key, access = self._twins
        contender = Contender(case.name, case.title, "sign", case.name, None, sessions=sessions, isolation="thread")
        target = _Target(locate.SOFTHSM_MODULE, labels[0], key, access, "pkcs11")
        places = [self._place(target.module, case.device, label, control=True) for label in labels]
        places[0]["isolation"] = case.isolation
        job = self._job(contender, target, kind=case.kind, places=places)
        with _clock(case.device):
            return Child(_ours(job), child_environment(access))

    def ceiling(self, contender: Contender) -> float | None:
        """What the contender's device can do. Raises MissingError."""
        if contender.device is None:
            return None
        one = DEVICES[contender.device].ceiling(Path(require(locate.CHAOS_MODULE)).parent / "profiles")
        return None if one is None else one * max(contender.members, 1)

    def _command(self, contender: Contender) -> tuple[list[str], Mapping[str, str]]:
        if contender.kind == "cache-lookup":
            return [require(locate.CACHE_LOOKUP), "--message-bytes", str(self._message_bytes(contender))], {}
        if contender.kind == "hand-over":
            return [require(locate.HAND_OVER)], {}
        if contender.token == "none":
            return _ours(self._job(contender, _Target("", "", "", {}, ""))), {}
        if contender.members:
            return self._with_levels(contender)
        target = self._target(contender)
        if contender.kind in RAW:
            return [
                require(locate.RAW_SIGN),
                *("--module", target.module, "--token", target.token, "--label", target.label, "--pin-env", PIN_ENV),
                *("--threads", str(contender.in_flight), "--algorithm", contender.algorithm),
                *("--message-bytes", str(self._message_bytes(contender))),
                *(("--rate", str(self._per_second(contender))) if contender.kind == "raw-open" else ()),
            ], target.access
        return _ours(self._job(contender, target)), target.access

    def _with_levels(self, contender: Contender) -> tuple[list[str], Mapping[str, str]]:
        token = self._token(contender)
        if contender.device is None:
            # A configuration has no two members with one module, token and key.
            copies = [str(shutil.copy(token.module, self._folder())) for _ in range(contender.members - 1)]
            places = [{"module": module} for module in (token.module, *copies)]
        else:
            places = [self._place(token.module, contender.device, token.token) for _ in range(contender.members)]
        return _ours(self._job(contender, token, places=places)), token.access

    def _place(self, module: str, device: str, token: str, *, control: bool = False) -> dict[str, str]:
        """A device of its own: the loader knows modules by their files, so each has copies of both modules."""
        folder = self._folder()
        chaos = shutil.copy(require(locate.CHAOS_MODULE), folder / "device.so")
        wrapped = shutil.copy(module, folder / "token.so")
        configuration, socket = folder / "device.json", folder / "s" if control else None
        profiles = Path(require(locate.CHAOS_MODULE)).parent / "profiles"
        settings = DEVICES[device].configuration(str(wrapped), socket) | {"profileDir": str(profiles)}
        configuration.write_bytes(orjson.dumps(settings))
        place = {"module": str(chaos), "args": f"config={configuration}", "token": token}
        return place if socket is None else place | {"control": str(socket)}

    def _folder(self) -> Path:
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="hsmcore-bench-")))

    def _job(
        self,
        contender: Contender,
        target: _Target,
        kind: str | None = None,
        places: Sequence[dict[str, str]] = (),
    ) -> Job:
        rotate = kind == "recovery-rotation"
        return Job(
            kind=kind or contender.kind,
            module=target.module,
            token=target.token,
            label=target.label,
            algorithm=contender.algorithm,
            in_flight=contender.in_flight,
            sessions=contender.sessions,
            batch=contender.batch,
            message_bytes=self._message_bytes(contender),
            timed_every=contender.timed_every,
            watch_lag=contender.watch_lag,
            provider=target.provider,
            isolation=contender.isolation,
            verify=contender.verify,
            control=target.control,
            places=list(places),
            state=str(self._folder() / "state.db") if places or rotate or contender.policy else "",
            audit=contender.audit,
            audit_file="" if contender.audit is None else str(self._folder() / "audit.log"),
            scrape=contender.scrape,
            transactions=contender.transactions,
            policy=contender.policy,
            public=str(self._folder() / "public") if contender.publish else "",
            interval_ms=contender.interval_ms,
            strangers=contender.strangers,
            neighbour=contender.neighbour,
            blocks=contender.blocks,
            per_second=self._per_second(contender),
            share=contender.share or 0.0,
            rotate=rotate,
            turn=str(self._turn) if target.module else "",
        )

    def _per_second(self, contender: Contender) -> float:
        """Of requests that come at random. 0.0 of a share of what is not known beforehand."""
        return contender.per_second or (contender.share or 0.0) * (self.ceiling(contender) or 0.0)

    def _message_bytes(self, contender: Contender) -> int:
        return contender.message_bytes or self._options.message_bytes

    def _target(self, contender: Contender, *, control: bool = False) -> _Target:
        token = self._token(contender)
        return token if contender.device is None else self._behind_device(token, contender.device, control=control)

    def _token(self, contender: Contender) -> _Target:
        if contender.token == "noop":
            module = self._options.noop_module or require(locate.NOOP_MODULE)
            return _Target(module, "noop", "noop-key", {PIN_ENV: "0000"}, "pkcs11")
        hsm = self.hsm
        assert hsm is not None
        label = hsm.labels.get(contender.algorithm)
        if label is None:
            raise MissingError(f"no {contender.algorithm} key was named")
        provider = "softhsm" if "softhsm" in Path(hsm.module).name else "pkcs11"
        return _Target(hsm.module, hsm.token, label, self.access, provider)

    def _behind_device(self, token: _Target, device: str, *, control: bool) -> _Target:
        module = require(locate.CHAOS_MODULE)
        place = self._folder()
        socket, configuration = place / "s" if control else None, place / "device.json"
        configuration.write_bytes(orjson.dumps(DEVICES[device].configuration(token.module, socket)))
        listens = None if socket is None else str(socket)
        access = {**token.access, locate.CHAOS_CONFIG_ENV: str(configuration)}
        return _Target(module, token.token, token.label, access, token.provider, listens)


def _ours(job: Job) -> list[str]:
    """The command line of a contender in Python."""
    return python("-m", "hsmcore_bench.suite.child", job.to_json())


def require(name: str) -> str:
    """The path of what the build put beside the package. Raises MissingError."""
    path = locate.native(name)
    if path is None:
        raise MissingError(f"{name} was not built")
    return str(path)


def _clock(device: str | None) -> AbstractContextManager[None]:
    return nullcontext() if device is None else punctual()
