"""Signing with AWS KMS: against a KMS that signs and fails on demand, and against moto, which knows nothing of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tests.support.kms import ACCESS_KEY, REGION, SECRET_KEY, KmsServer, config, set_credentials
from tests.support.kms.tls import make_certificate
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good, is_low_s

import hsmcore
from hsmcore.errors import AlgorithmUnsupported, KeyUnusable, PublicKeyMissing, RequestRejected
from hsmcore.members.control import KeyNotExportable

pytestmark = pytest.mark.integration

SPECS = {"ECC_NIST_EDWARDS25519": "ed25519", "ECC_NIST_P256": "ecdsa-p256", "ECC_SECG_P256K1": "ecdsa-secp256k1"}


async def refusal(given: dict, kind: type[hsmcore.HsmError]) -> hsmcore.HsmError:
    """The error that initialize() ends with."""
    manager = hsmcore.create_key_manager(given)
    with pytest.raises(kind) as caught:
        await manager.initialize()
    assert type(caught.value) is kind
    await manager.close()
    assert SECRET_KEY not in repr(caught.value)
    return caught.value


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
async def test_every_key_spec_signs(kms, spec):
    key = kms.store.make(spec)
    async with opened(config(kms, key, maxCacheSize=0)) as manager:
        assert manager.public_key == key.raw_public
        for message in (b"x", bytes(4096)):
            signature = await manager.sign(message)
            assert len(signature) == 64
            assert is_good(SPECS[spec], key.raw_public, message, signature)
            assert await manager.verify(message, signature)
            assert not await manager.verify(message + b"x", signature)
        if spec != "ECC_NIST_EDWARDS25519":
            signatures = await manager.sign_many([b"%d" % n for n in range(30)])
            assert all(is_low_s(SPECS[spec], signature) for signature in signatures)


@one_loop
async def test_a_message_beyond_the_limit_is_hashed_here_or_refused(kms):
    async with opened(config(kms, kms.store.make("ECC_NIST_P256"))) as manager:
        message = bytes(4097)
        assert is_good("ecdsa-p256", manager.public_key, message, await manager.sign(message))
    async with opened(config(kms, kms.store.make())) as manager:
        kms.calls.clear()
        with pytest.raises(hsmcore.MessageTooLarge, match="the limit of AWS KMS is 4096"):
            await manager.sign(message)
        assert not kms.calls


@one_loop
@pytest.mark.parametrize("name", ["id", "arn", "alias", "alias ARN"])
async def test_a_key_is_named_in_four_ways(kms, name):
    key = kms.store.make(alias="sequencer")
    arn = key.arn.rpartition(":")[0]
    names = {"id": key.id, "arn": key.arn, "alias": "alias/sequencer", "alias ARN": f"{arn}:alias/sequencer"}
    given = config(kms, names[name], {"region": None if "ARN" in name or name == "arn" else REGION})
    async with opened(given) as manager:
        assert await manager.get_current_key_id() == key.id.replace("-", "")
        kms.store.aliases["alias/sequencer"] = kms.store.make().id  # an alias that moves does not move the key
        assert is_good("ed25519", key.raw_public, b"x", await manager.sign(b"x"))


@one_loop
async def test_the_work_is_bounded_and_the_connections_are_kept(kms):
    kms.faults.latency = 0.01
    async with opened(config(kms, kms.store.make(), {"concurrency": 5}, maxCacheSize=0)) as manager:
        for _ in range(3):
            await asyncio.gather(*(manager.sign(b"%d" % n) for n in range(30)))
    assert kms.most_at_once == 5
    assert kms.connections == 5


async def test_an_endpoint_must_have_a_trusted_certificate_for_its_name(monkeypatch, tmp_path):
    set_credentials(monkeypatch)
    for address, trusts, good in (("127.0.0.1", True, True), ("127.0.0.1", False, False), ("127.0.0.2", True, False)):
        context, trusted = make_certificate(tmp_path, address)
        if trusts:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
        else:
            monkeypatch.delenv("AWS_CA_BUNDLE")
        with KmsServer(tls=context) as server:
            given = config(server, server.store.make(), maxCacheSize=0)
            if good:
                async with opened(given) as manager:
                    for signature in await manager.sign_many([b"x"] * 20):
                        assert is_good("ed25519", manager.public_key, b"x", signature)
                    server.cut()
                    assert is_good("ed25519", manager.public_key, b"y", await manager.sign(b"y"))
            else:
                error = await refusal(given, hsmcore.MemberDown)
                assert "certificate is not trusted" in str(error)
            assert bool(server.calls) == good
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with KmsServer(tls=make_certificate(tmp_path, "127.0.0.1")[0]) as server:
        given = config(server, server.store.make())
        with pytest.raises(hsmcore.ConfigurationError, match=r"AWS_CA_BUNDLE.*absent\.pem: No such file"):
            await hsmcore.create_key_manager(given).initialize()


# ---- moto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto's server: an independent imitation of AWS."""
    set_credentials(monkeypatch)
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@one_loop
async def test_moto_understands_every_request(moto):
    import boto3

    client = boto3.session.Session().client("kms", region_name=REGION, endpoint_url=moto)
    arn = client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    settings = {"keyId": arn, "region": REGION, "endpointUrl": moto}
    async with opened({"keyManager": {"type": "aws-kms", "config": settings}}) as manager:
        signature = await manager.sign(b"x")
        assert is_good("ecdsa-p256", manager.public_key, b"x", signature)
        made = await manager.generate_key()
        await manager.set_current_key_id(made)
        assert is_good("ecdsa-p256", manager.public_key, b"x", await manager.sign(b"x"))
        listed = {record.id: record for record in await manager._path.member.control.list_keys()}
        assert listed[made].can_sign
        await manager.deactivate_key(made)
        listed = {record.id: record for record in await manager._path.member.control.list_keys()}
        assert not listed[made].can_sign
        await manager._path.member.control.destroy(made)
    client.close()


