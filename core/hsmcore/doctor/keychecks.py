"""The checks of the key: found, supported, protected, and the one that the configuration pins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from hsmcore.base.log import printable
from hsmcore.doctor.checks import writable
from hsmcore.doctor.context import FoundKey, ProbeContext
from hsmcore.doctor.public_keys import UNPROVEN_HINT, compare_public_key
from hsmcore.doctor.report import Step, fail, ok, warn
from hsmcore.errors.statuses import STATUSES
from hsmcore.members.control.curves import algorithm_of_params, decode_point
from hsmcore.members.control.faults import translated
from hsmcore.members.control.nearby import near_keys
from hsmcore.members.control.quirks import NO_COPY_HINT

_CANDIDATES: Final = 64


def check_key(context: ProbeContext) -> Iterator[Step]:
    """Find the one private key that the configuration names."""
    question = context.question
    with translated("looking for the key", question.member):
        if question.key_handle is not None:
            matching = [question.key_handle]
        else:
            label = question.key_label.encode() if question.key_label is not None else None
            identity = bytes.fromhex(question.key_id) if question.key_id is not None else None
            matching = context.calls.find(context.session, ObjectClass.PRIVATE_KEY, label, identity)
        if len(matching) != 1:
            yield _not_one(context, matching)
            return
        key = context.key = _read(context, matching[0])
    data = {"label": key.label, "id": key.id, "algorithm": key.algorithm, "keyType": key.key_type}
    if key.algorithm is None:
        kind = f"0x{key.key_type:x}" if key.key_type is not None else "unknown"
        text = f"{key.label!r} has key type {kind}, or a curve that is not supported"
        yield fail("key", text, STATUSES["ALGORITHM_UNSUPPORTED"].hint, **data)
    elif question.algorithm not in (None, key.algorithm):
        text = f"{key.label!r} is an {key.algorithm} key, and algorithm says {question.algorithm}"
        yield fail("key", text, "Correct algorithm, or name another key.", **data)
    else:
        yield ok("key", f"{key.label!r}, id {key.id or '-'}, {key.algorithm}", **data)


def _not_one(context: ProbeContext, matching: list[int]) -> Step:
    """Report that no key or several keys match, with the candidates."""
    question = context.question
    names = {"label": question.key_label, "id": question.key_id}
    wanted = ", ".join(f"{name} {value!r}" for name, value in names.items() if value is not None)
    handles = matching or context.calls.find(context.session, ObjectClass.PRIVATE_KEY)
    present = [(_label(context, handle), _identity(context, handle).hex()) for handle in handles[:_CANDIDATES]]
    candidates = [{"label": label, "id": identity} for label, identity in present]
    if matching:
        hint = STATUSES["KEY_AMBIGUOUS"].hint
        return fail("key", f"{len(matching)} private keys match {wanted}", hint, candidates=candidates)
    hint = near_keys(question.key_label, question.key_id, present)
    return fail("key", f"no private key with {wanted}", hint, candidates=candidates)


def check_mechanism(context: ProbeContext) -> Iterator[Step]:
    """Check that the token signs with the key's mechanism."""
    mechanism = Mechanism.EDDSA if context.key.algorithm == "ed25519" else Mechanism.ECDSA
    name = f"CKM_{mechanism.name}"
    with translated("asking for the mechanism", context.question.member):
        flags = context.calls.mechanism_flags(context.token.slot_id, mechanism)
    if flags is None or not flags & MechanismFlag.SIGN:
        yield fail("mechanism", f"the token does not sign with {name}", STATUSES["MECHANISM_UNSUPPORTED"].hint)
    else:
        yield ok("mechanism", f"{name} signs", mechanism=name)


def evidence_step(local: bool | None) -> Step:
    """Warn of a key of which nothing says that it was made on the token. `local`: CKA_LOCAL; None: it is not shown."""
    if local:
        return ok("evidence", "CKA_LOCAL is true: the key was made on this token; `hsmcore keys attest` asks for proof")
    said = "CKA_LOCAL is false: the key was imported" if local is False else "the token does not show CKA_LOCAL"
    return warn("evidence", f"{said}: nothing shows that the key is nowhere else", UNPROVEN_HINT)


