"""The members that can be tuned, what their tokens allow, and who else uses them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from hsmcore.base.receipt import LevelName
from hsmcore.cli.opened import in_state
from hsmcore.cli.output import BadUsage
from hsmcore.config import Config, Pkcs11Settings, Provider
from hsmcore.config.pkcs11 import MAX_SESSIONS
from hsmcore.doctor.doctor import probe
from hsmcore.doctor.report import Step
from hsmcore.doctor.subject import Options, Subject
from hsmcore.errors import ConfigFault, ConfigurationError, MemberDown
from hsmcore.members import Member, make_member
from hsmcore.state import Desired

Members = Sequence[tuple[LevelName, Provider]]


def tunable(config: Config, name: str | None) -> Members:
    """Return the members that have sessions; `name`: only those of this name, type or level. Raises BadUsage,
    ConfigurationError if none has."""
    members = config.key_manager.members()
    chosen = [one for one in members if name in (None, one[1].name, one[1].type, one[0])]
    if not chosen:
        names = ", ".join(dict.fromkeys(f'"{member.name}"' for _, member in members))
        raise BadUsage(f"--member: the configuration has none of that name, type or level; it has {names}")
    found = [one for one in chosen if isinstance(one[1].config, Pkcs11Settings)]
    if not found:
        raise ConfigurationError.of(
            [ConfigFault(f"{m.where}.type", f"a provider of type {m.type} has no sessions") for _, m in chosen],
            hint="Only PKCS#11 modules have them. Tune another member, or nothing.",
        )
    config.require_complete()
    return found


async def signers(config: Config) -> int:
    """Return how many key managers run on the configuration's state store."""
    if not config.key_manager.state_path.is_file():
        return 0
    running = await in_state(config, lambda store: Desired(store).running(), shows=True)
    return len({report.get("process") for report in running})


def with_sessions(level: LevelName, provider: Provider, config: Config, sessions: int) -> Member:
    """Return a member with so many sessions. Starts nothing."""
    return make_member(_sized(provider, sessions), config.key_manager, level, config.secret_variables)


def room(level: LevelName, provider: Provider, config: Config) -> tuple[int, int]:
    """Return how many sessions can sign, without those that others have and the one that logs in, and how many others
    have. The first checks of `hsmcore doctor` say so, up to the login and its sessions. Blocks; no event loop may run
    in this thread. Raises MemberDown if one fails: a PIN that the token refused is not sent again."""
    with closing(probe(Subject(_sized(provider, 1), config, level, Options()))) as events:
        for step in events:
            if not isinstance(step, Step):
                continue
            if step.outcome == "fail":
                raise MemberDown(f"member {provider.name!r}: {step.name}: {step.found}", hint=step.hint)
            if step.name == "sessions":
                most, used = step.data.get("most"), step.data.get("inUse") or 0
                return (MAX_SESSIONS if most is None else max(1, most - used - 1)), used
    raise MemberDown(f"member {provider.name!r}: its sessions could not be counted", hint="See `hsmcore doctor`.")


def _sized(provider: Provider, sessions: int) -> Provider:
    settings = provider.config.model_copy(update={"sessions": sessions})
    return provider.named(provider.name).model_copy(update={"config": settings})
