"""The control plane of an isolated module: the module is in a child process, and nowhere else."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from tests.support.chaos import copy_of
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import opened, start
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.config import load
from hsmcore.errors import (
    EXCEPTION_OF_STATUS,
    InternalError,
    KeyAmbiguous,
    KeyNotFound,
    ModuleMissing,
    PinIncorrect,
    TokenAmbiguous,
    TokenNotFound,
    error_of,
)
from hsmcore.members.control import ControlError, ControlPlane, KeyNotExportable, TokenAccess, TokenSelector, wire
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.members.control.keys import Deactivate, Destroy
from hsmcore.members.control.provision import provision
from hsmcore.members.control.softhsm import find_softhsm
from hsmcore.members.control.verb import VERBS, Verb
from hsmcore_bench.harness.softhsm import token_folder

SOFTHSM = frozenset({"SOFTHSM2_CONF"})
pytestmark = pytest.mark.integration


def isolated(config, **options):
    return ControlPlane.for_settings(load(config).key_manager.config, isolated=True, **options)


def mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@dataclass(frozen=True, slots=True, repr=False)
class NoSuchVerb(Verb[None]):
    """One that the child does not have."""

    def run(self, admin):
        raise AssertionError


del VERBS["NoSuchVerb"]


@pytest.fixture
def module(softhsm, tmp_path):
    """A copy of SoftHSM that no other test has loaded."""
    return copy_of(softhsm, tmp_path)


# ---- what it does ----


async def test_the_module_is_never_in_this_process(fresh_token, module):
    token = fresh_token()
    config = token.config(settings={"modulePath": str(module), "isolation": "process"})
    async with opened(config) as manager:
        stop = False

        async def keep_signing():
            count = 0
            while not stop:
                message = b"%d" % count
                assert is_good("ed25519", token.keys["ed25519"].public_key, message, await manager.sign(message))
                count += 1
            return count

        signing = start(keep_signing())
        old = await manager.get_current_key_id()
        new = await manager.generate_key()
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(new)
        await manager.deactivate_key(new)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(new)
        another = await manager.generate_key()
        stop = True
        assert await signing > 0
        await manager.set_current_key_id(another)
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
        await manager.set_current_key_id(old)
        shown = {key.id: key.can_sign for key in await manager._path.member.control.list_keys()}
        assert shown == {old: True, new: False, another: True}
        assert not mapped(module)
    assert not mapped(module)


@one_loop
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_call(fresh_token, algorithm):
    token = fresh_token()
    async with isolated(token.config()) as control:
        key = await control.generate_key(algorithm, "made", b"\x01\x02", extractable=True)
        assert (key.id, key.label, key.algorithm, key.can_sign) == ("0102", "made", algorithm, True)
        assert key in await control.list_keys()
        assert (await control.deactivate(key.id)).enforced
        if algorithm == "ed25519":
            with pytest.raises(KeyNotExportable) as caught:
                await control.do(ExportWrapped(key.id))
            assert (caught.value.ckr, caught.value.hint) == (0x69, KeyNotExportable.default_hint)
            await control.destroy(key.id)
        else:
            backup = await control.do(ExportWrapped(key.id, "wrapper"))
            await control.destroy(key.id)
            assert await control.do(ImportWrapped(backup)) == (await control.list_keys())[-1]
        assert (await control.generate_key(algorithm, "again")).extractable is False


@one_loop
async def test_a_large_request_and_many_answers(fresh_token):
    async with isolated(fresh_token().config()) as control:
        with pytest.raises(ControlError, match="no backup"):
            await control.do(ImportWrapped(bytes(300_000)))
        for _ in range(200):
            assert len(await control.list_keys()) == 1


@one_loop
async def test_errors_are_what_they_would_be_in_this_process(fresh_token):
    token = fresh_token()
    async with isolated(token.config(), member="m1") as control:
        [child] = children()
        for verb in (Deactivate, Destroy, ExportWrapped):
            with pytest.raises(KeyNotFound, match="00ff"):
                await control.do(verb("00ff"))
            with pytest.raises(ControlError) as caught:
                await control.do(verb("zz"))
            assert caught.value.hint == "a key id is written in hexadecimal"
        for _ in range(2):
            await control.generate_key("ed25519", "twin", b"\x07")
        with pytest.raises(KeyAmbiguous):
            await control.deactivate("07")
        with pytest.raises(TypeError):
            await control.generate_key("ed25519", b"x")
        assert [child] == sorted(children())
        with pytest.raises(InternalError, match="NoSuchVerb: KeyError"):
            await control.do(NoSuchVerb())
        assert await control.list_keys()
        assert [child] != sorted(children()), "after a fault of its own a child is replaced"
    for selector, error in ((TokenSelector(label="elsewhere"), TokenNotFound), (TokenSelector(), TokenAmbiguous)):
        control = ControlPlane(TokenAccess(token.module, selector), isolated=True, variables=SOFTHSM)
        with pytest.raises(error):
            await control.list_keys()
        assert children() == frozenset()
        await control.close()
    control = ControlPlane(TokenAccess("/nowhere/libmissing.so", TokenSelector()), isolated=True)
    with pytest.raises(ModuleMissing):
        await control.list_keys()
    await control.close()


def test_errors_survive_the_way_with_all_that_they_know():
    for status in EXCEPTION_OF_STATUS:
        error = error_of(status, ckr=5, ckr_name="CKR_X", call="C_X", detail="d", member="m", hint="h")
        back = wire.error_of_json(orjson.loads(orjson.dumps(wire.error_to_json(error))))
        assert (type(back), vars(back), str(back)) == (type(error), vars(error), str(error))
    foreign = {**wire.error_to_json(error_of("BUSY")), "class": "ConfigurationError"}
    assert type(wire.error_of_json(foreign)) is EXCEPTION_OF_STATUS["BUSY"]
    assert type(wire.error_of_json({**foreign, "class": "object"})) is EXCEPTION_OF_STATUS["BUSY"]


# ---- secrets ----


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A file that gets the arguments and the environment of each Python child."""
    seen, python = tmp_path / "seen", tmp_path / "python"
    python.write_text(f'#!/bin/sh\n{{ echo "$@"; env; }} > {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("ANOTHER", "not secret")
    return seen


def test_what_makes_a_token_gets_no_more_of_the_environment_than_its_module_reads(seen):
    with token_folder("hsmcore-tests-") as folder:
        provision(folder.request(find_softhsm(), "label", "key"), folder.conf)
    text = seen.read_text()
    assert "SOFTHSM2_CONF" in text
    assert "not secret" not in text


@one_loop
async def test_no_secret_is_in_its_arguments_or_its_environment(seen, fresh_token, monkeypatch):
    token = fresh_token()
    monkeypatch.setenv("THE_PIN", token.pin)
    config = load(token.config(settings={"pin": {"env": "THE_PIN"}}))
    given = []
    resolve = type(config.key_manager.config).resolve_pin

    def noted(settings):
        given.append(resolve(settings))
        return given[-1]

    monkeypatch.setattr(type(config.key_manager.config), "resolve_pin", noted)
    settings = config.key_manager.config
    async with ControlPlane.for_settings(settings, isolated=True, hidden=config.secret_variables) as control:
        assert await control.list_keys()
        text = seen.read_text()
        assert "SOFTHSM2_CONF" in text
        assert "not secret" not in text, "the module reads no such variable"
        assert token.pin not in text
        assert "THE_PIN" not in text
        [child] = children()
        assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)
    assert given == [bytearray(len(token.pin))]


@one_loop
async def test_a_refused_pin_is_sent_once(fresh_token):
    token = fresh_token()
    given = []

    def wrong():
        given.append(bytearray(b"wrong-pin"))
        return given[-1]

    control = ControlPlane(
        TokenAccess(token.module, TokenSelector(label=token.label), member="m"),
        pin=wrong,
        isolated=True,
        variables=SOFTHSM,
    )
    for match in ("PIN", "earlier attempt", "earlier attempt"):
        with pytest.raises(PinIncorrect, match=match) as caught:
            await control.list_keys()
        assert caught.value.member == "m"
        assert "wrong-pin" not in repr(caught.value)
        assert children() == frozenset()
    await control.close()
    assert given == [bytearray(len("wrong-pin"))]
