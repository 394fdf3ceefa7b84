"""The aws-cloudhsm provider against an imitation of the vendor's module: SoftHSM behind the fault-injecting module."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.cloudhsm import ADMIN, ADMIN_PASSWORD, CLUSTERS, SIGNER, SIGNER_PASSWORD, Cluster
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.size import crossed
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.config import load
from hsmcore.errors import (
    BadArgument,
    ConfigurationError,
    KeyMismatch,
    KeyNotFound,
    KeyUnusable,
    LoginError,
    PinIncorrect,
    RequestRejected,
    SessionFailed,
    TokenAmbiguous,
    TokenNotFound,
)
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped

pytestmark = [pytest.mark.integration]

KEYS = tuple({"name": name, "kind": name} for name in ALGORITHMS)
ISOLATIONS = ("thread", "process")


@pytest.fixture
def cluster(fresh_token, tmp_path):
    """One cluster with a key of each algorithm."""
    return Cluster(tmp_path, fresh_token(*KEYS))


def plane(config, **options):
    return ControlPlane.for_settings(load(config).key_manager.config, log_in=True, **options)


# ---- signing ----


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_it_signs_and_keeps_the_vendors_rules(cluster, isolation):
    for algorithm in ALGORITHMS:
        config = cluster.provider(algorithm, settings={"isolation": isolation})
        async with opened(config) as manager:
            signatures = await manager.sign_many([b"%d" % i for i in range(20)])
            public = cluster.token.keys[algorithm].public_key
            assert manager.public_key == public
            assert all(is_good(algorithm, public, b"%d" % i, s) for i, s in enumerate(signatures))
    assert cluster.refusals() == []


@one_loop
@pytest.mark.parametrize(
    ("isolation", "form"), crossed(ISOLATIONS, [{"handlesPerSession": True}, {"curves": {"rawPoints": True}}])
)
async def test_forms_that_the_vendor_may_have(fresh_token, tmp_path, isolation, form):
    cluster = Cluster(tmp_path, fresh_token(), **form)
    async with opened(cluster.provider(settings={"isolation": isolation, "sessions": 3})) as manager:
        public = cluster.token.keys["ed25519"].public_key
        for i in range(30):
            assert is_good("ed25519", public, b"%d" % i, await manager.sign(b"%d" % i))
        assert manager.public_key == public
        made = await manager.generate_key()
        await manager.set_current_key_id(made)
        assert is_good("ed25519", manager.public_key, b"new", await manager.sign(b"new"))
    assert cluster.refusals() == []


@one_loop
@pytest.mark.parametrize("selector", ["keyLabel", "keyId", "keyHandle"])
async def test_a_key_is_named_by_label_id_or_handle(fresh_token, tmp_path, selector):
    cluster = Cluster(tmp_path, fresh_token())
    key = cluster.token.keys["ed25519"]
    # Sessions and objects share the numbers. The token's only private key has the same one at each login.
    given = {"keyLabel": [key.label], "keyId": [key.id], "keyHandle": [hex(n) for n in range(1, 13)]}[selector]
    signed = 0
    for value in given:
        settings = {selector: value, "isolation": "thread", "publicKey": key.public_key.hex()}
        try:
            async with opened(cluster.provider(None, settings=settings)) as manager:
                assert is_good("ed25519", key.public_key, b"m", await manager.sign(b"m"))
                signed += 1
        except (KeyMismatch, KeyUnusable, BadArgument, SessionFailed):
            assert selector == "keyHandle"
    assert signed == 1


@one_loop
async def test_a_throttled_signature_is_tried_again(cluster):
    async with opened(cluster.provider(settings={"isolation": "thread"})) as manager:
        control = cluster_control(cluster)
        control.fault("C_Sign", "return", ckr="CKR_FUNCTION_FAILED", every=3)
        messages = [b"%d" % i for i in range(30)]
        signatures = await manager.sign_many(messages)
        public = cluster.token.keys["ed25519"].public_key
        assert all(is_good("ed25519", public, m, s) for m, s in zip(messages, signatures, strict=True))
        assert control.stats()["faults"]["return"] > 0


@one_loop
async def test_constant_throttling_is_an_error_that_may_pass(cluster):
    async with opened(cluster.provider(settings={"isolation": "thread"})) as manager:
        control = cluster_control(cluster)
        control.fault("C_Sign", "return", ckr="CKR_FUNCTION_FAILED", every=1)
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.sign(b"m", timeout=1.0)
        assert caught.value.retryable
        control.clear()
        assert await manager.sign(b"m")


def cluster_control(cluster):
    """The control socket of the module in this process."""
    [path] = cluster.folder.glob("chaos-*.sock")
    cluster.socket = path
    return cluster


@one_loop
async def test_sessions_are_opened_with_pauses_and_within_the_limit(fresh_token, tmp_path):
    cluster = Cluster(tmp_path, fresh_token(), sessions={"readOnly": "CKR_FUNCTION_FAILED", "limit": 6})
    async with opened(cluster.provider(settings={"isolation": "thread", "sessions": 4})) as manager:
        assert await manager.sign(b"m")
        assert cluster_control(cluster).stats()["sessions"] == 5  # the workers' and the one that logged in
    assert cluster.refusals() == []
    for sessions in (0, 1025):
        with pytest.raises(ConfigurationError) as caught:
            load(cluster.provider(settings={"sessions": sessions}))
        assert caught.value.path == "$.sequencer.keyManager.config.sessions"


# ---- rights of users ----


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_the_signer_cannot_administer_and_the_administrator_does(cluster, isolation):
    settings = {"isolation": isolation}
    async with opened(cluster.provider(admin=False, settings=settings)) as manager:
        with pytest.raises(RequestRejected) as caught:
            await manager.generate_key()
        assert caught.value.ckr_name == "CKR_FUNCTION_REJECTED"
        with pytest.raises(RequestRejected):
            await manager._path.member.control.destroy(await manager.get_current_key_id())
        assert await manager.sign(b"still")
    refused = len(cluster.refusals())
    assert refused >= 2
    async with opened(cluster.provider(settings=settings)) as manager:
        made = await manager.generate_key()
        assert await manager.sign(b"the signer's session is as it was")
        await manager.set_current_key_id(made)
        assert is_good("ed25519", manager.public_key, b"m", await manager.sign(b"m"))
        await manager.deactivate_key(made)  # the vendor's library cannot enforce it: the key manager does
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign(b"m")
        await manager._path.member.control.destroy(made)
    assert [line for line in cluster.refusals()[refused:] if "C_SetAttributeValue" not in line] == []


@one_loop
async def test_a_refused_administrator_is_tried_once_and_signing_goes_on(cluster):
    wrong = {"username": ADMIN, "password": "wrong-password"}
    settings = {"isolation": "thread", "adminCredentials": wrong}
    async with opened(cluster.provider(settings=settings)) as manager:
        with pytest.raises(PinIncorrect, match=r"Check the plain text at \$\.sequencer\.keyManager\.config\.adminCred"):
            await manager.generate_key()
        with pytest.raises(LoginError, match="not sent again"):
            await manager.generate_key()
        assert await manager.sign(b"m")


# ---- making keys ----

OID, NAME = "06032b6570", "130c656477617264733235353139"
EDWARDS, PLAIN = "CKM_EC_EDWARDS_KEY_PAIR_GEN", "CKM_EC_KEY_PAIR_GEN"
AS_EDWARDS = [{"mechanism": PLAIN, "curve": curve, "as": EDWARDS} for curve in (OID, NAME)]
WAYS = {
    "plain-oid": {
        "mechanisms": [{"mechanism": EDWARDS, "absent": True}, *AS_EDWARDS],
        "curves": {"refused": [NAME]},
    },
    "plain-name": {
        "mechanisms": [{"mechanism": EDWARDS, "absent": True}, *AS_EDWARDS],
        "curves": {"refused": [OID], "ckr": "CKR_DOMAIN_PARAMS_INVALID"},
    },
    "edwards-oid": {"mechanisms": [], "curves": {"refused": [NAME]}},
    "edwards-name": {"mechanisms": [], "curves": {"refused": [OID], "ckr": "CKR_FUNCTION_FAILED"}},
}


@one_loop
@pytest.mark.parametrize(("way", "isolated"), crossed(WAYS, [False, True]))
async def test_the_way_to_make_an_ed25519_key_is_found_and_remembered(fresh_token, tmp_path, way, isolated):
    cluster = Cluster(tmp_path, fresh_token(), **WAYS[way])
    admin = {"username": ADMIN, "password": ADMIN_PASSWORD, "adminCredentials": None}
    async with plane(cluster.provider(settings=admin), isolated=isolated) as control:
        first = await control.generate_key("ed25519", "first")
        tried = len(cluster.refusals())
        if isolated:  # the next child is told what this one found out
            control._admin.close()
        second = await control.generate_key("ed25519", "second")
        assert len(cluster.refusals()) == tried
        assert {first.algorithm, second.algorithm} == {"ed25519"}
        assert first.public_key != second.public_key
        p256 = await control.generate_key("ecdsa-p256", "third")
        assert p256.algorithm == "ecdsa-p256"
        assert {key.label for key in await control.list_keys()} >= {"first", "second", "third"}


@one_loop
@pytest.mark.parametrize("number", [0x8000216F, 0x80001234])
async def test_backups_are_wrapped_with_the_vendors_mechanism(fresh_token, tmp_path, number):
    mechanisms = [
        {"mechanism": "CKM_AES_KEY_WRAP_PAD", "absent": True},
        {"mechanism": number, "as": "CKM_AES_KEY_WRAP_PAD"},
    ]
    cluster = Cluster(tmp_path, fresh_token(), mechanisms=mechanisms)
    settings = {"mechanisms": {"aesKeyWrapZeroPad": hex(number)}} if number != 0x8000216F else {}
    async with plane(cluster.provider(settings=settings)) as control:
        made = await control.generate_key("ecdsa-p256", "kept", extractable=True)
        backup = await control.do(ExportWrapped(made.id))
        await control.destroy(made.id)
        restored = await control.do(ImportWrapped(backup))
        assert (restored.id, restored.public_key) == (made.id, made.public_key)


# ---- which cluster ----


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_the_cluster_is_chosen_by_its_id_among_several(fresh_token, tmp_path, isolation):
    one, two = fresh_token(), fresh_token()
    cluster = Cluster(tmp_path, two, one)
    for token, name in ((two, CLUSTERS[0]), (one, CLUSTERS[1])):
        users = [{"pin": f"{SIGNER}:{SIGNER_PASSWORD}", "tokenPin": token.pin}]
        again = Cluster(tmp_path, two, one, users=users)
        settings = {"clusterId": name, "isolation": isolation, "keyLabel": token.keys["ed25519"].label}
        async with opened(again.provider(None, admin=False, settings=settings)) as manager:
            assert manager.public_key == token.keys["ed25519"].public_key
    with pytest.raises(TokenNotFound) as missing:
        async with opened(cluster.provider(settings={"clusterId": "cluster-000000", "isolation": isolation})):
            pass
    assert all(name in str(missing.value) for name in CLUSTERS)
    with pytest.raises(TokenAmbiguous):
        async with opened(cluster.provider(settings={"clusterId": None, "isolation": isolation})):
            pass


@one_loop
async def test_slots_that_name_no_cluster_are_selected_by_serial(fresh_token, tmp_path):
    one, two = fresh_token(), fresh_token()
    slots = [{"token": t.label, "label": "hsm1", "serial": f"{i}"} for i, t in enumerate((one, two))]
    cluster = Cluster(tmp_path, two, slots=slots)
    with pytest.raises(TokenAmbiguous) as several:
        async with opened(cluster.provider(settings={"isolation": "thread"})):
            pass
    assert "slotId" in str(several.value)
    async with opened(cluster.provider(settings={"isolation": "thread", "tokenSerial": "1"})) as manager:
        assert manager.public_key == two.keys["ed25519"].public_key
    alone = Cluster(tmp_path, two, slots=slots[1:])
    async with opened(alone.provider(settings={"isolation": "thread"})) as manager:
        assert manager.public_key == two.keys["ed25519"].public_key


@one_loop
@pytest.mark.parametrize(
    ("client", "settings", "path"),
    [
        ({}, {"clusterEndpoint": "10.9.9.9"}, "clusterEndpoint"),
        ({"cluster_id": CLUSTERS[1]}, {}, "clusterId"),
        ({"region": "eu-west-1"}, {"region": "us-east-1"}, "region"),
        (None, {}, "clientConfig"),
        ("not json", {}, "clientConfig"),
    ],
)
async def test_a_library_that_is_configured_for_another_cluster_is_refused(cluster, client, settings, path):
    if isinstance(client, dict):
        cluster.write_client(**client)
    elif client is None:
        cluster.client.unlink()
    else:
        cluster.client.write_text(client)
    with pytest.raises(ConfigurationError) as caught:
        async with opened(cluster.provider(settings={"isolation": "thread", **settings})):
            pass
    assert caught.value.path == f"$.sequencer.keyManager.config.{path}"


# ---- what comes and goes ----


@one_loop
async def test_a_new_key_that_another_hsm_does_not_know_yet_is_waited_for(cluster):
    async with opened(cluster.provider(settings={"isolation": "thread"})) as manager:
        async with plane(cluster.provider()) as control:

            async def later():
                await asyncio.sleep(0.2)
                return await control.generate_key("ed25519", "late", bytes.fromhex("ab" * 16))

            made = asyncio.get_running_loop().create_task(later())
            await manager.set_current_key_id("ab" * 16)
            assert manager.public_key == (await made).public_key
        with pytest.raises(KeyNotFound, match="key share"):
            await manager.set_current_key_id("cd" * 16)
