"""Two SoftHSM tokens with one key in a temporary folder, and one of them can be pulled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hsmcore import MemberSnapshot
from hsmcore.errors import SystemFailure
from hsmcore.members.control.provision import provision_twins
from hsmcore.members.control.softhsm import KEY_LABEL, find_softhsm
from hsmcore_bench.harness.host import kill_host
from hsmcore_bench.harness.softhsm import TokenFolder, token_folder, variable

LABELS: Final = ("sequencer-a", "sequencer-b")
RETRY_INTERVAL_MS: Final = 400
RAMP_MS: Final = 400


@dataclass(slots=True)
class Twins:
    """The primary level has token a, the secondary one token b, each in a host process of its own."""

    folder: TokenFolder
    module: str

    def config(self) -> dict[str, Any]:
        """For a key manager in a process whose SOFTHSM2_CONF is `softhsm2.conf` in the folder."""
        first, second = (self._provider(label) for label in LABELS)
        block = {
            "secondary": [second],
            "primaryRetryIntervalMs": RETRY_INTERVAL_MS,
            "secondaryRetryIntervalMs": RETRY_INTERVAL_MS,
            "failbackRampMs": RAMP_MS,
        }
        manager = {**first, "maxCacheSize": 0, "stateFile": str(self.folder.path / "state.db"), "failover": block}
        return {"sequencer": {"keyManager": manager}}

    def lone_config(self, rotation: dict[str, Any]) -> dict[str, Any]:
        """The same for token b alone, with that `keyRotation` block."""
        manager = {
            **self._provider(LABELS[1]),
            "maxCacheSize": 0,
            "requestTimeoutMs": 1000,
            "stateFile": str(self.folder.path / "rotation.db"),
            "keyRotation": rotation,
        }
        return {"sequencer": {"keyManager": manager}}

    def _provider(self, label: str) -> dict[str, Any]:
        config = {
            "modulePath": self.module,
            "tokenLabel": label,
            "pin": {"file": str(self.folder.pin_file())},
            "keyLabel": KEY_LABEL,
            "sessions": os.cpu_count() or 1,
            "isolation": "process",
            "verifySignatures": "always",
        }
        return {"type": "softhsm", "config": config}

    def pull(self, member: MemberSnapshot) -> None:
        """Token a is gone: its files are moved away and the process that had it open is killed."""
        self._token().rename(self.folder.path / "pulled")
        kill_host(member)

    def put_back(self) -> None:
        """It is there again."""
        pulled = self.folder.path / "pulled"
        if pulled.exists():
            pulled.rename(self.folder.tokens / "back")

    def _token(self) -> Path:
        for place in self.folder.tokens.iterdir():
            if LABELS[0].encode() in (place / "token.object").read_bytes():
                return place
        raise SystemFailure(f"the token {LABELS[0]} has no files")


@contextmanager
def twins() -> Iterator[Twins]:
    """Make them, which takes about three seconds; SOFTHSM2_CONF of this process names their folder until they are gone.
    Raises ModuleMissing without SoftHSM."""
    module = find_softhsm()
    with token_folder("hsmcore-demo-") as folder:
        provision_twins([folder.request(module, label, KEY_LABEL) for label in LABELS], folder.conf)
        home = str(folder.path / "state-home")  # what the keys promise goes away with them
        with variable("SOFTHSM2_CONF", str(folder.conf)), variable("XDG_STATE_HOME", home):
            yield Twins(folder, module)
