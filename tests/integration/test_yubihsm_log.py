"""The device's own audit log, drained through python-yubihsm while the vendor's module signs."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.verifiers import is_good
from tests.support.yubihsm import Command, Error
from tests.support.yubihsm.rig import AUDITOR, KEY_ID, PASSWORDS, SIGNER

import hsmcore
from hsmcore.errors import BadArgument, HsmError, LoginError, MemberDown, PinIncorrect, RequestRejected
from hsmcore.providers.yubihsm.chain import LogEntry, join, verify_chain
from hsmcore.providers.yubihsm.drain import LogSource, drain

pytestmark = pytest.mark.integration


class Kept:
    """A place where entries are kept."""

    def __init__(self):
        self.entries, self.anchor, self.findings = [], None, []

    async def __call__(self, entries, anchor):
        self.entries += entries
        self.anchor = anchor

    async def drain(self, settings):
        result = await drain(settings, self.anchor, self)
        assert result.anchor == self.anchor
        self.findings += result.findings
        return result


def settings_of(rig, **changes):
    audit = {"auditAuthKeyId": AUDITOR, "auditPassword": {"file": rig.password_file(PASSWORDS[AUDITOR])}}
    return hsmcore.config.load(rig.config(settings=audit | changes)).key_manager.config


def numbers(raw):
    return [int.from_bytes(entry[:2], "big") for entry in raw]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_no_entry_is_lost_under_force_audit(rig, tmp_path, isolation):
    rig.device.log.force = 1
    kept, settings = Kept(), settings_of(rig)
    audit_file = tmp_path / "audit.log"
    config = rig.config(settings={"isolation": isolation}, auditLogFile=str(audit_file))
    async with opened(config) as manager:
        for batch in range(8):
            messages = [f"{batch} {number}".encode() for number in range(25)]
            for message, signature in zip(messages, await manager.sign_many(messages), strict=True):
                assert is_good("ed25519", rig.public_key, message, signature)
            await kept.drain(settings)
        records = [record async for record in manager.audit.query(match={"operation": "sign"})]
    await kept.drain(settings)
    assert kept.findings == []
    assert verify_chain(kept.entries) == []
    assert [entry.number for entry in kept.entries] == list(range(1, len(kept.entries) + 1))
    signatures = [entry for entry in kept.entries if entry.command == Command.SIGN_EDDSA]
    assert len(signatures) == 200 + 1  # the key was proved at the start
    assert {(entry.session_key, entry.target_key, entry.succeeded) for entry in signatures} == {(SIGNER, KEY_ID, True)}
    joined = join(kept.entries, records, auth_key_id=SIGNER)
    assert (len(joined.pairs), len(joined.only_device), joined.only_ours) == (200, 1, [])


@one_loop
async def test_signing_under_force_audit_goes_on_while_a_drain_runs_beside_it(rig):
    rig.device.log.force = 1
    kept, settings = Kept(), settings_of(rig)
    async with opened(rig.config()) as manager:

        async def sign(caller):
            for number in range(50):
                message = f"{caller} {number}".encode()
                while True:
                    try:
                        signature = await manager.sign(message)
                    except HsmError:
                        await asyncio.sleep(0.005)
                    else:
                        assert is_good("ed25519", rig.public_key, message, signature)
                        break

        signing = start(asyncio.wait_for(asyncio.gather(*map(sign, range(4))), 120.0))
        while not signing.done():
            await kept.drain(settings)
        await signing
    await kept.drain(settings)
    # A login that found the log full is told; nothing else is amiss.
    assert [one for one in kept.findings if one.kind != "unlogged"] == []
    assert sum(entry.command == Command.SIGN_EDDSA and entry.succeeded for entry in kept.entries) == 201


@pytest.mark.parametrize("what", ["flip", "drop", "reorder"])
@one_loop
async def test_what_is_done_to_the_log_between_readings_is_found(rig, what):
    kept, settings = Kept(), settings_of(rig)
    await kept.drain(settings)
    async with opened(rig.config()) as manager:
        await manager.sign_many([f"{number}".encode() for number in range(10)])
    entries = rig.device.log.entries
    place = next(index for index, raw in enumerate(entries) if raw[2] == Command.SIGN_EDDSA) + 3
    if what == "flip":
        entries[place] = entries[place][:20] + bytes([entries[place][20] ^ 1]) + entries[place][21:]
    elif what == "drop":
        del entries[place]
    else:
        entries[place], entries[place + 1] = entries[place + 1], entries[place]
    number = LogEntry.parse(entries[place]).number
    await kept.drain(settings)
    kind = {"flip": "tampered", "drop": "gap", "reorder": "order"}[what]
    assert kind in {finding.kind for finding in kept.findings}
    assert number in {finding.number for finding in kept.findings}
    # The evidence was kept, and the next reading goes on from there.
    kept.findings.clear()
    await kept.drain(settings)
    assert kept.findings == []


@one_loop
async def test_what_could_not_be_kept_is_read_again(rig):
    settings, kept = settings_of(rig), Kept()

    def full(_entries, _anchor):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        await drain(settings, None, full)
    before = numbers(rig.device.log.entries)
    await kept.drain(settings)
    assert [entry.number for entry in kept.entries][: len(before)] == before


@one_loop
async def test_what_was_kept_but_not_cleared_is_taken_once(rig):
    settings, kept = settings_of(rig), Kept()
    rig.device.inject("error", Command.SET_LOG_INDEX, code=Error.STORAGE_FAILED)
    with pytest.raises(HsmError):
        await kept.drain(settings)
    result = await kept.drain(settings)
    assert result.findings == []
    assert [entry.number for entry in kept.entries] == list(range(1, len(kept.entries) + 1))


@one_loop
async def test_logins_while_the_log_was_full_are_reported(rig):
    settings, kept = settings_of(rig), Kept()
    rig.device.log.force = 1
    while not rig.device.log.full:
        rig.device.log.record(Command.LIST_OBJECTS, 0, 0xC8)
    result = await kept.drain(settings)
    assert (result.unlogged_authentications, [finding.kind for finding in result.findings]) == (2, ["unlogged"])


@one_loop
async def test_another_device_in_its_place_is_refused_and_keeps_its_log(rig):
    settings, kept = settings_of(rig), Kept()
    await kept.drain(settings)
    rig.device.serial += 1
    before = len(rig.device.log.entries)
    with pytest.raises(HsmError, match="serial number"):
        await kept.drain(settings)
    assert len(rig.device.log.entries) >= before


@one_loop
async def test_the_refusal_names_the_capability_that_the_user_lacks(rig):
    source = LogSource.of(hsmcore.config.load(rig.config()).key_manager.config)
    assert source.auth_key_id == SIGNER
    with pytest.raises(RequestRejected, match="get-log-entries"):
        await drain(source, None, Kept())
    assert rig.device.sessions == {}


@one_loop
async def test_a_wrong_password_and_an_unknown_user(rig):
    wrong = settings_of(rig, auditPassword={"file": rig.password_file("wrong password")})
    with pytest.raises(PinIncorrect) as caught:
        await drain(wrong, None, Kept())
    assert "wrong password" not in repr(caught.value)
    with pytest.raises(LoginError):
        await drain(settings_of(rig, auditAuthKeyId=0x0777), None, Kept())
    assert rig.device.openings == {AUDITOR: 1, 0x0777: 1}


@pytest.mark.parametrize("kind", ["garbage", "truncate", "corrupt-mac", "http-error", "lose-reply"])
@one_loop
async def test_a_device_with_invalid_answers(rig, kind):
    settings, kept = settings_of(rig), Kept()
    rig.device.inject(kind, Command.GET_LOG_ENTRIES)
    with pytest.raises(MemberDown):
        await kept.drain(settings)
    assert kept.entries == []
    await kept.drain(settings)
    assert kept.findings == []


@one_loop
async def test_a_drain_that_is_cancelled_leaves_nothing(rig):
    settings = settings_of(rig)
    rig.device.inject("hang", Command.GET_LOG_ENTRIES)
    draining = start(drain(settings, None, Kept()))
    await until(lambda: rig.device.faults.hanging == 1)
    draining.cancel()
    rig.device.faults.release()
    with pytest.raises(asyncio.CancelledError):
        await draining


def test_one_connector_is_one_log(rig):
    several = settings_of(rig, connector=None, connectors=["http://127.0.0.1:1", "http://127.0.0.1:2"])
    with pytest.raises(BadArgument, match="several"):
        LogSource.of(several)
