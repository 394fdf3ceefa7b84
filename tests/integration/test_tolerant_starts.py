"""What breaks one member costs that member, at a start as while it runs, once it has started as it is configured."""

import asyncio
import shutil

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.size import crossed
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.failover.history import History
from hsmcore.state import Store

pytestmark = pytest.mark.integration
MEMBERS = ["primary", "secondary"]


class Site:
    """Two levels, each a token with a module file, a PIN file and a key of its own."""

    def __init__(self, folder, tokens):
        self.folder, self.tokens = folder, dict(zip(MEMBERS, tokens, strict=True))
        for level, token in self.tokens.items():
            self.module(level).symlink_to(token.module)
            self.pin(level).touch(mode=0o600)
            self.pin(level).write_text(token.pin)

    def module(self, level):
        return self.folder / f"{level}.so"

    def pin(self, level):
        return self.folder / f"{level}.pin"

    def settings(self, level, **changed):
        token = self.tokens[level]
        found = token.config()["sequencer"]["keyManager"]["config"]
        names = {"keyId": token.keys["ed25519"].id, "keyLabel": None}
        own = {"modulePath": str(self.module(level)), "pin": {"file": str(self.pin(level))}, "isolation": "process"}
        return {name: value for name, value in (found | names | own | changed).items() if value is not None}

    def config(self, **changed):
        rules = {"primaryRetryIntervalMs": 100, "secondaryRetryIntervalMs": 100, "acceptOtherKeys": ["secondary"]}
        second = {"type": "softhsm", "config": self.settings("secondary", **changed.get("secondary", {}))}
        return {
            "keyManager": {
                "type": "softhsm",
                "config": self.settings("primary", **changed.get("primary", {})),
                "maxCacheSize": 0,
                "stateFile": str(self.folder / "state.db"),
                "failover": {"secondary": [second], **rules},
            }
        }


@pytest.fixture
def site(fresh_token, tmp_path):
    return Site(tmp_path, [fresh_token(), fresh_token()])


class Token:
    def spoil(self, site, level):
        site.tokens[level].folder.rename(site.folder / "away")

    def mend(self, site, level):
        (site.folder / "away").rename(site.tokens[level].folder)


class Pin:
    readmitted = True

    def spoil(self, site, level):
        site.pin(level).write_text("wrong-pin")

    def mend(self, site, level):
        site.pin(level).write_text(site.tokens[level].pin)


class Key:
    """The key's files of the token are gone: the token's own file and its lock stay."""

    readmitted = True

    def spoil(self, site, level):
        token = site.tokens[level]
        shutil.copytree(token.folder, site.folder / "whole")
        for file in token.folder.glob("*.object"):
            if file.name != "token.object":
                file.unlink()

    def mend(self, site, level):
        for file in (site.folder / "whole").glob("*.object"):
            shutil.copy(file, site.tokens[level].folder)


class Module:
    def spoil(self, site, level):
        site.module(level).unlink()

    def mend(self, site, level):
        site.module(level).symlink_to(site.tokens[level].module)


class PinFile:
    def spoil(self, site, level):
        site.pin(level).unlink()

    def mend(self, site, level):
        site.pin(level).touch(mode=0o600)
        site.pin(level).write_text(site.tokens[level].pin)


SPOILT = {
    "token": (Token, hsmcore.TokenNotFound),
    "pin": (Pin, hsmcore.PinIncorrect),
    "key": (Key, hsmcore.KeyNotFound),
    "module": (Module, hsmcore.ModuleMissing),
    "pin file": (PinFile, hsmcore.SecretUnavailable),
}


async def started_once(site):
    async with opened(site.config()) as manager:
        assert await manager.sign(b"m")


@pytest.mark.parametrize(("level", "what"), crossed(MEMBERS, SPOILT))
@one_loop
async def test_a_restart_costs_the_member_that_is_spoilt_and_no_other(site, what, level):
    await started_once(site)
    fault = SPOILT[what][0]()
    fault.spoil(site, level)
    other = next(one for one in MEMBERS if one != level)
    async with opened(site.config()) as manager:
        receipt = await manager.sign_with_receipt(b"m")
        assert receipt.level == other
        assert is_good("ed25519", receipt.public_key, b"m", receipt.signature)
        [out] = [member for member in manager.members() if member.level == level]
        assert out.condition in ("open", "fenced")
        assert "it did not start" in out.reason
        await asyncio.sleep(0.5)  # probes change nothing
        assert await manager.sign(b"n")
        fault.mend(site, level)
        if getattr(fault, "readmitted", False):
            failover = manager._path
            [endpoint] = [one for one in failover.endpoints if one.level_name == level]
            await failover.health.readmit(endpoint, "it is mended")
        await until(lambda: all(member.condition == "ready" for member in manager.members()))
    store = await Store.open(site.folder / "state.db")
    found = await History(store).query(kinds=("member-down",))
    await store.close()
    assert any(row["member"] == out.name and "it did not start" in row["reason"] for row in found)


@pytest.mark.parametrize(("level", "what"), crossed(MEMBERS, [what for what in SPOILT if what != "token"]))
@one_loop
async def test_a_first_start_is_refused(site, what, level):
    fault, error = SPOILT[what]
    fault().spoil(site, level)
    with pytest.raises(error):
        async with opened(site.config()):
            pass


@one_loop
async def test_a_changed_member_is_judged_as_at_the_first_start(site):
    await started_once(site)
    with pytest.raises(hsmcore.KeyNotFound):
        async with opened(site.config(secondary={"keyId": "00ff00"})):
            pass
    Pin().spoil(site, "primary")  # which did not change
    async with opened(site.config(secondary={"sessions": 1})) as manager:
        assert (await manager.sign_with_receipt(b"m")).level == "secondary"


@one_loop
async def test_without_any_member_the_start_fails(site):
    await started_once(site)
    Pin().spoil(site, "primary")
    Module().spoil(site, "secondary")
    with pytest.raises(hsmcore.PinIncorrect):
        async with opened(site.config()):
            pass
