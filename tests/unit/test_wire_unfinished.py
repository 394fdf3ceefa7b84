"""What a gateway says is unfinished: there and back, and what is refused."""

import hashlib
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.base.receipt import Unfinished
from hsmcore.gateway.wire import unfinished
from hsmcore.gateway.wire.frames import WireError
from hsmcore.gateway.wire.messages import KINDS

MESSAGE = b"block 7"
GOOD = json.loads(unfinished.written(Unfinished("block", 7, hashlib.sha256(MESSAGE).digest(), MESSAGE)))


@given(
    st.sampled_from(KINDS[1:]), st.integers(0, 2**64 - 1), st.none() | st.binary(max_size=300), st.binary(max_size=9)
)
def test_there_and_back(kind, position, message, other):
    found = Unfinished(kind, position, hashlib.sha256(other if message is None else message).digest(), message)
    assert unfinished.read(unfinished.written(found)) == found


def test_nothing_is_unfinished():
    assert unfinished.read(unfinished.written(None)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"kind": ""}, {"kind": "no"}, {"kind": ["block"]}, {"position": "-1"}, {"position": str(2**64)},
        {"position": None}, {"digest": "00"}, {"digest": 1}, {"message": "!"}, {"message": "AA=="}, {"message": 1},
    ],
)  # fmt: skip
def test_what_is_none_is_refused(change):
    with pytest.raises(WireError):
        unfinished.read(json.dumps(GOOD | change))


@given(st.text(max_size=30) | st.sampled_from(["[]", "{}", "1", '"x"', "[" * 100_000]))
def test_no_text_brings_anything_else(text):
    with suppress(WireError):
        assert unfinished.read(text) is None