# ---- what is wrong from the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access_key", "secret_key", "says"),
    [
        ("AKIANOBODYNOBODYNOBO", SECRET_KEY, "UnrecognizedClientException"),
        (ACCESS_KEY, "wrong", "InvalidSignatureException"),
    ],
)
async def test_wrong_credentials_are_presented_once(kms, monkeypatch, access_key, secret_key, says):
    set_credentials(monkeypatch, access_key, secret_key)
    error = await refusal(config(kms, kms.store.make()), hsmcore.AccessDenied)
    assert says in str(error)
    assert not error.retryable
    assert sum(kms.calls.values()) == 1


@one_loop
async def test_without_credentials_nothing_is_sent(kms, monkeypatch):
    set_credentials(monkeypatch, None)
    error = await refusal(config(kms, kms.store.make()), hsmcore.AccessDenied)
    assert "AWS_PROFILE" in error.hint
    assert not kms.calls


@one_loop
async def test_without_a_region_the_configuration_is_at_fault(kms):
    error = await refusal(config(kms, "alias/x", {"region": None}), hsmcore.ConfigurationError)
    assert error.path == "$.keyManager.config.region"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"state": "Disabled"}, KeyUnusable, "is Disabled"),
        ({"state": "PendingDeletion"}, KeyUnusable, "is PendingDeletion"),
        ({"usage": "KEY_AGREEMENT"}, KeyUnusable, "is for KEY_AGREEMENT"),
        ({"spec": "ECC_NIST_P384"}, AlgorithmUnsupported, "ECC_NIST_P384"),
    ],
)
@one_loop
async def test_a_key_that_cannot_sign_is_refused_at_the_start(kms, change, kind, says):
    key = kms.store.make()
    for name, value in change.items():
        setattr(key, name, value)
    assert says in str(await refusal(config(kms, key), kind))


@one_loop
async def test_a_key_that_may_not_be_used_is_refused_at_the_start(kms):
    kms.faults.error("AccessDeniedException", "Sign")
    error = await refusal(config(kms, kms.store.make()), hsmcore.AccessDenied)
    assert "kms:Sign" in error.hint
    key, other = kms.store.make(), kms.store.make()
    key.sign = other.sign
    await refusal(config(kms, key), hsmcore.KeyMismatch)


@one_loop
async def test_a_start_whose_first_signature_is_wrong_starts(kms):
    kms.faults.add("patch", patch={"Signature": "A" * 86 + "=="})
    async with opened(config(kms, kms.store.make())) as manager:
        assert kms.calls["Sign"] == 2
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@one_loop
async def test_a_pinned_key_must_be_that_one(kms):
    key, other = kms.store.make(), kms.store.make()
    async with opened(config(kms, key, {"publicKey": key.raw_public.hex(), "algorithm": "ed25519"})):
        pass
    kms.calls.clear()
    await refusal(config(kms, key, {"publicKey": other.raw_public.hex()}), hsmcore.KeyMismatch)
    await refusal(config(kms, key, {"algorithm": "ecdsa-p256"}), AlgorithmUnsupported)
    await refusal(config(kms, "alias/nobody"), hsmcore.KeyNotFound)
    assert kms.calls["Sign"] == 0, "a key that is not the one signs nothing at all"


