"""A SoftHSM token of our own, in a temporary directory that goes away with it."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hsmcore.control.provision import TokenRequest, provision_twins
from hsmcore.errors import HsmError
from hsmcore_bench.harness.process import ChildError, child_environment, python_child
from hsmcore_bench.suite.child.protocol import PIN_ENV
from hsmcore_bench.suite.model import ALGORITHMS, HsmToken

TOKEN_LABEL = "hsmcore-bench"
TWINS_KEY = "bench-twin"
PROVISION_SECONDS = 60.0


@contextmanager
def temporary_token(module: str) -> Iterator[tuple[HsmToken, Mapping[str, str]]]:
    """Make a token with a key per algorithm; gives it and the environment that its users need, the PIN included.

    Neither SOFTHSM2_CONF nor the PIN is set in this process. Raises ChildError when the token can't be made.
    """
    if not Path(module).exists():
        raise ChildError(f"{module} does not exist: install softhsm2, or name a token and its module")
    with tempfile.TemporaryDirectory(prefix="hsmcore-bench-") as directory:
        access = {"SOFTHSM2_CONF": str(_configuration(Path(directory))), PIN_ENV: secrets.token_hex(8)}
        _provision(module, {**access, "HSM_SO_PIN": secrets.token_hex(8)})
        labels: dict[str, str] = {algorithm: f"bench-{algorithm}" for algorithm in ALGORITHMS}
        yield HsmToken(module, TOKEN_LABEL, labels), access


@contextmanager
def temporary_twins(module: str) -> Iterator[tuple[list[str], str, Mapping[str, str]]]:
    """Make two tokens that hold one Ed25519 key; gives their labels, the key's, and the environment of their users."""
    if not Path(module).exists():
        raise ChildError(f"{module} does not exist: install softhsm2")
    with tempfile.TemporaryDirectory(prefix="hsmcore-bench-") as directory:
        access = {"SOFTHSM2_CONF": str(_configuration(Path(directory))), PIN_ENV: secrets.token_hex(8)}
        labels = [f"{TOKEN_LABEL}-{name}" for name in ("primary", "secondary")]
        requests = [
            TokenRequest(module, label, TWINS_KEY, "ed25519", access[PIN_ENV], secrets.token_hex(8)) for label in labels
        ]
        try:
            provision_twins(requests, Path(access["SOFTHSM2_CONF"]))
        except HsmError as error:
            raise ChildError(f"no tokens could be made: {error}") from error
        yield labels, TWINS_KEY, access


def _configuration(directory: Path) -> Path:
    tokens = directory / "tokens"
    tokens.mkdir(mode=0o700)
    configuration = directory / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    return configuration


def _provision(module: str, access: Mapping[str, str]) -> None:
    made = subprocess.run(
        python_child("hsmcore_bench.suite.child.provision", module, TOKEN_LABEL),
        env=child_environment(access),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROVISION_SECONDS,
        check=False,
    )
    if made.returncode != 0:
        lines = made.stderr.strip().splitlines()
        raise ChildError(f"no token could be made: {lines[-1] if lines else 'no reason given'}")
