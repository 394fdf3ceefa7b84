"""The checks of a module and its token, up to the sessions. Each takes the context and yields steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from pkcs11 import TokenFlag

from hsmcore._native import Turn
from hsmcore.base.uri import build_uri
from hsmcore.doctor.context import ProbeContext
from hsmcore.doctor.report import Step, fail, failed, ok, warn
from hsmcore.errors import HsmError, PinIncorrect
from hsmcore.errors.statuses import STATUSES
from hsmcore.members.control.adopt import hold_module
from hsmcore.members.control.calls import Calls, CkrError, TokenInfo, try_load
from hsmcore.members.control.faults import translated
from hsmcore.members.control.nearby import near_tokens
from hsmcore.members.control.quirks import quirks_for

_SESSION_COUNT: Final = 0x0B1


def check_module(context: ProbeContext) -> Iterator[Step]:
    """Load and initialize the module, and recognize it."""
    question = context.question
    try_load(question.module_path, context.announce)
    context.announce("C_Initialize")
    with Turn(question.module_path, question.quirks):
        context.holder = hold_module(question.module_path, question.module_args)
    with translated("asking the module who it is", question.member):
        context.calls = Calls(question.module_path, question.quirks, context.announce)
        info = context.info = context.calls.info()
    recognized = quirks_for(None, f"{info.manufacturer} {info.description}").name
    context.quirks = quirks_for(question.quirks or recognized)
    context.calls.quirks = context.quirks.name
    version = ".".join(map(str, info.library))
    found = (
        f"{info.description or 'no description'} {version} by {info.manufacturer or 'nobody'}, "
        f"PKCS#11 {'.'.join(map(str, info.cryptoki))}, quirks {context.quirks.name}"
    )
    data = {
        "cryptokiVersion": ".".join(map(str, info.cryptoki)),
        "manufacturer": info.manufacturer,
        "description": info.description,
        "libraryVersion": version,
        "quirks": context.quirks.name,
        "recognizedQuirks": recognized,
    }
    if question.quirks is not None and recognized not in ("generic", question.quirks):
        hint = f'Leave quirks out, or set it to "{recognized}", unless you know better.'
        yield warn("module", f"{found}; the module looks like {recognized}", hint, **data)
    else:
        yield ok("module", found, **data)


def check_token(context: ProbeContext) -> Iterator[Step]:
    """Find the one token that the selectors name."""
    question = context.question
    seen: list[TokenInfo] = []
    with translated("looking for the token", question.member), Turn(question.module_path, context.quirks.name):
        for slot in context.calls.slots():
            with suppress(CkrError):  # a slot whose token does not answer is not a candidate
                seen.append(context.calls.token(slot))
    wanted = question.token
    matching = wanted.choose(seen)
    present = [token for token in seen if token.flags & TokenFlag.TOKEN_INITIALIZED]
    if len(matching) == 1:
        token = context.token = matching[0]
        place = f"{token.label!r}, serial {token.serial or '-'}, slot {token.slot_id}"
        yield ok("token", f"{place}, {token.manufacturer} {token.model}".rstrip(), **_token_data(token))
    elif matching:
        yield fail(
            "token",
            f"{len(matching)} tokens match {wanted}",
            STATUSES["TOKEN_AMBIGUOUS"].hint,
            candidates=[_token_data(token) for token in matching],
        )
    else:
        yield fail(
            "token",
            f"no slot holds a token with {wanted}",
            near_tokens(wanted, present, question.module_path, question.module_args),
            candidates=[_token_data(token) for token in present],
        )


def check_token_state(context: ProbeContext) -> Iterator[Step]:
    """Judge the token's flags, before any attempt to log in."""
    flag, flags = TokenFlag, context.token.flags
    login_required = bool(flags & flag.LOGIN_REQUIRED)
    found: list[Step] = []
    if not flags & flag.TOKEN_INITIALIZED:
        found.append(fail("token-state", "the token is not initialized", "Initialize it and give its user a PIN."))
    elif login_required and not flags & flag.USER_PIN_INITIALIZED:
        found.append(fail("token-state", "the user's PIN is not set", "Have the security officer set it."))
    problems = (
        (flag.USER_PIN_LOCKED, fail, "the user's PIN is locked", STATUSES["PIN_LOCKED"].hint),
        (flag.USER_PIN_FINAL_TRY, warn, "one more wrong PIN locks the user out", "Check the PIN by hand first."),
        (flag.USER_PIN_TO_BE_CHANGED, warn, "the user's PIN has to be changed", "Change it with the vendor's tool."),
        (flag.USER_PIN_COUNT_LOW, warn, "a wrong PIN was given since the last login", "Find out who gave it."),
        (flag.PROTECTED_AUTHENTICATION_PATH, warn, "the token takes its PIN from a keypad, too", ""),
    )
    found += [make("token-state", text, hint) for bit, make, text, hint in problems if flags & bit]
    state = f"initialized, login {'required' if login_required else 'not required'}"
    yield from found or (ok("token-state", state, flags=flags, loginRequired=login_required),)


