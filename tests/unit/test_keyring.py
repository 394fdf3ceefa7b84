"""The key ring by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.errors import KeyDeactivated, KeyNotFound


def version(key_id: str, index: int = 0) -> KeyVersion:
    return KeyVersion(key_id, f"label of {key_id}", "ed25519", key_id.encode(), index)


def test_a_missing_key_is_named_beside_those_that_are_there():
    ring = KeyRing()
    ring.add(version("aa"))
    ring.add(version("bb"))
    with pytest.raises(KeyNotFound, match=r"'zz'.*aa, bb"):
        ring.make_current("zz")


def test_a_deactivated_key_is_kept_for_verification_only():
    ring = KeyRing()
    ring.add(version("aa"))
    ring.add(version("bb"))
    ring.make_current("aa")
    assert ring.deactivate("aa").state == "deactivated"
    assert ring.current.id == "aa", "no other key takes its place by itself"
    assert ring.current.state == "deactivated"
    with pytest.raises(KeyDeactivated, match="aa"):
        ring.make_current("aa")
    assert [key.id for key in ring.for_verification()] == ["aa", "bb"]
    assert ring.deactivate("aa").state == "deactivated"
    with pytest.raises(KeyNotFound):
        ring.deactivate("zz")


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "current", "deactivate"]), st.sampled_from(["aa", "bb", "cc"])), max_size=30
)


@given(STEPS)
def test_what_is_current_is_known_and_was_active_when_it_became_so(steps):
    ring = KeyRing()
    known: dict[str, str] = {}
    current = None
    for step, key_id in steps:
        if step == "add":
            if key_id not in known:
                ring.add(version(key_id))
                known[key_id] = "active"
        elif key_id not in known:
            with pytest.raises(KeyNotFound):
                (ring.make_current if step == "current" else ring.deactivate)(key_id)
        elif step == "deactivate":
            ring.deactivate(key_id)
            known[key_id] = "deactivated"
        elif known[key_id] == "deactivated":
            with pytest.raises(KeyDeactivated):
                ring.make_current(key_id)
        else:
            ring.make_current(key_id)
            current = key_id
        assert {key.id: key.state for key in ring} == known
        assert sorted(key.id for key in ring.for_verification()) == sorted(known)
        if current is not None:
            assert ring.current.id == ring.for_verification()[0].id == current
