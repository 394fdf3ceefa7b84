"""Where a key comes from: the certificate of a YubiHSM 2, what other tokens say, and what is no proof."""

from __future__ import annotations

import json

import pytest
from tests.support.levels import SAME
from tests.support.yubihsm import Capability
from tests.support.yubihsm.attest import Root
from tests.support.yubihsm.codes import Kind
from tests.support.yubihsm.objects import IMPORTED
from tests.support.yubihsm.rig import DOMAIN, KEY_ID

from hsmcore.cli.app import run as cli
from hsmcore.config import load
from hsmcore.doctor.doctor import diagnose
from hsmcore.errors import RequestRejected
from hsmcore.providers.yubihsm.attest import Claim, certificates, problem_of

pytestmark = pytest.mark.integration
ATTESTER = 0x0005


def settings_of(rig, tmp_path, *, capabilities=Capability.SIGN_ATTESTATION_CERTIFICATE | Capability.GET_OPAQUE, **more):
    rig.device.put_user(ATTESTER, "attester", capabilities=capabilities, delegated=0, domains=DOMAIN)
    password = tmp_path / "attester"
    password.touch(mode=0o600)
    password.write_text("attester")
    settings = {"auditAuthKeyId": ATTESTER, "auditPassword": {"file": str(password)}, **more}
    return rig.config(settings=settings)


def roots(tmp_path, root):
    path = tmp_path / "roots.pem"
    path.write_bytes(root.pem)
    return path


def test_a_certificate_leads_from_the_key_to_the_root_that_is_given(rig, tmp_path):
    settings = load(settings_of(rig, tmp_path)).key_manager.own.config
    chain = certificates(settings, f"{KEY_ID:04x}")
    path = roots(tmp_path, rig.device.attestation.root)
    claim = Claim(rig.public_key, f"{KEY_ID:04x}", str(rig.device.serial))
    assert len(chain) == 2
    assert problem_of(chain, [path], claim) == ""
    rig.device.store.find(KEY_ID, Kind.ASYMMETRIC_KEY, DOMAIN).origin = IMPORTED
    assert "imported" in problem_of(certificates(settings, claim.key_id), [path], claim)


def test_a_user_without_the_right_is_told_which_one(rig, tmp_path):
    settings = load(settings_of(rig, tmp_path, capabilities=Capability.GET_OPAQUE)).key_manager.own.config
    with pytest.raises(RequestRejected) as caught:
        certificates(settings, f"{KEY_ID:04x}")
    assert "sign-attestation-certificate" in caught.value.hint


def shown(capsys, tmp_path, config, key_id, status):
    path = tmp_path / "hsmcore.json"
    path.write_text(json.dumps(config))
    done = cli(["keys", "attest", key_id, "--config", str(path), "--json", "--output", str(tmp_path / "found")])
    out, err = capsys.readouterr()
    assert done == status, out + err
    found = json.loads(out)
    document = json.loads((tmp_path / "found").read_bytes())
    assert document.items() <= found.items()
    return found


def test_the_command_checks_it(rig, tmp_path, capsys):
    path = roots(tmp_path, rig.device.attestation.root)
    config = settings_of(rig, tmp_path, attestationRoots=[str(path)], isolation="thread")
    found = shown(capsys, tmp_path, config, f"{KEY_ID:04x}", 0)
    assert (found["proven"], found["problem"], found["publicKey"]) == (True, None, rig.public_key.hex())
    assert json.loads((tmp_path / "found").read_bytes())["exportableUnderWrap"] is found["exportableUnderWrap"] is True
    rig.device.store.find(KEY_ID, Kind.ASYMMETRIC_KEY, DOMAIN).capabilities ^= Capability.EXPORTABLE_UNDER_WRAP
    assert shown(capsys, tmp_path, config, f"{KEY_ID:04x}", 0)["exportableUnderWrap"] is False
    assert len(found["certificates"]) == 2
    path.write_bytes(Root().pem)
    found = shown(capsys, tmp_path, config, f"{KEY_ID:04x}", 1)
    assert "not lead to a root" in found["problem"]


def test_another_tokens_word_is_kept_as_it_is(world, tmp_path, capsys):
    found = shown(capsys, tmp_path, world.config(), world.keys["ed25519"].id, 1)
    assert found["says"]["CKA_LOCAL"] == "true"
    assert found["says"]["CKA_ALWAYS_SENSITIVE"] == "true"
    assert found["says"]["CKA_KEY_GEN_MECHANISM"] == "0x1055"
    assert found["token"]["model"] == "SoftHSM v2"
    assert (found["proven"], found["certificates"], found["exportableUnderWrap"]) == (False, [], None)
    assert "its own word" in found["problem"]


def test_an_imported_key_s_token_says_so(fresh_token, tmp_path, capsys):
    token = fresh_token(dict(SAME))
    found = shown(capsys, tmp_path, token.config(), token.keys["ed25519"].id, 1)
    assert found["says"]["CKA_LOCAL"] == "false"
    assert "CKA_KEY_GEN_MECHANISM" not in found["says"]


def test_doctor_judges_the_certificates(rig, tmp_path):
    path = roots(tmp_path, rig.device.attestation.root)
    config = settings_of(rig, tmp_path, attestationRoots=[str(path)])

    def found():
        [provider] = diagnose(load(config)).providers
        assert [one.found for one in provider.steps if one.outcome == "fail"] == []
        return next(one for one in provider.steps if one.name == "attestation")

    assert (found().outcome, "it can leave it under a wrapping key" in found().found) == ("ok", True)
    path.write_bytes(Root().pem)
    assert (found().outcome, "not lead to a root" in found().found) == ("warn", True)
    path.unlink()
    assert (found().outcome, found().hint) == ("warn", "Correct attestationRoots.")
