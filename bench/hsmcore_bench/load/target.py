"""On which token a load test signs: one of its own, the module that does nothing, or what a configuration names."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Final

from hsmcore.config import Config, Pkcs11Settings, Provider, load
from hsmcore.errors import BadArgument, HsmError, ModuleMissing
from hsmcore.manager.rotation.pinned import as_started
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.provision import provision
from hsmcore.members.control.softhsm import find_softhsm
from hsmcore_bench.harness.locate import CHAOS_CONFIG_ENV, CHAOS_MODULE, NOOP_MODULE, native
from hsmcore_bench.harness.softhsm import token_folder, variable, write_private
from hsmcore_bench.load.problems import UsageProblem

TOKEN_LABEL: Final = "hsmcore-load"
KEY_LABEL: Final = "load-key"
_CKR_DEVICE_MEMORY: Final = 0x31
_PREFIX: Final = "hsmcore-load-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a token of our own should be, or how a configured one is changed."""

    algorithm: Algorithm = "ed25519"
    sessions: int | None = None
    cache: int | None = None
    isolation: str | None = None
    audit: bool = False
    chaos: str | None = None
    """A profile or a file of docs/CHAOS.md that goes between us and the module; "": the chaos module as it is."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to sign. `document` is what a key manager is made of, `config` the same, checked."""

    name: str
    document: dict[str, Any]
    config: Config
    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: Sequence[str] = ()
    """Patterns that the control sockets of the chaos modules match; none: there is no chaos module."""
    honest: bool = True
    """False: signatures are no signatures."""
    gateway: Mapping[str, Any] | None = None
    """What gateway.Client is made of, if requests go through one."""


@contextmanager
def own_token(wanted: Wanted) -> Iterator[Target]:
    """A SoftHSM token in a temporary folder, which goes away with it, whatever happens. Raises HsmError."""
    module = find_softhsm()
    with token_folder(_PREFIX) as made:
        folder, settings = made.path, {"modulePath": module, "tokenLabel": TOKEN_LABEL, "keyLabel": KEY_LABEL}
        sockets = _put_chaos_before(settings, wanted.chaos, folder, "device") if wanted.chaos is not None else []
        request = made.request(settings["modulePath"], TOKEN_LABEL, KEY_LABEL, wanted.algorithm)
        with variable(CHAOS_CONFIG_ENV, str(folder / "device.json") if sockets else None):
            try:
                provision(request, made.conf)
            except HsmError as error:
                if error.ckr == _CKR_DEVICE_MEMORY:
                    error.hint = "The device has no room for a key; load one that it has already with --config."
                raise
        document = _document("softhsm", {**settings, "pin": {"file": str(made.pin_file())}}, wanted, folder)
        environment = {"SOFTHSM2_CONF": str(made.conf)}
        yield Target("a SoftHSM token of its own", document, load(document), environment, sockets)


@contextmanager
def noop_token(wanted: Wanted) -> Iterator[Target]:
    """The module that does nothing. Raises ModuleMissing."""
    module = str(_built(NOOP_MODULE))
    with _folder() as folder:
        write_private(folder / "pin", "0000")
        settings: dict[str, Any] = {"modulePath": module, "tokenLabel": "noop", "keyLabel": "noop-key"}
        sockets = _put_chaos_before(settings, wanted.chaos, folder, "device") if wanted.chaos is not None else []
        document = _document("pkcs11", {**settings, "pin": {"file": str(folder / "pin")}}, wanted, folder)
        yield Target("the module that does nothing", document, load(document), {}, sockets, honest=False)


@contextmanager
def configured(config: Config, document: Mapping[str, Any], wanted: Wanted) -> Iterator[Target]:
    """What a configuration names; nothing is made on its tokens. `document` is the configuration as given."""
    changed = copy.deepcopy(dict(document))
    manager = changed["sequencer"]["keyManager"] if "sequencer" in changed else changed["keyManager"]
    with _folder() as folder:
        sockets = [] if wanted.chaos is not None else _sockets_of(config)
        seen: set[str] = set()  # the members behind several connectors of a YubiHSM stand in one place
        for number, provider in enumerate(providers(config)):
            if not isinstance(provider.config, Pkcs11Settings) or provider.where in seen:
                continue
            seen.add(provider.where)
            settings = _at(changed, provider.where).setdefault("config", {})
            if wanted.chaos is not None:
                settings["modulePath"] = provider.config.module_path
                sockets += _put_chaos_before(settings, wanted.chaos, folder, f"device-{number}")
            _change(settings, wanted)
        if wanted.cache is not None:
            manager["maxCacheSize"] = wanted.cache
        checked, _ = asyncio.run(as_started(load(changed)))
        checked.require_complete()
        yield Target(checked.key_manager.name, changed, checked, {}, sockets)


