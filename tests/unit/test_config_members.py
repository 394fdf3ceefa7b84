"""A YubiHSM with several connectors is several members."""

from __future__ import annotations

import pytest

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.config import Failover, all_members, load, members_of
from hsmcore.errors import ConfigurationError
from hsmcore.failover.plan import endpoints_and_levels
from hsmcore.failover.service import FailoverService
from hsmcore.manager.verification import VerifierPool
from hsmcore.providers.yubihsm.settings import YubiHsmSettings
from hsmcore.serve.actions import BadRequest, parse
from hsmcore.state import Store

URLS = [f"http://10.0.0.{number}:12345" for number in range(1, 5)]


def key_manager(more=None, **changes):
    config = {"authKeyId": 1, "password": {"env": "YUBI"}, "keyId": "0064", **changes}
    rules = {} if more is None else {"failover": {"enabled": True, "primary": more}}
    return load({"keyManager": {"type": "yubihsm", "config": config, **rules}}).key_manager


def test_each_connector_becomes_a_member_of_its_own_name():
    provider = key_manager(connectors=URLS)
    members = members_of(provider)
    assert [member.name for member in members] == [f"yubihsm:{url}" for url in URLS]
    for member, url in zip(members, URLS, strict=True):
        settings = member.config
        assert isinstance(settings, YubiHsmSettings)
        assert settings.connector_urls == (url,)
        assert settings.initialize_args == f"connector={url}"
        shared = {"auth_key_id", "password", "key_id", "isolation", "verify_signatures", "sessions"}
        assert all(getattr(settings, name) == getattr(provider.config, name) for name in shared)
        assert (member.where, settings.where) == (provider.where, provider.config.where)
        assert member.install_hint == provider.install_hint
        assert members_of(member) == (member,)


def test_everything_else_is_one_member():
    for provider in (key_manager(), key_manager(connector=URLS[0]), key_manager(connectors=URLS[:1])):
        assert members_of(provider) == (provider,)
    soft = load({"keyManager": {"type": "softhsm", "config": {"pin": {"env": "P"}, "keyLabel": "k"}}}).key_manager
    assert members_of(soft) == (soft,)


def test_a_level_is_made_of_them_in_order():
    other = {"type": "softhsm", "config": {"pin": {"env": "P"}, "keyLabel": "k", "tokenLabel": "t"}}
    rules = key_manager([other], connectors=URLS[:2])
    assert [member.name for member in rules.primary] == [f"yubihsm:{URLS[0]}", f"yubihsm:{URLS[1]}", "softhsm:t"]
    assert all_members([]) == ()


def switched_off():
    """Two connectors, so there is a primary level, and a whole block that is off."""
    other = {"type": "softhsm", "config": {"pin": {"env": "P"}, "keyLabel": "k", "tokenLabel": "t"}}
    block = {
        "enabled": False,
        "primary": [other],
        "secondary": [other | {"config": other["config"] | {"tokenLabel": "u"}}],
        "hedging": True,
        "emergencyModeEnabled": True,
        "emergencyModeRestrictions": {"maxTransactions": 5},
    }
    config = {"authKeyId": 1, "password": {"env": "YUBI"}, "keyId": "0064", "connectors": URLS[:2]}
    return load({"keyManager": {"type": "yubihsm", "config": config, "failover": block}})


async def test_nothing_of_a_block_that_is_off_has_an_effect(tmp_path):
    config = switched_off()
    assert [name for name, _ in config.key_manager.members()] == ["primary", "primary"]
    store = await Store.open(tmp_path / "state.db")
    levels, verifiers = endpoints_and_levels(config), VerifierPool()
    service = FailoverService(
        config, levels, store, lambda v, m, s: verifiers.verify([v], m, s), AuditLog(None), Events()
    )
    assert (service.router._hedging, levels.emergency_permitted) == (False, False)
    assert (await service.budget.status()).max_transactions == Failover().emergency_mode_restrictions.max_transactions
    await service.close()
    verifiers.close()


