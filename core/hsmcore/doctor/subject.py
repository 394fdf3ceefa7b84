"""The input and the output of a probe.

A probe is a generator. It yields a `Begun` before work that may take long, and each `Step` as soon as it is known. It
returns the identity that the provider signs with, or None. It may block.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from hsmcore.base.receipt import LevelName
from hsmcore.config import Config, Provider
from hsmcore.doctor.report import Identity, Step

CHECK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """`timeout`: seconds for each check. `force_login`: present the PIN even if one more wrong PIN locks the token."""

    timeout: float = CHECK_SECONDS
    force_login: bool = False


@dataclass(frozen=True, slots=True)
class CheckBegun:
    """Work that may take long has begun: for a progress display."""

    name: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A provider, the configuration around it, and the options."""

    provider: Provider
    config: Config
    level: LevelName
    options: Options = field(default_factory=Options)

    @property
    def settings(self) -> Any:
        """The provider's `config`; each probe knows its class."""
        return self.provider.config


Probe = Callable[[Subject], Generator[Step | CheckBegun, None, Identity | None]]
