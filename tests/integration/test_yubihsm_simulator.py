"""The simulated device itself, judged by an independent client: python-yubihsm."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from tests.support.softhsm import RFC8032_PUBLIC, RFC8032_SEED
from tests.support.yubihsm import Connector, Device
from yubihsm import YubiHsm
from yubihsm.defs import ALGORITHM, AUDIT, CAPABILITY, COMMAND, ERROR, OBJECT
from yubihsm.exceptions import YubiHsmAuthenticationError, YubiHsmConnectionError, YubiHsmDeviceError, YubiHsmError
from yubihsm.objects import AsymmetricKey, AuthenticationKey, Opaque, WrapKey

pytestmark = pytest.mark.integration

SIGN = CAPABILITY.SIGN_EDDSA | CAPABILITY.SIGN_ECDSA


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def hsm(device):
    with Connector(device) as connector:
        client = YubiHsm.connect(connector.url)
        yield client
        client.close()


@pytest.fixture
def session(hsm):
    with hsm.create_session_derived(1, "password") as session:
        yield session


@contextmanager
def refused(code):
    with pytest.raises(YubiHsmDeviceError) as caught:
        yield
    assert caught.value.code == code


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_sixteen_sessions_and_no_more(hsm, device):
    sessions = [hsm.create_session_derived(1, "password") for _ in range(16)]
    assert sorted(session.sid for session in sessions) == list(range(16))
    with refused(ERROR.SESSIONS_FULL):
        hsm.create_session_derived(1, "password")
    sessions.pop().close()
    with hsm.create_session_derived(1, "password") as another:
        assert len(another.get_pseudo_random(100)) == 100
    for session in sessions:
        session.close()
    assert device.sessions == {}


def test_an_idle_session_expires(hsm, device):
    session = hsm.create_session_derived(1, "password")
    for _ in range(3):
        device.advance(29.0)
        session.list_objects()
    device.advance(31.0)
    with refused(ERROR.INVALID_SESSION):
        session.list_objects()


def test_power_cycling_ends_sessions_and_keeps_keys(hsm, session, device):
    key = AsymmetricKey.generate(session, 0x64, "key", 1, SIGN, ALGORITHM.EC_ED25519)
    device.power_cycle()
    with refused(ERROR.INVALID_SESSION):
        key.get_public_key()
    with hsm.create_session_derived(1, "password") as again:
        assert again.get_object(0x64, OBJECT.ASYMMETRIC_KEY).get_info().label == "key"
    session._sid = None  # the device has forgotten it; closing would say so


def test_a_wrong_password_and_a_wrong_user(hsm, device):
    with pytest.raises(YubiHsmAuthenticationError):
        hsm.create_session_derived(1, "wrong password")
    with refused(ERROR.OBJECT_NOT_FOUND):
        hsm.create_session_derived(7, "password")
    assert device.openings == {1: 1, 7: 1}


def test_many_sessions_at_once_keep_their_channels_apart(hsm):
    sessions = [hsm.create_session_derived(1, "password") for _ in range(8)]
    for number in range(100):
        session = sessions[number * 5 % 8]
        assert session.send_secure_cmd(COMMAND.ECHO, bytes([number]) * number) == bytes([number]) * number
    for session in sessions:
        session.close()


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_ed25519_signs_as_rfc_8032_says(session):
    key = session.send_secure_cmd(
        COMMAND.PUT_ASYMMETRIC_KEY,
        b"\x00\x64"
        + b"rfc8032".ljust(40, b"\0")
        + b"\x00\x01"
        + int(SIGN).to_bytes(8, "big")
        + bytes([ALGORITHM.EC_ED25519])
        + bytes.fromhex(RFC8032_SEED),
    )
    assert key == b"\x00\x64"
    made = session.get_object(0x64, OBJECT.ASYMMETRIC_KEY)
    assert made.get_public_key().public_bytes_raw().hex() == RFC8032_PUBLIC
    # Section 7.1, TEST 2.
    assert made.sign_eddsa(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")


@pytest.mark.parametrize("algorithm", [ALGORITHM.EC_P256, ALGORITHM.EC_K256])
def test_ecdsa(session, algorithm):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    key = AsymmetricKey.generate(session, 0, "key", 1, SIGN, algorithm)
    key.get_public_key().verify(key.sign_ecdsa(b"message"), b"message", ec.ECDSA(SHA256()))
    with refused(ERROR.INVALID_DATA):
        key.sign_eddsa(b"message")


def test_objects_are_listed_described_and_deleted(session):
    made = [AsymmetricKey.generate(session, 0, f"key {n}", 1 << n, SIGN, ALGORITHM.EC_ED25519) for n in range(3)]
    assert {found.id for found in session.list_objects(object_type=OBJECT.ASYMMETRIC_KEY)} == {key.id for key in made}
    assert [found.id for found in session.list_objects(label="key 1")] == [made[1].id]
    assert [found.id for found in session.list_objects(domains=4, object_type=OBJECT.ASYMMETRIC_KEY)] == [made[2].id]
    info = made[0].get_info()
    assert (info.label, info.domains, info.capabilities, info.sequence) == ("key 0", 1, SIGN, 0)
    made[0].delete()
    with refused(ERROR.OBJECT_NOT_FOUND):
        made[0].get_info()
    again = AsymmetricKey.generate(session, made[0].id, "key", 1, SIGN, ALGORITHM.EC_ED25519)
    assert again.get_info().sequence == 1
    with refused(ERROR.OBJECT_EXISTS):
        AsymmetricKey.generate(session, made[0].id, "key", 1, SIGN, ALGORITHM.EC_ED25519)


def test_there_is_room_for_256_objects(session):
    for number in range(255):  # and the user
        Opaque.put(session, 0x100 + number, "x", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, bytes([number]))
    with refused(ERROR.STORAGE_FAILED):
        Opaque.put(session, 0, "x", 1, CAPABILITY.NONE, ALGORITHM.OPAQUE_DATA, b"x")
    assert session.get_object(0x101, OBJECT.OPAQUE).get() == b"\x01"


# ---- permissions -----------------------------------------------------------------------------------------------------


def user(hsm, session, capabilities, domains=1, delegated=CAPABILITY.NONE):
    AuthenticationKey.put_derived(session, 9, "user", domains, capabilities, delegated, "user password")
    return hsm.create_session_derived(9, "user password")


def test_user_and_key_must_both_be_allowed(hsm, session):
    key = AsymmetricKey.generate(session, 0x64, "may", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
    mute = AsymmetricKey.generate(session, 0x65, "may not", 1, CAPABILITY.NONE, ALGORITHM.EC_ED25519)
    assert len(key.sign_eddsa(b"x")) == 64
    with refused(ERROR.INSUFFICIENT_PERMISSIONS):
        mute.sign_eddsa(b"x")
    with user(hsm, session, CAPABILITY.GET_LOG_ENTRIES) as reader:
        with refused(ERROR.INSUFFICIENT_PERMISSIONS):
            key.with_session(reader).sign_eddsa(b"x")
        for forbidden in (lambda: reader.get_pseudo_random(1), key.with_session(reader).delete, reader.reset_device):
            with refused(ERROR.INSUFFICIENT_PERMISSIONS):
                forbidden()


def test_objects_of_another_domain_are_invisible(hsm, session):
    AsymmetricKey.generate(session, 0x64, "here", 2, SIGN, ALGORITHM.EC_ED25519)
    with user(hsm, session, SIGN, domains=1) as stranger:
        assert {found.id for found in stranger.list_objects()} == {1, 9}
        with refused(ERROR.OBJECT_NOT_FOUND):
            stranger.get_object(0x64, OBJECT.ASYMMETRIC_KEY).sign_eddsa(b"x")


def test_capabilities_beyond_the_delegated_ones_are_refused(hsm, session):
    making = CAPABILITY.GENERATE_ASYMMETRIC_KEY
    with user(hsm, session, making, delegated=CAPABILITY.SIGN_EDDSA) as maker:
        key = AsymmetricKey.generate(maker, 0x64, "key", 0xFFFF, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
        assert key.get_info().domains == 1
        with refused(ERROR.INSUFFICIENT_PERMISSIONS):
            AsymmetricKey.generate(maker, 0, "key", 1, SIGN, ALGORITHM.EC_ED25519)


# ---- wrapping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [ALGORITHM.AES128_CCM_WRAP, ALGORITHM.AES192_CCM_WRAP, ALGORITHM.AES256_CCM_WRAP])
def test_a_key_goes_from_device_to_device_under_a_wrap_key(session, algorithm):
    exporting = CAPABILITY.EXPORT_WRAPPED | CAPABILITY.IMPORT_WRAPPED
    secret = bytes(range(algorithm.to_key_size()))
    carried = SIGN | CAPABILITY.EXPORTABLE_UNDER_WRAP
    wrap = WrapKey.put(session, 0x50, "wrap", 1, exporting, algorithm, carried, secret)
    key = AsymmetricKey.generate(session, 0x64, "key", 1, carried, ALGORITHM.EC_ED25519)
    blob = wrap.export_wrapped(key)
    with (
        Connector(Device(9_000_002)) as connector,
        YubiHsm.connect(connector.url) as other,
        other.create_session_derived(1, "password") as there,
    ):
        twin = WrapKey.put(there, 0x50, "wrap", 1, exporting, algorithm, carried, secret)
        with refused(ERROR.INVALID_DATA):
            twin.import_wrapped(blob[:-1] + bytes([blob[-1] ^ 1]))
        restored = twin.import_wrapped(blob)
        assert restored.sign_eddsa(b"x") == key.sign_eddsa(b"x")
        with refused(ERROR.OBJECT_EXISTS):
            twin.import_wrapped(blob)


def test_what_is_not_exportable_stays(session):
    exporting = CAPABILITY.EXPORT_WRAPPED | CAPABILITY.IMPORT_WRAPPED
    narrow = WrapKey.generate(session, 0x50, "wrap", 1, exporting, ALGORITHM.AES256_CCM_WRAP, CAPABILITY.SIGN_EDDSA)
    stays = AsymmetricKey.generate(session, 0x64, "key", 1, CAPABILITY.SIGN_EDDSA, ALGORITHM.EC_ED25519)
    more = AsymmetricKey.generate(
        session, 0x65, "key", 1, SIGN | CAPABILITY.EXPORTABLE_UNDER_WRAP, ALGORITHM.EC_ED25519
    )
    for key in (stays, more):
        with refused(ERROR.INSUFFICIENT_PERMISSIONS):
            narrow.export_wrapped(key)


# ---- log and options -------------------------------------------------------------------------------------------------


def test_the_log_is_a_chain_that_the_client_checks(session):
    for _ in range(10):
        session.get_pseudo_random(1)
    more = session.get_log_entries()
    assert [entry.number for entry in more.entries] == list(range(1, len(more.entries) + 1))
    session.set_log_index(more.entries[-1].number)
    rest = session.get_log_entries(more.entries[-1])
    assert [entry.command for entry in rest.entries] == [COMMAND.SET_LOG_INDEX]


def test_a_full_log_stops_what_would_be_logged(hsm, session):
    session.set_force_audit(AUDIT.ON)
    assert session.get_force_audit() == AUDIT.ON
    with refused(ERROR.LOG_FULL):
        for _ in range(70):
            session.get_pseudo_random(1)
    with hsm.create_session_derived(1, "password"):  # always possible
        data = session.get_log_entries()
    assert (len(data.entries), data.n_auth) == (62, 2)
    session.set_log_index(data.entries[-1].number)
    assert len(session.get_pseudo_random(1)) == 1
    assert session.get_log_entries().n_auth == 0


def test_a_command_can_be_left_out_of_the_log_or_kept_in_for_good(session):
    session.set_command_audit({COMMAND.GET_PSEUDO_RANDOM: AUDIT.OFF, COMMAND.SIGN_EDDSA: AUDIT.FIXED})
    before = len(session.get_log_entries().entries)
    session.get_pseudo_random(1)
    assert len(session.get_log_entries().entries) == before
    with refused(ERROR.INVALID_DATA):
        session.set_command_audit({COMMAND.SIGN_EDDSA: AUDIT.OFF})
    assert session.get_command_audit()[COMMAND.SIGN_EDDSA] == AUDIT.FIXED


def test_a_reset_makes_it_new(hsm, device):
    session = hsm.create_session_derived(1, "password")
    AsymmetricKey.generate(session, 0x64, "key", 1, SIGN, ALGORITHM.EC_ED25519)
    session.reset_device()
    assert [stored.id for stored in device.store] == [1]
    assert device.sessions == {}


# ---- time and trouble ------------------------------------------------------------------------------------------------


def test_the_simulator_takes_its_latency_and_serves_one_command_at_a_time(device, session):
    device.latency[COMMAND.SIGN_EDDSA] = 0.05
    key = AsymmetricKey.generate(session, 0x64, "key", 1, SIGN, ALGORITHM.EC_ED25519)
    begun = time.monotonic()
    for _ in range(3):
        key.sign_eddsa(b"x")
    assert time.monotonic() - begun >= 0.15


@pytest.mark.parametrize("kind", ["lose-reply", "garbage", "truncate", "http-error", "corrupt-mac"])
def test_faults_are_seen_by_a_client(device, session, kind):
    device.inject(kind, COMMAND.GET_PSEUDO_RANDOM)
    with pytest.raises((YubiHsmError, struct.error, IndexError)):  # which of them is the client's affair
        session.get_pseudo_random(1)
    assert device.faults.struck == [kind]
    session._sid = None


def test_a_connector_that_is_stopped_refuses_and_comes_back(device):
    connector = Connector(device)
    connector.start()
    client = YubiHsm.connect(connector.url)
    connector.stop()
    with pytest.raises(YubiHsmConnectionError):
        client.get_device_info()
    connector.start()
    assert client.get_device_info().serial == device.serial
    client.close()
    connector.stop()


def test_malformed_frames_are_refused(device):
    for frame in (b"", b"\x05", b"\x05\x00\x00", b"\x05\x00\x01\x00", b"\xee\x00\x00", b"\x03\x00\x02ab", bytes(4000)):
        reply = device.process(frame)
        assert reply[:3] == b"\x7f\x00\x01"


def test_it_runs_as_a_program():
    command = [sys.executable, "-m", "tests.support.yubihsm", "--port", "0", "--profile", "none", "--key", "0x64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = json.loads(process.stdout.readline())
            client = YubiHsm.connect(said["url"])
            with client.create_session_derived(said["authKeyId"], said["password"]) as session:
                assert len(session.get_object(0x64, OBJECT.ASYMMETRIC_KEY).sign_eddsa(b"x")) == 64
            client.close()
        finally:
            process.terminate()
        assert process.wait(10) == 0
