"""Two SoftHSM tokens with one key in a temporary folder, and one of them can be pulled."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmcore.control.provision import TokenRequest, provision_twins
from hsmcore.control.softhsm import KEY_LABEL, find_softhsm
from hsmcore.errors import SystemFailure
from hsmcore_bench.harness.host import kill_engine_host

LABELS: Final = ("sequencer-a", "sequencer-b")
RETRY_INTERVAL_MS: Final = 400
RAMP_MS: Final = 400


@dataclass(slots=True)
class Twins:
    """The primary level has token a, the secondary one token b, each in a host process of its own."""

    folder: Path
    module: str

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    def config(self) -> dict[str, Any]:
        """For a key manager in a process whose SOFTHSM2_CONF is `softhsm2.conf` in the folder."""
        first, second = (self._provider(label) for label in LABELS)
        block = {"secondary": [second], "primaryRetryIntervalMs": RETRY_INTERVAL_MS,
                 "secondaryRetryIntervalMs": RETRY_INTERVAL_MS, "failbackRampMs": RAMP_MS}  # fmt: skip
        manager = {**first, "maxCacheSize": 0, "stateFile": str(self.folder / "state.db"), "failover": block}
        return {"sequencer": {"keyManager": manager}}

    def lone_config(self, rotation: dict[str, Any]) -> dict[str, Any]:
        """The same for token b alone, with that `keyRotation` block."""
        manager = {**self._provider(LABELS[1]), "maxCacheSize": 0, "requestTimeoutMs": 1000,
                   "stateFile": str(self.folder / "rotation.db"), "keyRotation": rotation}  # fmt: skip
        return {"sequencer": {"keyManager": manager}}

    def _provider(self, label: str) -> dict[str, Any]:
        config = {"modulePath": self.module, "tokenLabel": label, "pin": {"file": str(self.folder / "pin")},
                  "keyLabel": KEY_LABEL, "sessions": os.cpu_count() or 1, "isolation": "process",
                  "verifySignatures": "always"}  # fmt: skip
        return {"type": "softhsm", "config": config}

    def pull(self, member: object) -> None:
        """Token a is gone: its files are moved away and the process that had it open is killed."""
        self._token().rename(self.folder / "pulled")
        kill_engine_host(member)

    def put_back(self) -> None:
        """It is there again."""
        pulled = self.folder / "pulled"
        if pulled.exists():
            pulled.rename(self.tokens / "back")

    def _token(self) -> Path:
        for place in self.tokens.iterdir():
            if LABELS[0].encode() in (place / "token.object").read_bytes():
                return place
        raise SystemFailure(f"the token {LABELS[0]} has no files")


@contextmanager
def twins() -> Iterator[Twins]:
    """Make them, which takes about three seconds; SOFTHSM2_CONF of this process names their folder until they are gone.
    Raises ModuleMissing without SoftHSM."""
    module = find_softhsm()
    before = os.environ.get("SOFTHSM2_CONF")
    with tempfile.TemporaryDirectory(prefix="hsmcore-demo-") as name:
        made = Twins(Path(name), module)
        made.tokens.mkdir(mode=0o700)
        conf, pin = made.folder / "softhsm2.conf", made.folder / "pin"
        conf.write_text(f"directories.tokendir = {made.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        pin.touch(mode=0o600)
        pin.write_text(secrets.token_hex(8))
        provision_twins(
            [
                TokenRequest(module, label, KEY_LABEL, "ed25519", pin.read_text(), secrets.token_hex(8))
                for label in LABELS
            ],
            conf,
        )
        os.environ["SOFTHSM2_CONF"] = str(conf)
        try:
            yield made
        finally:
            if before is None:
                del os.environ["SOFTHSM2_CONF"]
            else:
                os.environ["SOFTHSM2_CONF"] = before
