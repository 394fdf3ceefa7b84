"""Scraped metrics as numbers."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse_text

import hsmcore
from hsmcore.metrics import render

Key = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The samples of one scrape by name and labels."""

    def __init__(self, text: bytes, parse: Any = parse_text) -> None:
        self.samples: dict[Key, float] = {}
        self.kinds: dict[str, str] = {}
        for family in parse(text.decode()):
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, key
                self.samples[key] = sample.value

    @classmethod
    def of(cls, manager: hsmcore.KeyManager) -> Scrape:
        """The manager's metrics now."""
        return cls(render(manager)[0])

    def all(self, name: str, **labels: str) -> list[float]:
        """The samples of this name that have these labels."""
        return [found for (n, pairs), found in self.samples.items() if n == name and labels.items() <= set(pairs)]

    def __call__(self, name: str, **labels: str) -> float:
        """The one sample of this name that has these labels."""
        [found] = self.all(name, **labels)
        return found
