"""The state folder: a SoftHSM token, its PINs and the configuration that names them.

    softhsm2.conf   SoftHSM's configuration: where the token's files are
    tokens/         the token
    pin, so-pin     the user's and the security officer's PIN, mode 0600
    config.json     the configuration for hsmcore; written last, so that it is there only with all the rest

SoftHSM finds softhsm2.conf by SOFTHSM2_CONF only: `use_token_beside` sets it, for the command line and for an
application that names a configuration's file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from hsmcore._native import wipe
from hsmcore.base.ownership import foreign, make_folder, open_or_make, replace
from hsmcore.config.secret import Secret
from hsmcore.errors import HsmError, ModuleMissing, SystemFailure
from hsmcore.members.control.curves import Algorithm

if TYPE_CHECKING:
    from hsmcore.members.control.records import KeyRecord

SOFTHSM_PATHS: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
TOKEN_LABEL: Final = "sequencer"
KEY_LABEL: Final = "sequencer-key"
_SECRETS: Final = ("pin", "so-pin", "state-secret")
_SECRET_BYTES: Final = 24
_CONF: Final = """\
directories.tokendir = {tokens}
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""


def find_softhsm() -> str:
    """The path of SoftHSM's module on this machine. Raises ModuleMissing."""
    for path in SOFTHSM_PATHS:
        if Path(path).is_file():
            return path
    raise ModuleMissing("SoftHSM is not installed", hint="Install it (apt-get install softhsm2), or name its module.")


def use_token_beside(config: str | os.PathLike[str]) -> None:
    """If a softhsm2.conf lies in the folder of a configuration, set SOFTHSM2_CONF to it in this process, whatever its
    value was: the token that the configuration names exists only there. SoftHSM reads it when the module is
    initialized. Of a state folder that was moved or copied, the file is made to name the tokens in the folder."""
    beside = Path(config).resolve().parent / "softhsm2.conf"
    if beside.is_file():
        os.environ["SOFTHSM2_CONF"] = str(beside)
        with suppress(OSError):  # where it cannot be written, SoftHSM says that it finds no token
            _follow(beside)


def _follow(conf: Path) -> None:
    # SoftHSM takes a relative folder from the working directory, so its file names the whole path.
    text, tokens = os.fsdecode(conf.read_bytes()), conf.parent / "tokens"
    named = Path(text.partition("\n")[0].rpartition(" = ")[2])
    if text == _CONF.format(tokens=named) and named.name == "tokens" and named != tokens and tokens.is_dir():
        replace(conf, os.fsencode(_CONF.format(tokens=tokens)))


@dataclass(frozen=True, slots=True)
class StateFolder:
    path: Path
    config_name: str = "config.json"

    @property
    def config(self) -> Path:
        return self.path / self.config_name

    @property
    def softhsm_conf(self) -> Path:
        return self.path / "softhsm2.conf"

    @property
    def socket(self) -> Path:
        """Where a gateway listens. The whole path: its clients run elsewhere."""
        return self.path.resolve() / "gateway.sock"

    @property
    def ready(self) -> bool:
        return self.config.is_file()

    def create(
        self,
        *,
        module_path: str | None = None,
        token_label: str = TOKEN_LABEL,
        key_label: str = KEY_LABEL,
        algorithm: Algorithm = "ed25519",
        sessions: int | None = None,
        gateway: bool = False,
    ) -> KeyRecord | None:
        """Make the parts that are missing; None if the folder was ready before. Blocks for about a second. `gateway`:
        the configuration has one, for this user's processes.

        If two processes call this at once, the second one waits and finds the folder ready.
        """
        from hsmcore.members.control.provision import TokenRequest, provision

        module = module_path or find_softhsm()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in (self.path, self.config, self.softhsm_conf, *map(self.path.joinpath, ("tokens", *_SECRETS))):
                _require_ours(path)
            with self._locked():
                if self.ready:
                    return None
                tokens = self.path / "tokens"
                make_folder(tokens)
                if not self.softhsm_conf.exists():
                    replace(self.softhsm_conf, os.fsencode(_CONF.format(tokens=tokens.resolve())))
                pin, so_pin, seal = map(self._secret, _SECRETS)
                wipe(seal)
                request = TokenRequest(module, token_label, key_label, algorithm, pin, so_pin)
                key = provision(request, self.softhsm_conf)
                config = _config(module, token_label, key_label, sessions or os.cpu_count() or 1)
                if gateway:
                    clients = {"me": {"uid": [os.getuid()], "keys": ["default"]}}
                    served = {"listen": [f"unix:{self.socket}"], "socketMode": "0600", "clients": clients}
                    config["sequencer"]["gateway"] = served
                replace(self.config, orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
                return key
        except HsmError:  # some are OSErrors: a deadline that passed
            raise
        except OSError as error:
            raise SystemFailure(
                f"the state folder {self.path} cannot be written: {error.strerror}",
                hint="Name another folder with --state.",
            ) from error

    def _secret(self, name: str) -> bytearray:
        path = self.path / name
        if not path.exists():
            replace(path, secrets.token_urlsafe(_SECRET_BYTES).encode())
        return Secret.file(str(path)).resolve()  # as the configuration will read it

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = open_or_make(self.path / ".lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _require_ours(path: Path) -> None:
    """Raise SystemFailure for what another user has put here, or may write: it would choose PINs or the token."""
    problem = "is a link" if path.is_symlink() else ""
    if not problem and path.exists():
        problem = foreign(path)
    if problem:
        raise SystemFailure(f"init makes no token here: {path}: {problem}", hint="Name a new folder with --state.")


def _config(module: str, token: str, key: str, sessions: int) -> dict[str, Any]:
    return {  # with relative paths: the folder may be moved
        "sequencer": {
            "keyManager": {
                "type": "softhsm",
                "config": {
                    "modulePath": module,
                    "tokenLabel": token,
                    "pin": {"file": "pin"},
                    "keyLabel": key,
                    "sessions": sessions,
                },
                "maxCacheSize": 10000,
            },
            "stateSecret": {"file": "state-secret"},
        }
    }