def check_login(context: ProbeContext) -> Iterator[Step]:
    """Log in, at most once; not at all if the token's flags advise against it."""
    question, flags = context.question, context.token.flags
    with translated("opening a session", question.member):
        context.session = context.calls.open(context.token.slot_id, read_write=context.quirks.opens_read_write)
    if not question.has_pin:
        if flags & TokenFlag.LOGIN_REQUIRED:
            yield fail(
                "login", "the token requires a login, and no PIN is configured", "Give pin, or pin-source in uri."
            )
        else:
            yield ok("login", "none is needed", attempts=0)
        return
    if flags & TokenFlag.USER_PIN_FINAL_TRY and not question.force_login:
        yield fail(
            "login",
            "not tried: the token says that one more wrong PIN locks it",
            "Make sure that the PIN is right, then repeat with --force-login.",
            attempts=0,
        )
        return
    try:
        with translated("logging in", question.member):
            context.calls.login(context.session, context.pin)
    except HsmError as error:
        if isinstance(error, PinIncorrect):
            error.hint = context.quirks.wrong_pin_hint("the PIN or password that the configuration refers to")
        step = failed("login", error)
        yield step.model_copy(update={"data": {**step.data, "attempts": 1}})
    else:
        yield ok("login", "the token took the PIN (one attempt)", attempts=1)


def check_sessions(context: ProbeContext) -> Iterator[Step]:
    """Open as many sessions as the configuration needs, in addition to the one that is logged in."""
    token, most_useful = context.token, context.quirks.sessions
    wanted = min(context.question.sessions, most_useful or context.question.sessions) + 1
    most, used = token.max_sessions or None, token.sessions
    data = {"wanted": wanted, "most": most, "inUse": used}
    if most is not None and most < wanted:
        hint = f"Set sessions to {max(1, most - 1)} or less."
        yield fail(
            "sessions", f"the token has {most} sessions; {wanted} are needed (one of them logs in)", hint, **data
        )
        return
    if most is not None and used is not None and used + wanted > most:
        hint = "Not opened, so as not to take them from whoever uses them; stop it, or set sessions lower."
        yield warn("sessions", f"{used} of the token's {most} sessions are in use; {wanted} are needed", hint, **data)
        return
    opened: list[int] = []
    refused: CkrError | None = None
    try:
        while len(opened) + 1 < wanted:
            opened.append(context.calls.open(token.slot_id, read_write=context.quirks.opens_read_write))
            time.sleep(context.quirks.open_pause)
    except CkrError as error:
        refused = error
    finally:
        for session in opened:
            context.calls.close(session)
    data["opened"] = len(opened) + 1
    limit = "no limit" if most is None else f"limit {most}"
    if refused is None:
        yield ok("sessions", f"{wanted} opened at once ({limit})", **data)
    elif refused.ckr == _SESSION_COUNT:
        found = f"the token opened {len(opened) + 1} sessions of {wanted}"
        yield fail("sessions", found, f"Set sessions to {max(1, len(opened))} or less.", **data)
    else:
        with translated("opening sessions", context.question.member):
            raise refused


def writable(context: ProbeContext) -> bool:
    """Return whether the token accepts new objects."""
    return not context.token.flags & TokenFlag.WRITE_PROTECTED


def _token_data(token: TokenInfo) -> dict[str, object]:
    names = {"token": token.label or None, "serial": token.serial or None, "manufacturer": token.manufacturer or None}
    return {
        "uri": build_uri({**names, "model": token.model or None}),
        "label": token.label,
        "serial": token.serial,
        "slotId": token.slot_id,
        "slotDescription": token.slot_description,
        "manufacturer": token.manufacturer,
        "model": token.model,
        "firmware": ".".join(map(str, token.firmware)),
    }
