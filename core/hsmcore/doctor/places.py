"""The checks of the places that a key manager writes to and listens at. Each is tried; nothing is left behind."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Final

from hsmcore.base.listening.sockets import hint_for, try_out
from hsmcore.base.ownership import EXPOSED_HINT, exposed
from hsmcore.config import Config
from hsmcore.config.monitoring import Address
from hsmcore.doctor.report import Step, fail, ok, warn
from hsmcore.recovery.own_store import is_attended, register
from hsmcore.state import StoreError

_HOME_HINT: Final = "Set XDG_STATE_HOME to a folder that lasts: an edited configuration is told apart by it."
_TAKEN: Final = "End what listens there, or name another address; a service manager may hold it for the gateway."
SOON_SECONDS: Final = 7 * 86_400
"""What is left of a client's last token when there is a warning."""
_TOKEN: Final = "gateway-token"
_TOKEN_HINT: Final = "Add the next one to the client's tokens, and send SIGHUP to the gateway."
_HINT: Final = "Name another place, or make the folder for the key manager's user (mkdir, chown)."


def check_places(config: Config) -> Iterator[Step]:
    """Check that this user could write each of them. Object stores are not asked: the first backup does."""
    rules, rotation = config.key_manager, config.key_manager.active_rotation
    if rules.audit_log_file is not None:
        yield _folder("audit-log", Path(rules.audit_log_file).parent)
    if rotation is not None and rotation.backup_enabled and rotation.backup_location is not None:
        scheme, separator, rest = rotation.backup_location.partition("://")
        if not separator or scheme == "file":
            yield _folder("backup-location", Path(rest if separator else scheme))
    if rules.fleet is None and rules.keeps_state and (problem := _unremembered()):
        yield warn("state-register", f"which store keeps a key's promises is not remembered: {problem}", _HOME_HINT)


def check_listening(config: Config) -> Iterator[Step]:
    """Check that each address could be listened at. One that is taken is as it should be while a key manager of this
    configuration runs."""
    monitoring, gateway = config.key_manager.monitoring, config.gateway
    if monitoring is not None:
        yield _listening("monitoring-listen", monitoring.listen, monitoring.address, config)
    if gateway is not None:
        for shown, one in zip(gateway.listen, gateway.addresses, strict=True):
            yield _listening("gateway-listen", shown, one.address, config)


def check_tokens(config: Config) -> Iterator[Step]:
    """Warn of each client of the gateway that soon has no token any more. No token is read."""
    for name, client in (config.gateway.clients if config.gateway is not None else {}).items():
        ends = client.tokens_end
        if ends is None or ends == inf:
            continue
        last = next(one.expires for one in client.tokens if one.ends == ends)
        found, data = f"the last token of client {name!r} expires at {last}", {"client": name, "expires": ends}
        left = ends - time.time()
        yield ok(_TOKEN, found, **data) if left > SOON_SECONDS else warn(_TOKEN, found, _TOKEN_HINT, **data)


def _listening(name: str, shown: str, address: Address, config: Config) -> Step:
    try:
        try_out(address.host, address.port, address.path)
    except FileNotFoundError as error:  # systemd makes the folder when it starts the service
        return warn(name, f"{shown}: its folder is not there", hint_for(error), address=shown)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(name, f"{shown}: {error.strerror or error}", hint_for(error), address=shown)
        if _runs(config):
            return ok(name, f"{shown} is in use, and a key manager of this configuration runs", address=shown)
        return warn(name, f"{shown} is in use, and no key manager of this configuration is seen", _TAKEN, address=shown)
    return ok(name, f"{shown} is free", address=shown)


def _runs(config: Config) -> bool:
    try:
        return is_attended(config.key_manager)
    except StoreError:
        return True  # on a file that was here before; the state store has its own steps


def _unremembered() -> str:
    """Return why this user's state folder cannot be written, or ""."""
    folder = register().folder
    if folder is None:
        return "this user has no state folder"
    step = _folder("state-register", folder)
    return step.found if step.outcome == "fail" else ""


def _folder(name: str, folder: Path) -> Step:
    found = folder.absolute()
    while not found.exists() and found != found.parent:  # the key manager makes the missing ones
        found = found.parent
    if not found.is_dir():
        return fail(name, f"{found} is no folder", _HINT)
    try:
        Path(tempfile.mkdtemp(prefix=".hsmcore-doctor-", dir=found)).rmdir()
    except OSError as error:
        return fail(name, f"this user cannot write {found}: {error.strerror}", _HINT)
    if found == folder.absolute() and (problem := exposed(found)):
        return fail(name, problem, EXPOSED_HINT)
    return ok(name, f"{folder} can be written" if found == folder.absolute() else f"{folder} can be made")
