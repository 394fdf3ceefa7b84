"""What a record shows, and what it never does."""

from __future__ import annotations

import os

import orjson
from hypothesis import given
from hypothesis import strategies as st

from hsmcore._native import MerkleTree
from hsmcore.audit.record import ALLOWED, MAX_LINE_BYTES, cleaned, line, redacted, this_process
from hsmcore.config import Provider

SECRET = "hunter2-hunter2"
ORIGIN = this_process()

unlisted = st.text(max_size=12).filter(lambda name: name not in ALLOWED)
leaves = st.one_of(
    st.just(SECRET), st.just(SECRET.encode()), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=9)
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(unlisted, st.sampled_from(["pin", "config", "x", SECRET])), inner, max_size=4),
    ),
    max_leaves=25,
)


@given(st.dictionaries(unlisted, anything, max_size=6))
def test_what_is_not_on_the_list_never_shows(fields):
    text = orjson.dumps(cleaned(fields)).decode()
    assert SECRET not in text
    assert SECRET.encode().hex() not in text


@given(
    st.dictionaries(st.one_of(st.sampled_from(sorted(ALLOWED)), st.text(max_size=12)), anything, max_size=8), st.text()
)
def test_every_record_is_a_line_that_the_scan_accepts(fields, operation):
    text = line(7, 8, operation, fields, ORIGIN)
    why, consumed, _, rows = MerkleTree().scan(text, 0, 7, 2)
    assert (why, consumed, [row[:2] for row in rows]) == ("end", len(text), [(len(text), 1)])
    record = orjson.loads(text)
    assert (record["seq"], record["time_ns"]) == (7, 8)
    assert record["source"]["pid"] == os.getpid()


def test_names_do_not_make_a_secret_harmless():
    shown = cleaned(
        {"pin": 98761234, "params": {"userPin": "98761234", "label": "a key", "deep": [{"seed": b"98761234"}]}}
    )
    assert shown["params"]["label"] == "a key"
    assert shown["params"]["userPin"].startswith("redacted:")
    assert shown["pin"] != redacted(98761235)
    assert "98761234" not in orjson.dumps(shown).decode()


def test_a_listed_field_of_another_form_is_replaced():
    shown = cleaned({"key_id": SECRET * 50, "latency_ns": SECRET, "public_key": "not hex", "signature": b"\x01\x02"})
    assert shown["signature"] == "0102"
    assert all(str(shown[name]).startswith("redacted:") for name in ("key_id", "latency_ns", "public_key"))


def test_a_record_cannot_pretend_to_be_another():
    record = orjson.loads(line(7, 8, "sign", {"seq": 1, "time_ns": 2, "user": "root2", "source": {"pid": 1}}, ORIGIN))
    assert (record["seq"], record["time_ns"]) == (7, 8)
    assert (record["user"], record["source"]) == (ORIGIN["user"], ORIGIN["source"])


def test_a_record_that_is_too_long_says_so():
    text = line(7, 8, "sign", {f"name{n}": {f"a{m}": m for m in range(100)} for n in range(200)}, ORIGIN)
    assert len(text) <= MAX_LINE_BYTES
    assert orjson.loads(text)["result"] == "unrecordable"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8))
def test_records_are_found_again_by_the_members_name(label):
    """A label with an invisible character was redacted, otherwise in each process."""
    settings = {"tokenLabel": label, "keyLabel": "key", "pin": {"env": "PIN"}}
    name = Provider.model_validate({"type": "softhsm", "config": settings}).name
    assert cleaned({"member": name}) == {"member": name}
