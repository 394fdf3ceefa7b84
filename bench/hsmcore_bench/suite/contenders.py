"""The contenders of all scenarios, and the selection of those that a run has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from hsmcore_bench.suite.catalogue import Entry, entries, expand
from hsmcore_bench.suite.model import Contender

MEMORY = "memory"  # events are measured beside the rounds: resident memory while signing, kills, failures


def contenders(cores: int, files: tuple[str, ...] = (), *, quick: bool = False) -> list[Contender]:
    """All of them, for a machine with so many processors; or those of a quick run. Raises ValueError, see catalogue."""
    everything = [pair for entry in entries(files) for pair in expand(entry, cores)]
    return [contender for contender, in_quick_run in everything if in_quick_run or not quick]


def select(everyone: Sequence[Contender], only: str | None, files: tuple[str, ...] = ()) -> list[Contender]:
    """Those whose name fits one of the comma-separated patterns in `only`, and the references they are divided by.

    A pattern is a name, or the start of names up to a dash ("noop" is noop-1, noop-256, ...), or a shell pattern, or
    a scenario, or a word for several scenarios ("resilience").
    """
    if only is None:
        return list(everyone)
    references = {c.name: c.reference for c in everyone}
    names: set[str] = set()
    for pattern in _patterns(only):
        if pattern in references:
            names.add(pattern)
            continue
        called = {entry.name for entry in _called(pattern, files)}
        names |= {c.name for c in everyone if _fits(c.name, pattern) or c.scenario in called}
    for name in tuple(names):
        following = references[name]
        while following is not None:
            names.add(following)
            following = references[following]
    return [c for c in everyone if c.name in names]


def events(only: str | None, files: tuple[str, ...] = ()) -> set[str]:
    """Those of MEMORY, RECOVERY and FAILOVER that are asked for."""
    wanted: set[str] = set()
    for entry in entries(files):
        event = entry.said.event
        if event is not None and (only is None or any(_asks_for(p, entry, event) for p in _patterns(only))):
            wanted.add(event)
    return wanted


def blocks(chosen: Sequence[Contender]) -> list[list[Contender]]:
    """Those that must be measured in turn with each other, because they share a scenario or a reference. Only the
    processes of one block are there at the same time."""
    leader = {c.name: c.name for c in chosen}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first_of: dict[str, str] = {}
    for contender in chosen:
        leader[find(contender.name)] = find(first_of.setdefault(contender.scenario, contender.name))
        if contender.reference is not None and contender.reference in leader:
            leader[find(contender.name)] = find(contender.reference)
    found: dict[str, list[Contender]] = {}
    for contender in chosen:
        found.setdefault(find(contender.name), []).append(contender)
    return list(found.values())


def _asks_for(pattern: str, entry: Entry, event: str) -> bool:
    return _fits(event, pattern) or pattern in (entry.name, *entry.said.words)


def _called(pattern: str, files: tuple[str, ...]) -> Iterable[Entry]:
    return (entry for entry in entries(files) if pattern in (entry.name, *entry.said.words))


def _patterns(only: str) -> list[str]:
    return [word.strip() for word in only.split(",") if word.strip()]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}-")