def test_the_console_allows_no_emergency_level_of_a_block_that_is_off():
    with pytest.raises(BadRequest, match="emergencyModeEnabled"):
        parse("emergency-enable", {"reason": "why not"}, switched_off(), {"failover": None, "members": []})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"connectors": URLS, "slotId": 0}, "give neither"),
        ({"connectors": URLS, "tokenSerial": "09000001"}, "give neither"),
        ({"connectors": URLS, "isolation": "thread"}, "process"),
        ({"auditAuthKeyId": 3}, "belong together"),
        ({"auditPassword": {"env": "AUDIT"}}, "belong together"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, problem):
    with pytest.raises(ConfigurationError, match=problem):
        key_manager(**changes)


def test_the_auditor_s_password_is_a_secret_like_any_other():
    config = {"authKeyId": 1, "password": {"env": "ONE"}, "keyId": "0064"}
    config |= {"auditAuthKeyId": 3, "auditPassword": {"env": "TWO"}}
    assert load({"keyManager": {"type": "yubihsm", "config": config}}).secret_variables == {"ONE", "TWO"}


def test_signatures_are_verified_unless_asked_otherwise():
    assert key_manager().config.verify_signatures == "always"
    assert key_manager(verifySignatures="never").config.verify_signatures == "never"


def token(module, **more):
    config = {"modulePath": module, "pin": {"env": "P"}, "tokenLabel": "seq", "keyLabel": "k"}
    return {"type": "pkcs11", "config": config, **more}


LAYOUTS = {
    "primary": lambda first, second: {**first, "failover": {"primary": [second]}},
    "secondary": lambda first, second: {**first, "failover": {"secondary": [second]}},
    "both listed": lambda first, second: {"failover": {"primary": [first], "secondary": [second]}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_members_of_one_name_are_refused_until_each_has_its_own(layout):
    def loaded(*members):
        return load({"keyManager": LAYOUTS[layout](*members)}).key_manager

    with pytest.raises(ConfigurationError) as refused:
        loaded(token("/a"), token("/b"))
    [fault] = refused.value.faults
    first = "$.keyManager.failover.primary[0]" if layout == "both listed" else "$.keyManager"
    level = "primary" if layout == "primary" else "secondary"
    assert fault.path == f"$.keyManager.failover.{level}[0]"
    assert f'is named "pkcs11:seq", as {first} is: give each a "name"' in fault.problem
    for names in (("a", "b"), ("pkcs11:seq", "pkcs11:seq#2")):
        rules = loaded(*(token(f"/{name}", name=name) for name in names))
        assert [member.name for _, member in rules.members()] == [*names]
        assert rules.name == names[0]
    for name in ("pkcs11:seq", "a"):  # that of another one's default, and of another one's own
        with pytest.raises(ConfigurationError, match=f'is named "{name}", as'):
            loaded(token("/a", **({} if name != "a" else {"name": "a"})), token("/b", name=name))


def test_a_name_of_several_connectors_is_what_theirs_begin_with():
    config = {"authKeyId": 1, "password": {"env": "YUBI"}, "keyId": "0064", "connectors": URLS[:2]}
    rules = load({"keyManager": {"type": "yubihsm", "name": "vault", "config": config}}).key_manager
    assert [member.name for member in rules.primary] == [f"vault:{url}" for url in URLS[:2]]


def test_a_name_is_short_and_printable_and_of_a_provider():
    for name in ("", " a", "a ", "x" * 65, "pé", "a\nb", 7):
        with pytest.raises(ConfigurationError, match=r"keyManager\.name: must be 1 to 64 characters"):
            load({"keyManager": token("/a", name=name)})
    assert load({"keyManager": token("/a", name="rack 4")}).key_manager.name == "rack 4"
    with pytest.raises(ConfigurationError, match=r"keyManager\.type: is required"):
        load({"keyManager": {"name": "a", "failover": {"primary": [token("/a")]}}})


def test_the_key_that_no_list_names_keeps_its_name_beside_an_ephemeral_member():
    own = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}
    rules = load({"keyManager": {**own, "failover": {"emergencyModeEnabled": True}}}).key_manager
    assert [member.name for _, member in rules.members()] == ["ephemeral", "ephemeral#2"]
    with pytest.raises(ConfigurationError, match='is named "ephemeral", as'):
        load({"keyManager": {**own, "failover": {"emergencyModeEnabled": True, "emergency": [{"type": "ephemeral"}]}}})
