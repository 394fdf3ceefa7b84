"""What the contract tests ask of a device. To put another device under them, add one file to rigs/ with a subclass of
Rig: its configuration, and as much of the rest as the device can; `can` says what that is."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pytest

Capability = Literal["logins", "breaks", "holds", "generates", "destroys", "backs-up", "lasts"]
"""logins: a PIN may be wrong, and attempts are counted. breaks: it can go away and come back. holds: its signatures can
be kept waiting. generates: keys can be made. destroys: keys can be erased. backs-up: keys can be wrapped and put back.
lasts: its key is the same after a restart."""

T = TypeVar("T")


class Rig(ABC):
    """One kind of device. Set up once for all tests of it; each test must leave it as it was, keys that it made aside.

    `setup` may call pytest.skip when software is missing. Methods that belong to a capability are called only if `can`
    has it.
    """

    name: ClassVar[str]
    can: ClassVar[frozenset[Capability]]
    algorithm: ClassVar[str] = "ed25519"
    patience: ClassVar[float] = 60.0
    """Seconds within which it signs again once it is back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def setup(self) -> None:
        """Make tokens and keys."""

    def teardown(self) -> None:  # noqa: B027  # not every device has something to do
        """Remove them."""

    @abstractmethod
    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        """A whole configuration that signs with the rig's key. `settings` goes over the provider's `config`, `rules`
        over `keyManager`. Without a cache, so that each request costs the device a signature."""

    @property
    @abstractmethod
    def public_key(self) -> bytes | None:
        """The key's public half as the device's own tools gave it; None where each start makes another."""

    def wrong_pin(self) -> dict[str, Any]:
        """logins: the configuration with a PIN that is refused."""
        raise NotImplementedError

    def attempts(self) -> int:
        """logins: how many PINs the device has seen."""
        raise NotImplementedError

    def missing_key(self) -> dict[str, Any] | None:
        """The configuration with a key that is not there; None where no key can be missing."""
        return None

    def break_device(self) -> None:
        """breaks: from now on it does not answer, or answers with errors."""
        raise NotImplementedError

    def mend_device(self) -> None:  # noqa: B027  # not every device has something to do
        """breaks: it answers again. Idempotent."""

    def hold(self) -> None:
        """holds: signatures that begin from now on do not end."""
        raise NotImplementedError

    def release(self) -> None:  # noqa: B027  # not every device has something to do
        """holds: they end, and so do later ones. Idempotent."""

    def begun(self) -> int:
        """holds: how many signatures the device has begun so far."""
        raise NotImplementedError


def rigs() -> list[type[Rig]]:
    """Every rig of the folder rigs/."""
    for path in sorted(Path(__file__).with_name("rigs").glob("*.py")):
        importlib.import_module(f"tests.contract.rigs.{path.stem}")
    found: list[type[Rig]] = []
    left = list(Rig.__subclasses__())
    while left:
        kind = left.pop(0)
        left += kind.__subclasses__()
        if hasattr(kind, "name"):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.name)


def contract(*needs: Capability) -> Callable[[T], T]:
    """A test of every rig that can do all of `needs`. Which process a module is in makes a difference to our own code,
    which SoftHSM shows: `make test` asks other modules in theirs, and `make check-deep` here, too."""
    able = [kind for kind in rigs() if kind.can.issuperset(needs)]
    twice = {f"{kind.name.removesuffix('-process')}-thread" for kind in able} - {"softhsm-thread"}
    marks = {name: [pytest.mark.deep] for name in twice}
    chosen = [pytest.param(kind, id=kind.name, marks=marks.get(kind.name, [])) for kind in able]
    return pytest.mark.parametrize("rig", chosen, indirect=True, scope="session")
