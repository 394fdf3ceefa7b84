"""Vault's face of the gateway: its answers against Vault Transit's documentation, key versions, and what it signs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from nacl.signing import VerifyKey
from tests.integration.test_rotation import rules
from tests.support.levels import OTHER, SAME
from tests.support.levels import Site as Members
from tests.support.loops import one_loop
from tests.support.managers import becomes
from tests.support.vault_site import TOKEN, b64, called, near, site

import hsmcore
from hsmcore.errors import KeyNotCurrent
from hsmcore.gateway import server
from hsmcore.gateway.front.link import RemoteKey
from hsmcore.gateway.vault.face import Transit
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Splitter, Type, unlabelled

pytestmark = pytest.mark.integration
M = b"a message"
SIGN, VERIFY, KEY = "/v1/transit/sign/default", "/v1/transit/verify/default", "/v1/transit/keys/default"
CURVES = {"ecdsa-p256": "P-256", "ecdsa-secp256k1": "secp256k1"}


def parts(signature):
    """Version and encoded signature."""
    found = re.fullmatch(r"vault:v([1-9][0-9]*):(.+)", signature)
    return int(found[1]), found[2]


async def test_a_message_is_signed_and_verified(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        data = await vault.data("POST", SIGN, {"input": b64(M)})
        assert data == {"signature": f"vault:v1:{b64(await vault.manager.sign(M))}", "key_version": 1}
        VerifyKey(vault.manager.public_key).verify(M, base64.b64decode(parts(data["signature"])[1], validate=True))
        good = {"input": b64(M), "signature": data["signature"]}
        assert await vault.data("POST", VERIFY, good) == {"valid": True}
        assert await vault.data("POST", VERIFY, {**good, "input": b64(b"another message")}) == {"valid": False}


@one_loop
async def test_the_envelope_is_that_of_the_documentation(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        for method, path, body in (("POST", SIGN, {"input": b64(M)}), ("GET", KEY, None)):
            reply = await vault.asked(method, path, body)
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["cache-control"] == "no-store"
            envelope = reply.json()
            del envelope["data"]
            assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", envelope.pop("request_id"))
            assert envelope == {
                "lease_id": "", "renewable": False, "lease_duration": 0, "wrap_info": None, "warnings": None,
                "auth": None, "mount_type": "transit",
            }  # fmt: skip


@one_loop
async def test_what_goes_before_the_body_may_be_said_in_vaults_other_ways(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        whole = await vault.data("POST", SIGN, {"input": b64(M)})
        wrapped = base64.encodebytes(M * 20).decode()
        assert "\n" in wrapped[:-1]
        for method, path, body in (
            ("PUT", SIGN, {"input": b64(M)}),
            ("POST", f"{SIGN}/sha2-256", {"input": b64(M)}),
            ("POST", SIGN, {"input": b64(M), "key_version": 1}),
            ("POST", SIGN, {"input": b64(M), "key_version": "1", "prehashed": "false", "context": "", "hmac": None}),
            ("POST", SIGN, {"input": b64(M), "hash_algorithm": "sha2-512", "marshaling_algorithm": "asn1"}),
        ):
            assert await vault.data(method, path, body) == whole
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert await vault.data("POST", SIGN, {"input": b64(M)}, token=None, headers=bearer) == whole
        signed = await vault.data("POST", SIGN, {"input": wrapped})
        assert parts(signed["signature"])[1] == b64(await vault.manager.sign(M * 20))


@one_loop
async def test_a_batch_answers_each_item(world, tmp_path):
    async with site(world.config(maxMessageBytes=500), tmp_path) as vault:
        items = [
            {"input": b64(b"one"), "reference": "first"},
            {},
            {"input": "no base64!", "reference": "third"},
            {"input": b64(b"four")},
            {"input": ""},
            {"input": b64(bytes(501))},
            {"input": 7},
        ]
        one, four = [b64(await vault.manager.sign(message)) for message in (b"one", b"four")]
        reply = await vault.asked("POST", SIGN, {"batch_input": items, "input": "ignored"})
        assert reply.status == 200
        results = reply.json()["data"].pop("batch_results")
        assert results == [
            {"signature": f"vault:v1:{one}", "key_version": 1, "reference": "first"},
            {"error": "missing input", "key_version": 0, "reference": ""},
            {"error": "unable to decode input as base64", "key_version": 0, "reference": "third"},
            {"signature": f"vault:v1:{four}", "key_version": 1, "reference": ""},
            {"error": "input is empty", "key_version": 0, "reference": ""},
            {"error": results[5]["error"], "key_version": 0, "reference": ""},
            {"error": "unable to decode input as base64", "key_version": 0, "reference": ""},
        ]
        assert "501 bytes; 500 may be" in results[5]["error"]
        wrong = await vault.data("POST", SIGN, {"batch_input": [{"reference": "a"}]})
        assert wrong == {"batch_results": [{"error": "missing input", "key_version": 0, "reference": "a"}]}


@one_loop
async def test_an_item_that_is_at_fault_spoils_no_other(world, tmp_path):
    faulty = [
        (7, "object"), ("YQ==", "object"), (None, "object"), ({"input": b64(M), "context": b64(M)}, "context"),
        ({"input": b64(M), "hmac": "a"}, "hmac"), ({"input": b64(M), "reference": 1}, "reference"),
        ({"input": b64(M), "kind": []}, "kind"), ({"input": b64(M), "position": {}}, "position"),
    ]  # fmt: skip
    async with site(world.config(), tmp_path) as vault:
        items = [item for item, _ in faulty] + [{"input": b64(M)}]
        *bad, good = (await vault.data("POST", SIGN, {"batch_input": items}))["batch_results"]
        assert good == {"signature": f"vault:v1:{b64(await vault.manager.sign(M))}", "key_version": 1, "reference": ""}
        for answer, (_, why) in zip(bad, faulty, strict=True):
            assert (answer["key_version"], answer["reference"]) == (0, "")
            assert why in answer["error"]
        items[-1] = {"input": b64(M), "signature": good["signature"]}
        *bad, good = (await vault.data("POST", VERIFY, {"batch_input": items}))["batch_results"]
        assert good == {"valid": True, "reference": ""}
        assert all(answer["valid"] is False and answer["error"] for answer in bad)


@one_loop
async def test_kind_and_position_are_bound_as_they_are_claimed(world, tmp_path):
    policy = {"kinds": ["block", "raw"], "domain": "rollup"}
    config = world.config(policy=policy, stateFile=str(tmp_path / "s.db"), auditLogFile=str(tmp_path / "audit.log"))
    blocks = [hsmcore.payload("block", "rollup", at, hashlib.sha256(b"%d" % at).digest()) for at in range(4)]
    async with site(config, tmp_path) as vault:
        await vault.data("POST", SIGN, {"input": b64(blocks[1]), "kind": "block", "position": 1})
        other = hsmcore.payload("block", "rollup", 1, hashlib.sha256(b"other").digest())
        await vault.refused(400, "POST", SIGN, {"input": b64(other), "kind": "block", "position": 1})
        await vault.refused(403, "POST", SIGN, {"input": b64(blocks[2]), "position": 3})
        items = [
            {"input": b64(blocks[2]), "position": 2, "reference": "two"},
            {"input": b64(blocks[3]), "position": 2, "reference": "claims another"},
            {"input": b64(M), "reference": "plain"},
            {"input": b64(M), "kind": "block", "reference": "no block"},
        ]
        two, three, plain, none = (await vault.data("POST", SIGN, {"batch_input": items}))["batch_results"]
        assert [one["reference"] for one in (two, three, plain, none)] == [one["reference"] for one in items]
        for answer, message in ((two, blocks[2]), (plain, M)):
            VerifyKey(vault.manager.public_key).verify(message, base64.b64decode(parts(answer["signature"])[1]))
        assert "error" in three
        assert "error" in none
        found = [record async for record in vault.manager.audit.query(match={"operation": "sign", "kind": "block"})]
        signed = sorted(record["position"] for record in found if record["result"] == "ok")
        assert signed == [1, 2]


@one_loop
async def test_a_batch_to_verify_answers_each_item(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        signature = (await vault.data("POST", SIGN, {"input": b64(M)}))["signature"]
        encoded = parts(signature)[1]
        items = [
            {"input": b64(M), "signature": signature, "reference": "r"},
            {"input": b64(b"other"), "signature": signature},
            {"input": b64(M)},
            {"signature": signature},
            {"input": b64(M), "signature": encoded},
            {"input": b64(M), "signature": f"vault:v2:{encoded}"},
            {"input": b64(M), "signature": f"vault:v1:{encoded[:-2]}"},
            {"input": b64(M), "signature": f"vault:v1:{b64(b'short')}"},
        ]
        found = (await vault.data("POST", VERIFY, {"batch_input": items}))["batch_results"]
        assert found[:2] == [{"valid": True, "reference": "r"}, {"valid": False, "reference": ""}]
        assert [one.get("error") for one in found[2:]] == [
            "missing signature",
            "missing input",
            "invalid signature: it must begin with vault:vN:",
            "the key has no version 2",
            "unable to decode signature as base64",
            None,
        ]
        assert not any(one["valid"] for one in found[2:])


@pytest.mark.parametrize("key", CURVES)
@one_loop
async def test_ecdsa_signatures_are_marshaled(world, tmp_path, key):
    async with site(world.config(key), tmp_path) as vault:
        data = await vault.data("GET", KEY)
        assert data["type"] == key
        assert data["keys"]["1"]["name"] == CURVES[key]
        public = load_pem_public_key(data["keys"]["1"]["public_key"].encode())
        for count in range(40):  # numbers r and s of different lengths
            message = b"message %d" % count
            for marshaling in ("asn1", "jws"):
                how = {"marshaling_algorithm": marshaling}
                signed = await vault.data("POST", SIGN, {"input": b64(message), **how})
                encoded = parts(signed["signature"])[1]
                if marshaling == "asn1":
                    der = base64.b64decode(encoded, validate=True)
                else:
                    raw = base64.urlsafe_b64decode(encoded + "==")
                    assert not set(encoded) & set("+/=")
                    assert len(raw) == 64
                    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
                public.verify(der, message, ec.ECDSA(SHA256()))
                asked = {"input": b64(message), "signature": signed["signature"]}
                assert await vault.data("POST", VERIFY, {**asked, **how}) == {"valid": True}
        # The same numbers in another form of ASN.1 are no signature.
        longer = b"\x30" + bytes([der[1] + 1]) + b"\x02" + bytes([der[3] + 1]) + b"\0" + der[4:]
        strange = {"input": b64(message), "signature": f"vault:v1:{b64(longer)}"}
        assert await vault.data("POST", VERIFY, strange) == {"valid": False}


@pytest.mark.parametrize("key", CURVES)
@one_loop
async def test_a_digest_is_signed_if_policy_and_client_list_it(world, tmp_path, key):
    policy = {"kinds": ["prehashed", "raw"]}
    clients = {"app": {"token": TOKEN, "keys": ["default"]},
               "other": {"token": TOKEN[::-1], "keys": ["default"], "kinds": ["raw"]}}  # fmt: skip
    digest, how = hashlib.sha256(M).digest(), {"prehashed": True}
    async with site(world.config(key, policy=policy, stateFile=str(tmp_path / "s.db")), tmp_path, clients) as vault:
        public = load_pem_public_key((await vault.data("GET", KEY))["keys"]["1"]["public_key"].encode())
        one = await vault.data("POST", SIGN, {"input": b64(digest), "key_version": 1, **how})
        assert one["key_version"] == 1
        items = [{"input": b64(digest)}, {"input": b64(b"no digest")}]
        two, bad = (await vault.data("POST", SIGN, {"batch_input": items, **how}))["batch_results"]
        assert "error" in bad
        for signed in (one, two):
            der = base64.b64decode(parts(signed["signature"])[1])
            public.verify(der, digest, ec.ECDSA(utils.Prehashed(SHA256())))
            for what in ({"input": b64(digest), **how}, {"input": b64(M)}):
                asked = {"signature": signed["signature"], **what}
                assert await vault.data("POST", VERIFY, asked) == {"valid": True}
            wrong = {"signature": signed["signature"], "input": b64(digest)}
            assert await vault.data("POST", VERIFY, wrong) == {"valid": False}
        text = await vault.refused(403, "POST", SIGN, {"input": b64(digest), **how}, token=TOKEN[::-1])
        assert "kind prehashed" in text
    async with site(world.config(key), tmp_path) as vault:
        assert "prehashed" in await vault.refused(403, "POST", SIGN, {"input": b64(digest), **how})


@one_loop
async def test_jws_of_an_ed25519_key_is_url_safe(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        how = {"marshaling_algorithm": "jws"}
        signed = await vault.data("POST", SIGN, {"input": b64(M), **how})
        encoded = parts(signed["signature"])[1]
        assert base64.urlsafe_b64decode(encoded + "==") == await vault.manager.sign(M)
        assert not set(encoded) & set("+/=")
        asked = {"input": b64(M), "signature": signed["signature"]}
        assert await vault.data("POST", VERIFY, {**asked, **how}) == {"valid": True}
        both = [(message, b64(await vault.manager.sign(message))) for message in (bytes([n]) for n in range(64))]
        message, told = next(one for one in both if set(one[1]) & set("+/"))  # one in fifteen has neither
        standard = {"input": b64(message), "signature": f"vault:v1:{told}", **how}
        assert "unable to decode signature" in await vault.refused(400, "POST", VERIFY, standard)


@one_loop
async def test_a_key_is_described_as_vault_describes_one(world, tmp_path):
    async with site(world.config(**rules(tmp_path)), tmp_path) as vault:
        data = await vault.data("GET", KEY)
        [version] = data["keys"].values()
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", version.pop("creation_time"))
        assert data == {
            "name": "default",
            "type": "ed25519",
            "keys": {"1": {"name": "ed25519", "public_key": b64(vault.manager.public_key)}},
            "latest_version": 1,
            "min_available_version": 0,
            "min_decryption_version": 1,
            "min_encryption_version": 1,
            "supports_signing": True,
            "supports_encryption": False,
            "supports_decryption": False,
            "supports_derivation": False,
            "derived": False,
            "exportable": False,
            "allow_plaintext_backup": False,
            "deletion_allowed": False,
            "imported_key": False,
            "auto_rotate_period": 0,
        }
        for method, path in (("LIST", ""), ("LIST", "/"), ("GET", "?list=true"), ("GET", "/?list=true")):
            assert await vault.data(method, f"/v1/transit/keys{path}") == {"keys": ["default"]}
        assert await vault.refused(405, "GET", "/v1/transit/keys") == "unsupported operation"


@one_loop
async def test_a_client_can_ask_about_itself_and_the_gateway(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        itself = await vault.asked("GET", "/v1/auth/token/lookup-self")
        assert itself.json()["data"]["display_name"] == "app"
        assert TOKEN.encode() not in itself.body
        renewed = (await vault.asked("POST", "/v1/auth/token/renew-self")).json()
        assert (renewed["data"], renewed["auth"]["renewable"], renewed["auth"]["policies"]) == (None, False, ["app"])
        assert "SIGHUP" in await vault.refused(400, "POST", "/v1/auth/token/revoke-self")
        paths = ["transit/sign/default", "transit/sign/other", "/transit/keys/default", "transit/keys", "sys/health"]
        may = await vault.data("POST", "/v1/sys/capabilities-self", {"paths": paths})
        assert [may[path] for path in paths] == [["update"], ["deny"], ["read"], ["list"], ["deny"]]
        assert may["capabilities"] == ["update"]
        assert "paths" in await vault.refused(400, "POST", "/v1/sys/capabilities-self", {"paths": [1]})
        assert (await vault.asked("GET", "/v1/sys/init", token=None)).json() == {"initialized": True}
        leader = (await vault.asked("GET", "/v1/sys/leader", token=None)).json()
        assert (leader["ha_enabled"], leader["is_self"]) == (False, False)
        seal = (await vault.asked("GET", "/v1/sys/seal-status", token=None)).json()
        assert (seal["initialized"], seal["sealed"], seal["type"]) == (True, False, "pkcs11")
        health = await vault.asked("GET", "/v1/sys/health", token=None)
        assert health.status == 200
        said = health.json()
        assert said.pop("version").startswith("hsmcore-")
        assert isinstance(said.pop("server_time_utc"), int)
        assert said == {
            "initialized": True, "sealed": False, "standby": False, "performance_standby": False,
            "replication_performance_mode": "disabled", "replication_dr_mode": "disabled",
        }  # fmt: skip
        assert (await vault.asked("HEAD", "/v1/sys/health", token=None)).status == 200
        assert (await vault.asked("GET", "/v1/sys/health?activecode=299", token=None)).status == 299
        await vault.manager.close()
        await becomes(lambda: has_health(vault, 503))
        sealed = await vault.asked("GET", "/v1/sys/health", token=None)
        assert (sealed.status, sealed.json()["sealed"]) == (503, True)
        sealed = await vault.asked("GET", "/v1/sys/seal-status", token=None)
        assert (sealed.status, sealed.json()["sealed"]) == (200, True)
        assert (await vault.asked("GET", "/v1/sys/health?sealedcode=200", token=None)).status == 200
        assert (await vault.asked("GET", "/v1/sys/health?sealedcode=9999", token=None)).status == 503
        assert await vault.refused(503, "POST", SIGN, {"input": b64(M)})


async def has_health(vault, status):
    return (await vault.asked("GET", "/v1/sys/health", token=None)).status == status


async def leads(vault, leads):
    leader = (await vault.asked("GET", "/v1/sys/leader", token=None)).json()
    return (leader["ha_enabled"], leader["is_self"]) == (True, leads)


@pytest.mark.parametrize(
    ("unordered", "state", "status"),
    [("lease", "holder", 200), ("lease", "follower", 429), ("strict", "doubtful", 429), ("any", "follower", 200)],
)
@one_loop
async def test_a_host_that_does_not_hold_the_epoch_is_on_standby(
    world, tmp_path, monkeypatch, unordered, state, status
):
    async with site(world.config(), tmp_path) as vault:
        with monkeypatch.context() as patched:
            patched.setattr(vault.manager, "fleet", SimpleNamespace(state=state, unordered=unordered))
            await becomes(lambda: leads(vault, state == "holder"))
            health = await vault.asked("GET", "/v1/sys/health", token=None)
            assert (health.status, health.json()["standby"]) == (status, status == 429)
            assert (await vault.asked("GET", "/v1/sys/health?standbyok=true", token=None)).status == 200
            wanted = 200 if status == 200 else 299
            assert (await vault.asked("GET", "/v1/sys/health?standbycode=299", token=None)).status == wanted


@one_loop
async def test_the_api_describes_itself(world, tmp_path):
    import openapi_spec_validator  # here: it takes seconds, and every worker collects this file

    async with site(world.config(), tmp_path) as vault:
        assert (await vault.asked("GET", "/v1/sys/internal/specs/openapi", token=None)).status == 403
        made = (await vault.asked("GET", "/v1/sys/internal/specs/openapi")).json()
        openapi_spec_validator.validate(made)
        assert made["paths"]["/v1/sys/health"]["get"]["security"] == []
        fields = {
            each: set(made["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"])
            for each, path in (("sign", "/v1/transit/sign/{name}"), ("verify", "/v1/transit/verify/{name}"))
        }
        assert fields["sign"] ^ fields["verify"] == {"signature", "key_version", "kind", "position"}
        for method, path in (("GET", "/v1/sys/init"), ("GET", KEY), ("GET", "/v1/sys/leader")):
            known = path.replace("default", "{name}")
            assert method.lower() in made["paths"][known]
            assert (await vault.asked(method, path)).status == 200


@one_loop
async def test_a_rotation_shows_as_the_next_version(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TICK_SECONDS", 3600.0)  # a look before the ring is read tells a key's own number
    token = fresh_token()
    config = token.config(**rules(tmp_path, overlapDays=1))
    async with site(config, tmp_path) as vault:
        first = await vault.data("POST", SIGN, {"input": b64(M)})
        old = vault.manager.public_key
        await vault.manager.rotate_key("test")
        second = await vault.data("POST", SIGN, {"input": b64(M)})
        batch = await vault.data("POST", SIGN, {"batch_input": [{"input": b64(M)}] * 3})
        assert {one["signature"] for one in batch["batch_results"]} == {second["signature"]}
        assert [parts(one["signature"])[0] for one in (first, second)] == [1, 2]
        assert (first["key_version"], second["key_version"]) == (1, 2)
        data = await vault.data("GET", KEY)
        assert {number: key["public_key"] for number, key in data["keys"].items()} == {
            "1": b64(old),
            "2": b64(vault.manager.public_key),
        }
        assert (data["latest_version"], data["min_encryption_version"], data["min_decryption_version"]) == (2, 2, 1)
        assert await vault.data("POST", SIGN, {"input": b64(M), "key_version": 2}) == second
        for body in ({"input": b64(M)}, {"batch_input": [{"input": b64(M)}]}):
            reply = await vault.asked("POST", SIGN, {**body, "key_version": 1})
            text = (
                reply.json()["errors"][0] if reply.status == 400 else reply.json()["data"]["batch_results"][0]["error"]
            )
            assert "was asked for, and what signs now is" in text
        assert "no version 3" in await vault.refused(400, "POST", SIGN, {"input": b64(M), "key_version": 3})
    async with site(config, tmp_path) as vault:  # the same numbers after a restart
        assert await vault.data("POST", SIGN, {"input": b64(M)}) == second
        assert (await vault.data("GET", KEY))["keys"] == data["keys"]
        for signed in (first, second):
            asked = {"input": b64(M), "signature": signed["signature"]}
            assert await vault.data("POST", VERIFY, asked) == {"valid": True}
        swapped = {"input": b64(M), "signature": first["signature"].replace("v1", "v2")}
        assert await vault.data("POST", VERIFY, swapped) == {"valid": False}


@one_loop
async def test_a_batch_goes_to_the_key_that_became_current_meanwhile(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TICK_SECONDS", 3600.0)  # as in the test before
    seen, ask = [], RemoteKey.ask

    async def late(key, make, count=1):
        """The key is rotated when a part of the batch is about to be signed."""
        sent = frame_of(make(1))
        if sent.type is not Type.SIGN_MANY:
            return await ask(key, make, count)
        asked = wire.read_sign_many(unlabelled(sent)[0].body)
        seen.append(asked.version)
        if len(seen) > 1:
            return await ask(key, make, count)
        first = key.current.public_key
        await vault.manager.rotate_key("test")
        if asked.version:
            return await ask(key, make, count)
        refused = wire.refusal_of(KeyNotCurrent.of(first, vault.manager.public_key))
        return frame_of(wire.signed_many(1, 1, [bytes(64), *[refused] * (count - 1)]))

    monkeypatch.setattr(RemoteKey, "ask", late)
    async with site(fresh_token().config(**rules(tmp_path)), tmp_path) as vault:
        for version in (0, 2):  # any version, and the one that is current before
            seen.clear()
            with near(vault.served) as core:
                items = [{"input": b64(b"%d" % number)} for number in range(5)]
                asked = json.dumps({"batch_input": items, "key_version": version}).encode()
                status, said = await called(Transit(core, core.tls).app(), SIGN, asked)
            assert status == 200
            results = said["data"]["batch_results"]
            assert seen == ([2] if version else [0, 0])
            if version:
                assert all("was asked for" in one["error"] for one in results)
                continue
            assert [one["key_version"] for one in results] == [1, 2, 2, 2, 2]
            for item, one in list(zip(items, results, strict=True))[1:]:
                message, signature = (base64.b64decode(text) for text in (item["input"], parts(one["signature"])[1]))
                VerifyKey(vault.manager.public_key).verify(message, signature)


def frame_of(data):
    """The one frame of some bytes."""
    [found] = Splitter(tuple(Type)).feed(data)
    return found


@one_loop
async def test_a_key_that_is_in_no_ring_has_a_number_of_its_own(fresh_token, tmp_path):
    members = Members(tmp_path, fresh_token, SAME, OTHER)
    config = members.config(failover={"acceptOtherKeys": ["secondary"]})
    async with site(config, tmp_path) as vault:
        first = await vault.data("POST", SIGN, {"input": b64(M)})
        members.kill(0)

        async def failed_over():
            reply = await vault.asked("POST", SIGN, {"input": b64(b"other")})
            return reply.status == 200 and reply.json()["data"]["key_version"] != 1

        await becomes(failed_over)
        other = await vault.data("POST", SIGN, {"input": b64(b"other")})
        batch = await vault.data("POST", SIGN, {"batch_input": [{"input": b64(b"other")}]})
        assert batch["batch_results"][0]["signature"] == other["signature"]
        number = parts(other["signature"])[0]
        assert 1 << 30 <= number < 1 << 31
        assert number == other["key_version"] == (await vault.data("GET", KEY))["latest_version"]
        members.revive(0)
    async with site(config, tmp_path) as vault:
        for message, signed in ((M, first), (b"other", other)):
            asked = {"input": b64(message), "signature": signed["signature"]}
            assert await vault.data("POST", VERIFY, asked) == {"valid": True}
