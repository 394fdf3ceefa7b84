"""A key manager whose providers stand in `failover.primary` alone: it signs, and every command works."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.support.levels import SAME
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.terminal import PROGRAM
from tests.support.verifiers import is_good

from hsmcore.config import load
from hsmcore.errors import ConfigurationError
from hsmcore_bench.load import target

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
M = b"a message"


@pytest.fixture
def tokens(fresh_token):
    return [fresh_token(SAME), fresh_token(SAME)]


@pytest.fixture
def configured(tokens, tmp_path):
    """The configuration, also as a file."""

    def configured(**failover):
        providers = [token.config()["sequencer"]["keyManager"] for token in tokens]
        rules = {"maxCacheSize": 0, "stateFile": str(tmp_path / "state.db"), "keyRotation": {"overlapDays": 1}}
        config = {"sequencer": {"keyManager": {**rules, "failover": {"primary": providers, **failover}}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return config

    return configured


@pytest.fixture
def hsmcore(tmp_path):
    """The command line in a process of its own: what it says as JSON."""

    def hsmcore(*arguments, stdin="", code=0):
        command = [*PROGRAM, *arguments, "--json", "--config", str(tmp_path / "config.json")]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    return hsmcore


@one_loop
async def test_it_signs_and_keeps_its_members(configured, tokens):
    names = [f"softhsm:{token.label}" for token in tokens]
    async with opened(configured()) as manager:
        receipt = await manager.sign_with_receipt(M)
        assert is_good("ed25519", tokens[0].keys["ed25519"].public_key, M, receipt.signature)
        assert (receipt.level, receipt.member) == ("primary", names[0])
        assert [endpoint.name for endpoint in manager._path.endpoints] == names
        assert manager.describe()["name"] == names[0]
    async with opened(configured(enabled=False)) as manager:  # pinned to the key that the ring has
        assert manager.public_key == tokens[0].keys["ed25519"].public_key
        assert (await manager.sign_with_receipt(M)).member == names[0]
        assert list(manager.get_stats()) == names[:1]


@one_loop
async def test_a_rotated_key_signs_after_a_restart(configured, tokens):
    tokens.pop()
    async with opened(configured()) as manager:
        new = await manager.rotate_key()
    for enabled in (True, False):
        async with opened(configured(enabled=enabled)) as manager:
            assert await manager.get_current_key_id() == new
            receipt = await manager.sign_with_receipt(M)
            assert (receipt.key_id, receipt.member) == (new, f"softhsm:{tokens[0].label}")


@one_loop
async def test_a_member_with_another_key_is_named_where_it_stands(configured, tokens, fresh_token):
    tokens[1] = fresh_token()
    with pytest.raises(ConfigurationError) as caught:
        async with opened(configured()):
            pass
    assert [fault.path for fault in caught.value.faults] == ["$.sequencer.keyManager.failover.primary[1]"]


def test_every_command_works_with_a_listed_primary(configured, hsmcore, tokens):
    configured()
    names = [f"softhsm:{token.label}" for token in tokens]
    places = [f"$.sequencer.keyManager.failover.primary[{number}]" for number in range(2)]
    found = hsmcore("doctor", code=1)["providers"]
    assert [(p["name"], p["where"]) for p in found] == list(zip(names, places, strict=True))
    failed = [step["name"] for provider in found for step in provider["steps"] if step["outcome"] == "fail"]
    assert set(failed) == {"backup"}  # a new Ed25519 key could not get from one token to the other
    signed = hsmcore("sign", stdin=M.decode())
    assert signed["publicKey"] == tokens[0].keys["ed25519"].public_key.hex()
    assert [key["id"] for key in hsmcore("keys", "list")] == [tokens[0].keys["ed25519"].id]
    assert hsmcore("failover", "drain", names[1], "--reason", "firmware")["value"] == "yes"


def test_a_load_test_changes_the_members_where_they_stand(configured):
    document = configured()
    with target.configured(load(document), document, target.Wanted(sessions=5)) as changed:
        assert [member.config.sessions for member in target.providers(changed.config)] == [5, 5]
