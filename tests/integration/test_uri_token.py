"""The pkcs11 provider on a real module, by URI alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.base.uri import build_uri
from hsmcore.config import load
from hsmcore.doctor.doctor import diagnose
from hsmcore.errors import KeyNotFound, TokenNotFound

pytestmark = pytest.mark.integration


def config_of(world: Any, key: str = "ed25519", isolation: str = "thread", **path: Any) -> dict[str, Any]:
    names = {"token": world.label, "object": world.keys[key].label, "id": bytes.fromhex(world.keys[key].id)}
    uri = build_uri(
        names | {"type": "private"} | path, {"module-path": world.module, "pin-source": str(world.pin_file)}
    )
    settings = {"uri": uri, "sessions": 1, "isolation": isolation}
    return {"keyManager": {"type": "pkcs11", "config": settings, "maxCacheSize": 0}}


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("path", [{}, {"manufacturer": "SoftHSM project", "model": "SoftHSM v2"}])
@one_loop
async def test_it_signs_with_the_key_of_a_uri(world, isolation, path):
    async with opened(config_of(world, isolation=isolation, **path)) as manager:
        assert is_good("ed25519", world.keys["ed25519"].public_key, b"x", await manager.sign(b"x"))
        assert await manager._path.member.control.list_keys()
        assert manager._path.member.engine.token()["quirks"] == "softhsm"


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("path", [{"manufacturer": "Somebody else"}, {"model": "SoftHSM v3"}])
@one_loop
async def test_another_maker_s_token_is_not_taken(world, isolation, path):
    manager = hsmcore.create_key_manager(config_of(world, isolation=isolation, **path))
    with pytest.raises(TokenNotFound) as caught:
        await manager.initialize()
    assert world.label in caught.value.hint
    report = diagnose(load(config_of(world, isolation=isolation, **path)))
    assert [step.name for step in report.providers[0].steps if step.outcome == "fail"] == ["token"]


def test_the_uri_that_doctor_shows_names_that_token(world):
    [provider] = diagnose(load(config_of(world))).providers
    uri = next(step.data["uri"] for step in provider.steps if step.name == "token")
    config = {"uri": uri, "modulePath": world.module, "keyLabel": world.keys["ed25519"].label}
    config["pin"] = {"file": str(world.pin_file)}
    report = diagnose(load({"keyManager": {"type": "pkcs11", "config": config}}))
    assert report.exit_code == 0


@one_loop
async def test_a_key_that_is_missing_comes_with_those_that_are_there(world):
    manager = hsmcore.create_key_manager(world.config(settings={"keyLabel": "ed25519-kye"}))
    with pytest.raises(KeyNotFound) as caught:
        await manager.initialize()
    assert 'Did you mean keyLabel "ed25519-key"?' in caught.value.hint