@one_loop
@pytest.mark.parametrize(
    ("patch", "kind"),
    [
        ({"PublicKey": "!"}, PublicKeyMissing),
        ({"PublicKey": "AAAA"}, PublicKeyMissing),
        ({"PublicKey": 5}, PublicKeyMissing),
        ({"SigningAlgorithms": ["ECDSA_SHA_512"]}, AlgorithmUnsupported),
        ({"SigningAlgorithms": None}, AlgorithmUnsupported),
        ({"KeyId": "arn:aws:kms:eu-central-1:1:key/another"}, hsmcore.KeyMismatch),
    ],
)
async def test_a_public_key_of_another_form_is_refused(kms, patch, kind):
    kms.faults.add("patch", "GetPublicKey", patch=patch)
    await refusal(config(kms, kms.store.make()), kind)


@one_loop
async def test_an_endpoint_that_is_not_there_is_a_member_down(kms):
    key = kms.store.make()
    given = config(kms, key)
    given["keyManager"]["config"]["endpointUrl"] = "http://127.0.0.1:9"
    error = await refusal(given, hsmcore.MemberDown)
    assert "endpointUrl" in error.hint


# ---- what goes wrong in use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ThrottlingException", 400),
        ("com.amazonaws.kms#ThrottlingException:http://internal.amazon.com/", 400),
        ("KMSInternalException", 500),
        ("DependencyTimeoutException", 503),
        ("KeyUnavailableException", 500),
        ("NobodyKnowsThisOne", 500),
        ("", 502),
        ("", 429),
    ],
)
@one_loop
async def test_transient_failures_are_retried(kms, name, status):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.calls.clear()
        kms.faults.error(name, status=status, times=3)
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
        assert kms.calls["Sign"] == 4
        assert counters(manager)["recoveries"] == {"RETRY": 3}


async def test_trying_again_ends_with_the_deadline(kms):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.calls.clear()
        kms.faults.error("ThrottlingException", times=10_000)
        with pytest.raises(hsmcore.DeadlineExceeded):
            await manager.sign(b"x", timeout=2.0)
        tried = kms.calls["Sign"]
        assert 1 < tried < 100
        await asyncio.sleep(0.05)
        assert kms.calls["Sign"] == tried


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DisabledException", KeyUnusable),
        ("KMSInvalidStateException", KeyUnusable),
        ("InvalidKeyUsageException", KeyUnusable),
        ("NotFoundException", hsmcore.KeyNotFound),
        ("ValidationException", RequestRejected),
        ("AccessDeniedException", hsmcore.AccessDenied),
        ("NobodyKnowsThisOne", RequestRejected),
    ],
)
@one_loop
async def test_permanent_failures_are_not_retried(kms, name, kind):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.calls.clear()
        kms.faults.error(name)
        with pytest.raises(kind) as caught:
            await manager.sign(b"x")
        assert type(caught.value) is kind
        assert not caught.value.retryable
        assert caught.value.call == "kms:Sign"
        assert kms.calls["Sign"] == 1
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


