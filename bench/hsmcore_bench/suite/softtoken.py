"""What the suite signs on if no token is named: SoftHSM tokens of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hsmcore.errors import HsmError
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.provision import provision, provision_twins
from hsmcore_bench.harness.process import ChildError
from hsmcore_bench.harness.softhsm import TokenFolder, token_folder
from hsmcore_bench.suite.child.protocol import PIN_ENV
from hsmcore_bench.suite.model import HsmToken

TOKEN_LABEL = "hsmcore-bench"
TWINS_KEY = "bench-twin"


@contextmanager
def temporary_token(
    module: str, algorithms: Sequence[Algorithm] = ("ed25519",)
) -> Iterator[tuple[HsmToken, Mapping[str, str]]]:
    """Make a token with a key per algorithm; gives it and the environment that its users need, the PIN included.

    Neither SOFTHSM2_CONF nor the PIN is set in this process. Raises ChildError when the token can't be made.
    """
    labels: dict[str, str] = {algorithm: f"bench-{algorithm}" for algorithm in algorithms}
    with _folder(module) as folder:
        with _making():
            for algorithm in algorithms:
                provision(folder.request(module, TOKEN_LABEL, labels[algorithm], algorithm), folder.conf)
        yield HsmToken(module, TOKEN_LABEL, labels), _access(folder)


@contextmanager
def temporary_twins(module: str) -> Iterator[tuple[list[str], str, Mapping[str, str]]]:
    """Make two tokens that hold one Ed25519 key; gives their labels, the key's, and the environment of their users."""
    labels = [f"{TOKEN_LABEL}-{name}" for name in ("primary", "secondary")]
    with _folder(module) as folder:
        with _making():
            provision_twins([folder.request(module, label, TWINS_KEY) for label in labels], folder.conf)
        yield labels, TWINS_KEY, _access(folder)


@contextmanager
def _folder(module: str) -> Iterator[TokenFolder]:
    if not Path(module).exists():
        raise ChildError(f"{module} does not exist: install softhsm2, or name a token and its module")
    with token_folder("hsmcore-bench-") as folder:
        yield folder


@contextmanager
def _making() -> Iterator[None]:
    try:
        yield
    except HsmError as error:
        raise ChildError(f"no token could be made: {error}") from error


def _access(folder: TokenFolder) -> Mapping[str, str]:
    return {"SOFTHSM2_CONF": str(folder.conf), PIN_ENV: folder.pin}
