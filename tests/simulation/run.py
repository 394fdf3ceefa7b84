"""Many worlds, or one: its seed, its story, its smallest form."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import ChainMap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Final

from tests.simulation.disk_script import DiskScript, disk_script, lies_script, restores_script, upgrades_script
from tests.simulation.disk_world import DiskWorld
from tests.simulation.fleet import Fleet
from tests.simulation.fleet_script import FleetScript, fleet_script
from tests.simulation.found import FOUND
from tests.simulation.gateway import GatewayWorld
from tests.simulation.gateway_found import FOUND as GATEWAY_FOUND
from tests.simulation.gateway_script import GatewayScript, gateway_script, operator_script
from tests.simulation.levels import LevelsWorld
from tests.simulation.levels_script import Week, levels_script
from tests.simulation.mutants import MUTANTS as HOST_MUTANTS
from tests.simulation.mutants_disk import LIES_MUTANTS, RESTORES_MUTANTS, UPGRADES_MUTANTS
from tests.simulation.mutants_disk import MUTANTS as DISK_MUTANTS
from tests.simulation.mutants_fleet import FLEET_MUTANTS
from tests.simulation.mutants_gateway import MUTANTS as GATEWAY_MUTANTS
from tests.simulation.mutants_levels import MUTANTS as LEVELS_MUTANTS
from tests.simulation.mutants_operator import MUTANTS as OPERATOR_MUTANTS
from tests.simulation.operator_script import Shift, commands_script
from tests.simulation.operator_world import OperatorWorld
from tests.simulation.script import Script, host_script
from tests.simulation.thief import THIEF_MUTANTS, ThiefScript, ThiefWorld, thief_script
from tests.simulation.world import Outcome, World, remove_folder

_COLLECT_EVERY: Final = 50
MUTANTS: Final = dict(
    ChainMap(
        *(HOST_MUTANTS, LEVELS_MUTANTS, OPERATOR_MUTANTS, FLEET_MUTANTS, THIEF_MUTANTS, GATEWAY_MUTANTS),
        *(DISK_MUTANTS, UPGRADES_MUTANTS, RESTORES_MUTANTS, LIES_MUTANTS),
    )
)
WORLDS: Final[dict[str, Callable[[int], Any]]] = {
    "host": host_script,
    "levels": levels_script,
    "fleet": fleet_script,
    "thief": thief_script,
    "disk": disk_script,
    "upgrades": upgrades_script,
    "restores": restores_script,
    "lies": lies_script,
    "gateway": gateway_script,
    "operator": operator_script,
    "commands": commands_script,
    "found": FOUND.__getitem__,
    "gateway-found": GATEWAY_FOUND.__getitem__,
}
"""What a seed means in each world."""
_PLAYERS: Final[dict[type, Callable[[Any], Any]]] = {
    Script: World,
    Week: LevelsWorld,
    Shift: OperatorWorld,
    FleetScript: Fleet,
    ThiefScript: ThiefWorld,
    DiskScript: DiskWorld,
    GatewayScript: GatewayWorld,
}
"""What plays a script of a kind: it has `run`, which returns an Outcome."""
_QUIET: Final[dict[type, Callable[[], Any]]] = {
    Script: lambda: replace(host_script(0), failover={"emergencyModeEnabled": True}, intents=(), faults=(), stalls=()),
    Week: lambda: replace(levels_script(0), moments=(), faults=(), troubles=()),
    Shift: lambda: replace(commands_script(0), moments=(), faults=(), troubles=(), typed=(), offline=(), forged=()),
    FleetScript: lambda: fleet_script(0).without(doings=(), asks=(), seconds=5),
    ThiefScript: lambda: thief_script(0).without(doings=(), asks=(), seconds=5),
    DiskScript: lambda: replace(disk_script(0), asked=(), faults=(), disk_faults=(), commands=()),
    GatewayScript: lambda: replace(
        gateway_script(0), intents=(), faults=(), stalls=(), net=(), neighbours=(), restarts=(), leaves=(), reloads=()
    ),
}
"""A script of each kind in which nothing happens."""


def play(script: Any) -> Outcome:
    """Run a script. The same one gives the same story, in each process."""
    _warm(type(script))
    return _run(script)


@cache
def _warm(kind: type) -> None:
    """Run a world in which nothing happens: what is loaded late takes its chances there, and not in the first one."""
    _run(_QUIET[kind]())


def _run(script: Any) -> Outcome:
    outcome: Outcome = _PLAYERS[type(script)](script).run()
    return outcome


def shrink(script: Any) -> Any:
    """Return a smaller script that breaks the same rule."""

    def rules(of: Any) -> set[str]:
        return {what.partition(":")[0] for what in play(of).broken}

    wanted = rules(script)
    for part in script.PARTS:
        size = max(len(getattr(script, part)) // 2, 1)
        while size:
            at = 0
            while at < len(kept := getattr(script, part)):
                less = script.without(**{part: kept[:at] + kept[at + size :]})
                if rules(less) & wanted:
                    script = less
                else:
                    at += size
            size //= 2
    return script


def _say(*lines: object) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="host")
    parser.add_argument("--seed", type=int, help="replay this one, and write its story")
    parser.add_argument("--seeds", default="1-100", help="run all of these: A-B")
    parser.add_argument(
        "--shrink", action="store_true", help="with --seed: the smallest script that breaks the same rule"
    )
    parser.add_argument("--digests", action="store_true", help="write the digest of each story")
    parser.add_argument("--mutant", choices=MUTANTS, help="put a fault back: ends at the first seed that sees it")
    options = parser.parse_args()
    if options.mutant is not None:
        MUTANTS[options.mutant][0]()
    make = WORLDS[options.world]
    try:
        return _one(make(options.seed), options.shrink) if options.seed is not None else _many(make, options)
    finally:
        remove_folder()


def _one(script: Any, shrinks: bool) -> int:
    if shrinks:
        script = shrink(script)
    outcome = play(script)
    _say(*outcome.story)
    _say(script.shown)
    _say(f"story {outcome.digest}")
    _say(*(outcome.broken or ["the law holds"]))
    return bool(outcome.broken)


def _sees(outcome: Outcome, rule: str) -> bool:
    return any(what.startswith(f"{rule}:") for what in outcome.broken)


def _many(make: Callable[[int], Any], options: argparse.Namespace) -> int:
    first, _, last = options.seeds.partition("-")
    used, failed = time.process_time(), 0
    seeds = range(int(first), int(last or first) + 1)
    gc.freeze()
    gc.disable()
    for seed in seeds:
        if seed % _COLLECT_EVERY == 0:
            gc.collect()
        outcome = play(make(seed))
        if options.digests:
            _say(f"{seed} {outcome.digest}")
        if outcome.broken:
            failed += 1
            if options.mutant is not None and not _sees(outcome, MUTANTS[options.mutant][1]):
                continue
            more = len(outcome.broken) - 1
            _say(f"seed {seed} ({options.world}): {outcome.broken[0][:300]}" + (f" and {more} more" if more else ""))
            if options.mutant is not None:
                return 1
    took = time.process_time() - used
    _say(f"{len(seeds)} worlds, {failed} broken; {len(seeds) / took * 60:.0f} a minute of processor")
    return bool(failed)