def check_attributes(context: ProbeContext) -> Iterator[Step]:
    """Check that the private key cannot leave the token unwrapped, and is restricted to signing."""
    handle, question = context.key.handle, context.question
    with translated("reading the key's attributes", question.member):
        sensitive, extractable = context.flag(handle, Attribute.SENSITIVE), context.flag(handle, Attribute.EXTRACTABLE)
        never, local = context.flag(handle, Attribute.NEVER_EXTRACTABLE), context.flag(handle, Attribute.LOCAL)
        signs, always = context.flag(handle, Attribute.SIGN), context.flag(handle, Attribute.ALWAYS_AUTHENTICATE)
        uses = {"CKA_DECRYPT": Attribute.DECRYPT, "CKA_UNWRAP": Attribute.UNWRAP, "CKA_DERIVE": Attribute.DERIVE}
        others = [name for name, kind in uses.items() if context.flag(handle, kind)]
    if sensitive is False:
        yield fail("sensitive", "CKA_SENSITIVE is false: whoever logs in can read the private key", "Make another key.")
    else:
        yield ok("sensitive", "CKA_SENSITIVE is true" if sensitive else "the token does not show CKA_SENSITIVE")
    if extractable and not question.backs_up:
        hint = "Use a key that is not extractable, unless it is to be backed up (keyRotation.backupEnabled)."
        yield warn("extractable", "CKA_EXTRACTABLE is true: the token gives the key out, wrapped", hint)
    elif extractable:
        yield ok("extractable", "CKA_EXTRACTABLE is true, which its backups need")
    elif never is False:
        hint = "It was imported or could be taken out before: make a key on the token for what matters."
        yield warn("extractable", "not extractable now, but CKA_NEVER_EXTRACTABLE is false", hint)
    else:
        yield ok("extractable", "not extractable")
    if signs is False:
        yield fail("usage", "CKA_SIGN is false: the key was deactivated, or made for another use", "Name another key.")
    elif others:
        hint = "Make keys that can sign and nothing else (`hsmcore keys generate` does)."
        yield warn("usage", f"beside signing, the key may be used for {', '.join(others)}", hint)
    else:
        yield ok("usage", "signing only")
    yield evidence_step(local)
    if always:
        hint = "Make a key without it: hsmcore does not present the PIN for each signature."
        yield fail("always-authenticate", "CKA_ALWAYS_AUTHENTICATE is true: each signature wants the PIN", hint)
    else:
        yield ok("always-authenticate", "signs without asking for the PIN again")


def check_public_key(context: ProbeContext) -> Iterator[Step]:
    """Check that the public key is known, and equals the pinned one."""
    key, pinned = context.key, context.question.public_key
    if key.public_key is not None:
        yield compare_public_key(key.algorithm, key.public_key, pinned)
    elif pinned is None:
        yield fail("public-key", "the token does not hold the public half", STATUSES["PUBLIC_KEY_MISSING"].hint)
    else:
        found = "only publicKey of the configuration says what it is"
        yield warn("public-key", found, "Put the public half on the token.")


def check_privileges(context: ProbeContext) -> Iterator[Step]:
    """Report what else this login may do, as far as flags show it. PKCS#11 has no query for rights; nothing is
    tried."""
    mechanisms = (Mechanism.EC_EDWARDS_KEY_PAIR_GEN, Mechanism.EC_KEY_PAIR_GEN)
    generates, destroys = False, False
    if writable(context):
        with translated("asking what the login may do", context.question.member):
            flags = [context.calls.mechanism_flags(context.token.slot_id, mechanism) for mechanism in mechanisms]
            generates = any(flag is not None and flag & MechanismFlag.GENERATE_KEY_PAIR for flag in flags)
            destroys = context.flag(context.key.handle, Attribute.DESTROYABLE) is not False
    data = {"mayGenerate": generates, "mayDestroy": destroys}
    rights = " and ".join(name for name, has in (("make", generates), ("destroy", destroys)) if has)
    if not rights:
        yield ok("privileges", "the login can neither make nor destroy keys", **data)
    elif context.question.rotates:
        yield ok("privileges", f"as far as the token shows, the login may {rights} keys, which rotation needs", **data)
    elif not context.quirks.rights_can_be_fewer:
        yield ok("privileges", f"the login may {rights} keys: {context.quirks.name} knows no lesser user", **data)
    else:
        hint = "Least privilege: where the vendor can, give the signing user the right to sign and no other."
        yield warn("privileges", f"as far as the token shows, the login may {rights} keys", hint, **data)