async def test_a_lost_connection_fails_no_request(kms):
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        kms.faults.add("drop", times=2)
        messages = [b"%d" % n for n in range(40)]
        for message, signature in zip(messages, await manager.sign_many(messages), strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        kms.cut()
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@pytest.mark.parametrize(
    ("patch", "kind"),
    [
        ({"Signature": "AAAA"}, hsmcore.errors.SignatureMalformed),
        ({"Signature": None}, hsmcore.errors.SignatureMalformed),
        ({"Signature": "A" * 85 + "=="}, hsmcore.errors.SignatureMalformed),
        ({"Signature": "A" * 86 + "=="}, hsmcore.errors.SignatureInvalid),
        ({"KeyId": "arn:aws:kms:eu-central-1:1:key/another"}, hsmcore.KeyMismatch),
    ],
)
@one_loop
async def test_a_signature_that_is_none_is_not_handed_out(kms, patch, kind):
    async with opened(config(kms, kms.store.make(), {"verifySignatures": "always"})) as manager:
        kms.faults.add("patch", patch=patch)
        with pytest.raises(kind):
            await manager.sign(b"x")
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@one_loop
async def test_an_answer_that_is_no_json_is_an_error(kms):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.faults.add("garbage")
        with pytest.raises(hsmcore.MemberDown, match="not a JSON object"):
            await manager.sign(b"x")


# ---- outages ---------------------------------------------------------------------------------------------------------


async def outage(kms: KmsServer, manager: hsmcore.KeyManager) -> None:
    """Have KMS go away and the member notice."""
    kms.stop_listening()
    with pytest.raises(hsmcore.MemberDown):
        await manager.sign(b"nobody there", timeout=60)
    with pytest.raises(hsmcore.MemberDown):
        await manager.sign(b"at once")
    assert counters(manager)["down"]


async def test_it_signs_again_when_kms_is_back(kms):
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        await outage(kms, manager)
        kms.start_listening()
        await until(lambda: not counters(manager)["down"])
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
        assert counters(manager)["recoveries"]["MEMBER_DOWN"] == 1
        assert kms.calls["GetPublicKey"] == 2, "the key was proven again"


async def test_a_key_that_comes_back_as_another_one_signs_nothing(kms):
    key = kms.store.make()
    async with opened(config(kms, key, maxCacheSize=0)) as manager:
        kms.calls.clear()
        await outage(kms, manager)
        key.replace()
        kms.start_listening()

        await until(lambda: kms.calls["GetPublicKey"] == 1)
        seen: list[object] = [None]
        while not isinstance(seen[-1], hsmcore.KeyMismatch):  # until the answer has been read
            seen += await asyncio.gather(manager.sign(b"x"), return_exceptions=True)
            await asyncio.sleep(0.002)
        assert {type(outcome) for outcome in seen[1:]} <= {hsmcore.KeyMismatch, hsmcore.MemberDown}
        assert kms.calls["Sign"] == 0


async def test_an_outage_fails_waiting_requests_and_closing_ends_the_probe(kms):
    async with opened(config(kms, kms.store.make(), {"concurrency": 1}, maxCacheSize=0)) as manager:
        kms.calls.clear()
        kms.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(20)]
        await until(lambda: kms.calls["Sign"] == 1)
        kms.stop_listening()
        kms.cut()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {hsmcore.MemberDown}
        assert all(outcome.retryable for outcome in outcomes)
        kms.release()


# ---- keys ------------------------------------------------------------------------------------------------------------


async def test_keys_are_made_disabled_and_deleted(kms):
    key = kms.store.make(alias="sequencer")
    async with opened(config(kms, "alias/sequencer", maxCacheSize=0)) as manager:
        control = manager._path.member.control
        made = await manager.generate_key()
        [key_made] = [held for held in kms.store.keys.values() if held is not key]
        assert made == key_made.id.replace("-", "")
        assert key_made.tags == [{"TagKey": "created-by", "TagValue": "hsmcore"}]
        assert key_made.id in kms.store.aliases.values()
        await manager.set_current_key_id(made)
        assert is_good("ed25519", key_made.raw_public, b"x", await manager.sign(b"x"))
        events = []
        manager.on("key-deactivated", events.append)
        await manager.deactivate_key(made)
        assert [event["enforced"] for event in events] == [True]
        assert key_made.state == "Disabled"
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(made)
        await control.destroy(made)
        assert key_made.state == "PendingDeletion"
        for _ in range(3):
            kms.store.make()
        records = await control.list_keys()
        assert {record.id: record.can_sign for record in records}[made] is False
        assert len(records) == 5
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.set_current_key_id("00" * 16)
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.set_current_key_id("00" * 3)


@one_loop
async def test_a_key_is_not_made_twice_when_the_answer_is_lost(kms):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.faults.add("drop", "CreateKey")
        with pytest.raises(hsmcore.MemberDown):
            await manager.generate_key()
        assert kms.calls["CreateKey"] == 1


@one_loop
async def test_a_new_key_is_waited_for(kms):
    async with opened(config(kms, kms.store.make())) as manager:
        kms.faults.error("NotFoundException", "DescribeKey", times=2)
        kms.faults.error("AccessDeniedException", "CreateAlias")
        made = await manager.generate_key()
        assert made in [version.id for version in manager.keys()]  # noqa: SIM118  # no dict


@one_loop
async def test_nothing_secret_is_logged(kms, capfd):
    async with opened(config(kms, kms.store.make())) as manager:
        await manager.sign(b"x")
        text = (
            json.dumps(manager.config.redacted())
            + repr(vars(manager._path.member))
            + repr(vars(manager._path.member._client))
        )
    assert SECRET_KEY not in text + "".join(capfd.readouterr())