@contextmanager
def behind_gateway(address: str, key_manager: str, connections: int, tls: str | None) -> Iterator[Target]:
    """The key manager that a running gateway serves. `tls`: the files of a client's certificate, its key, and the
    authorities, with commas between them. Raises UsageProblem."""
    from hsmcore.gateway.client.dialing import ClientTls, GatewayAddress

    try:
        files = [] if tls is None else [*astuple(ClientTls.parse(tls))]
    except BadArgument as error:
        raise UsageProblem(f"--tls: {error.args[0]}") from None
    unix = all(one.path for one in GatewayAddress.parse_all(address))
    if unix and files:
        raise UsageProblem('--tls belongs to a "tls:" address')
    if not unix and not files:
        raise UsageProblem('a "tls:" address needs --tls')
    client = {"address": address, "key_manager": key_manager, "connections": connections, "tls": files}
    # Nothing is signed with it here; timeouts and the like are those of a key manager that says nothing.
    document = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "maxCacheSize": 0}}
    yield Target(f"{key_manager} at {address}", document, load(document), {}, gateway=client)


def providers(config: Config) -> list[Provider]:
    """All members that a configuration names, in their order."""
    manager = config.key_manager
    secondary = manager.failover.secondary if manager.failover is not None else None
    return [*manager.primary, *(secondary or ())]


def _document(kind: str, settings: dict[str, Any], wanted: Wanted, folder: Path) -> dict[str, Any]:
    _change(settings, wanted)
    manager: dict[str, Any] = {"type": kind, "config": settings, "maxCacheSize": wanted.cache or 0}
    manager["stateFile"] = str(folder / "state.db")
    if wanted.audit:
        manager["auditLogFile"] = str(folder / "audit" / "audit.log")
        (folder / "audit").mkdir(mode=0o700)
    return {"keyManager": manager}


def _change(settings: dict[str, Any], wanted: Wanted) -> None:
    if wanted.sessions is not None:
        settings["sessions"] = wanted.sessions
    if wanted.isolation is not None:
        settings["isolation"] = wanted.isolation


def _put_chaos_before(settings: dict[str, Any], chaos: str, folder: Path, name: str) -> list[str]:
    """Make a configuration of the chaos module that wraps the one of `settings`, and lead these there. Returns the
    pattern of its control sockets."""
    fields: dict[str, Any] = {}
    if chaos and Path(chaos).is_file():
        try:
            fields = json.loads(Path(chaos).read_bytes())
        except ValueError as error:
            raise UsageProblem(f"--chaos {chaos}: {error}") from None
        if not isinstance(fields, dict):
            raise UsageProblem(f"--chaos {chaos}: expected a JSON object, as docs/CHAOS.md has it")
    elif chaos:
        own = _built(CHAOS_MODULE).parent / "profiles"
        known = sorted(path.stem for path in own.glob("*.json"))
        if chaos not in known:
            raise UsageProblem(f"--chaos {chaos}: neither a file nor a profile; profiles are {', '.join(known)}")
        fields = {"profile": chaos}
    fields |= {"module": str(settings["modulePath"]), "socket": str(folder / f"{name}-%p.sock")}
    path = folder / f"{name}.json"
    write_private(path, json.dumps(fields))
    rest = settings.get("moduleArgs")
    settings["modulePath"] = str(_built(CHAOS_MODULE))
    settings["moduleArgs"] = f"config={path}" + (f" args={rest}" if rest else "")
    return [str(folder / f"{name}-*.sock")]


def _sockets_of(config: Config) -> list[str]:
    """Patterns of the control sockets that the configuration's own chaos modules have."""
    found = []
    for provider in providers(config):
        settings = provider.config
        if not isinstance(settings, Pkcs11Settings) or Path(settings.module_path).name != CHAOS_MODULE:
            continue
        args = settings.module_args or ""
        path = args.removeprefix("config=").split(" args=")[0] if args.startswith("config=") else None
        try:
            fields = json.loads(Path(path or os.environ.get(CHAOS_CONFIG_ENV, "")).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(fields, dict) and isinstance(fields.get("socket"), str):
            found.append(fields["socket"].replace("%p", "*"))
    return found


def _at(document: Any, where: str) -> Any:
    """What stands at a JSON path, such as $.sequencer.keyManager.failover.secondary[0]."""
    found = document
    for step in where.removeprefix("$").replace("[", ".[").split("."):
        if step.startswith("["):
            found = found[int(step[1:-1])]
        elif step:
            found = found[step]
    return found


def _built(name: str) -> Path:
    found = native(name)
    if found is None:
        raise ModuleMissing(f"{name} was not built", hint="Build hsmcore again: make build.")
    return found


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        yield Path(name)