def check_backup(context: ProbeContext) -> Iterator[Step]:
    """Check whether the token could wrap a key of this kind for a backup."""
    key, quirks, question = context.key, context.quirks, context.question
    why = quirks.why_not_wrapped(context.info.library, key.algorithm or "")
    if why is None:
        with translated("asking for mechanisms that wrap", question.member):
            wraps = [context.calls.mechanism_flags(context.token.slot_id, int(kind)) for kind in quirks.wrap_mechanisms]
        if not any(flags is not None and flags & MechanismFlag.WRAP for flags in wraps):
            why = f"the token has no mechanism that hsmcore wraps keys with (quirks {quirks.name})"
    if question.backs_up and question.seals and key.algorithm == "ed25519":
        yield ok("backup", "keyRotation.keyCeremony: new keys are sealed to the recovery key when they are made")
    elif why is not None and question.shares:
        yield fail("backup", f"{why}, and a new key has to get to the other members: rotations will fail", NO_COPY_HINT)
    elif why is not None and question.backs_up and not question.backup_is_required:
        yield warn("backup", why, 'Keys are rotated without a backup, as keyRotation.backupPolicy "warn" allows.')
    elif why is not None and question.backs_up:
        hint = (
            "Rotations will fail. Give keyRotation.keyCeremony a recovery key, or set keyRotation.backupPolicy to "
            '"warn" or backupEnabled to false and back the device up by its vendor\'s means.'
        )
        yield fail("backup", f"{why}, and keyRotation.backupEnabled asks for it", hint)
    elif why is not None:
        yield ok("backup", f"none asked for; {why}", possible=False)
    elif not context.flag(key.handle, Attribute.EXTRACTABLE):
        found = "the token wraps keys, but not this one: it is not extractable"
        if question.backs_up:
            yield warn("backup", found, "Keys that rotation makes from now on are; rotate to get one.", possible=False)
        else:
            yield ok("backup", f"none asked for; {found}", possible=False)
    else:
        yield ok("backup", "the token can wrap this key", possible=True)


def _label(context: ProbeContext, handle: int) -> str:
    raw = context.calls.attribute(context.session, handle, Attribute.LABEL) or b""
    return printable(raw.decode("utf-8", "replace"), 128)


def _identity(context: ProbeContext, handle: int) -> bytes:
    return context.calls.attribute(context.session, handle, Attribute.ID) or b""


def _read(context: ProbeContext, handle: int) -> FoundKey:
    calls, session = context.calls, context.session
    identity, key_type = _identity(context, handle), context.number(handle, Attribute.KEY_TYPE)
    algorithm = algorithm_of_params(calls.attribute(session, handle, Attribute.EC_PARAMS) or b"")
    if key_type != (KeyType.EC_EDWARDS if algorithm == "ed25519" else KeyType.EC):
        algorithm = None
    point = calls.attribute(session, handle, Attribute.EC_POINT) if algorithm is not None else None
    if algorithm is not None and not point:
        label = None if identity else calls.attribute(session, handle, Attribute.LABEL)
        halves = calls.find(session, ObjectClass.PUBLIC_KEY, label, identity)
        point = calls.attribute(session, halves[0], Attribute.EC_POINT) if len(halves) == 1 else None
    public_key = decode_point(algorithm, point) if algorithm is not None and point else None
    return FoundKey(handle, _label(context, handle), identity.hex(), algorithm, key_type, public_key)
