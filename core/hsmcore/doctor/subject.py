"""What a probe is given and what it yields.

A probe is a generator: it yields a `Begun` before anything that may take long, and each `Step` as soon as it is known;
it returns the identity that the provider signs with, or None. It may block; it runs in a thread of doctor's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from hsmcore.config import Config, Provider
from hsmcore.doctor.report import Identity, Step

CHECK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to probe. `timeout`: seconds that one check may take. `force_login`: present the PIN even where the token
    says that a wrong one would lock it."""

    timeout: float = CHECK_SECONDS
    force_login: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """Something has begun that may take a while; for whoever shows progress."""

    name: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed: a provider, the configuration around it, and how."""

    provider: Provider
    config: Config
    level: str
    options: Options = field(default_factory=Options)

    @property
    def settings(self) -> Any:
        """The provider's `config`: each probe knows its class."""
        return self.provider.config


Probe = Callable[[Subject], Generator[Step | Begun, None, Identity | None]]
