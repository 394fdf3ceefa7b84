"""The envelope around a wrapped key: a damaged one, another key's and another writer's are refused."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from hsmcore.manager.rotation.backup.envelope import MOST_BYTES, BackupInvalid, Statement, open_envelope

KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(32))
SEALED = Statement("0a0b", "key", "ed25519", bytes(KEY.verify_key), "sealed", "ab" * 32, "softhsm:t", 17, bytes(80))


def wrapped():
    inner = {"id": "0a0b", "algorithm": "ed25519", "publicKey": bytes(KEY.verify_key).hex(), "wrapped": "AAAA"}
    return replace(SEALED, method="wrapped", wrapping_key="hsmcore-backup", payload=orjson.dumps(inner))


def enclosed(statement, key=KEY):
    return statement.enclose(key.sign(statement.to_sign()).signature)


def test_what_was_enclosed_comes_out():
    for statement in (SEALED, wrapped()):
        assert open_envelope(enclosed(statement)) == statement
        assert open_envelope(enclosed(statement), bytes(KEY.verify_key)) == statement


def test_another_key_s_backup_is_refused():
    with pytest.raises(BackupInvalid, match="another key"):
        open_envelope(enclosed(SEALED), bytes(OTHER.verify_key))
    forged = replace(SEALED, public_key=bytes(OTHER.verify_key))
    with pytest.raises(BackupInvalid, match="another key"):
        open_envelope(enclosed(forged, OTHER), bytes(KEY.verify_key))
    with pytest.raises(BackupInvalid, match="signature"):
        enclosed(SEALED, OTHER)


def test_what_is_inside_must_agree():
    with pytest.raises(BackupInvalid, match="contradict"):
        enclosed(replace(wrapped(), key_id="0a0c"))


def test_a_thousand_damages_are_all_noticed():
    data = enclosed(wrapped())
    chance = random.Random(3)
    for number in range(1000):
        damaged = bytearray(data)
        kind = number % 5
        place = chance.randrange(len(data))
        if kind == 0:
            damaged[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del damaged[place : place + chance.randrange(1, 40)]
        elif kind == 2:
            damaged[place:place] = bytes([chance.randrange(256)])
        elif kind == 3:
            damaged = damaged[:place]
        else:  # the same to a lax reader
            damaged[place : place + 1] = bytes(damaged[place : place + 1]).swapcase()
        if bytes(damaged) == data:
            continue
        with pytest.raises(BackupInvalid):
            open_envelope(bytes(damaged))


@given(st.binary(max_size=300))
def test_what_is_no_envelope_is_refused(data):
    with pytest.raises(BackupInvalid):
        open_envelope(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(st.sampled_from([*SEALED.to_json(), "payload", "signature", "format", "statement"]), JSON)
def test_a_changed_field_is_refused(name, value):
    document = orjson.loads(enclosed(SEALED))
    target = document if name in document else document["statement"]
    if target[name] == value and type(target[name]) is type(value):
        return
    target[name] = value
    try:
        data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a number that is too large for it
        return
    with pytest.raises(BackupInvalid):
        open_envelope(data)


def test_a_long_file_is_not_read():
    with pytest.raises(BackupInvalid, match="at most"):
        open_envelope(b" " * (MOST_BYTES + 1))
