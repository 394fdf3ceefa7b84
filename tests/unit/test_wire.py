"""The bytes of hsmcore-wire/1: golden vectors, round trips, and what is refused."""

from __future__ import annotations

import json
import random
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import wire_tables
from tests.fuzz.wire import fuzz
from tests.support.paths import ROOT
from tests.support.wire import encoded, meaning, read
from tests.wire.make_vectors import document

from hsmcore.base.receipt import Receipt
from hsmcore.gateway.wire import batched, frames
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import CLIENT_TYPES, GATEWAY_TYPES, MOST_BYTES, Splitter, Type, WireError

VECTORS = json.loads((ROOT / "tests/wire/vectors.json").read_text())
TAKES = {"client": GATEWAY_TYPES, "gateway": CLIENT_TYPES}
OTHER = {"client": "gateway", "gateway": "client"}


def data(one: dict) -> bytes:
    fill = one.get("fill", {"byte": "00", "times": 0})
    return bytes.fromhex(one["hex"]) + bytes.fromhex(fill["byte"]) * fill["times"]


def says(one: dict) -> dict:
    """With a fill spelled out."""
    found = {}
    for name, value in one["says"].items():
        filled = isinstance(value, dict) and "times" in value
        found[name] = value["byte"] * value["times"] if filled else value
    return found


@pytest.mark.parametrize("one", VECTORS["frames"], ids=lambda one: one["name"])
def test_a_golden_frame_means_what_it_says_and_is_made_so(one):
    splitter = Splitter(TAKES[OTHER[one["from"]]])
    [frame] = splitter.feed(data(one))
    assert splitter.pending == 0
    assert (frame.type.name, frame.flags, frame.slot, str(frame.request)) == (
        one["type"],
        one["flags"],
        one["slot"],
        one["request"],
    )
    assert meaning(frame) == says(one)
    assert encoded(frame) == data(one)


@pytest.mark.parametrize("one", VECTORS["streams"], ids=lambda one: one["name"])
def test_a_golden_stream_is_cut_into_its_frames(one):
    found = Splitter(TAKES[OTHER[one["from"]]]).feed(data(one))
    assert [[frame.type.name, str(frame.request)] for frame in found] == one["frames"]


@pytest.mark.parametrize("one", VECTORS["refused"], ids=lambda one: f"{one['by']}: {one['name']}")
def test_a_golden_fault_is_refused(one):
    with pytest.raises(WireError):  # noqa: PT012  # a frame is refused, or what it says
        for frame in Splitter(TAKES[one["by"]]).feed(data(one)):
            read(frame)


def test_the_vectors_are_those_of_their_script_and_have_every_type():
    assert document() == (ROOT / "tests/wire/vectors.json").read_text()
    assert {one["type"] for one in VECTORS["frames"]} == {one.name for one in Type}


def test_the_page_the_codec_and_its_form_in_c_have_the_same_numbers():
    page = (ROOT / "docs/WIRE.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (client|gateway) \|", page, re.MULTILINE)
    assert {name: int(number) for number, name, _ in rows} == {one.name: int(one) for one in Type}
    assert {int(number) for number, _, who in rows if who == "client"} == set(CLIENT_TYPES)
    header = (ROOT / "native/include/hsmcore/frames.h").read_text()
    in_c = {name: int(number) for name, number in re.findall(r"HSM_FRAME_(\w+) = (\d+)\b(?! <<)", header)}
    names = {**Type.__members__, "POSITION": frames.Flag.HAS_POSITION, "AGAIN": frames.Flag.AGAIN, "HEAD": 16}
    assert in_c == {name: int(names[name]) for name in in_c} != {}
    assert f"at most {MOST_BYTES:,}" in page
    assert "HSM_FRAME_MOST = 1 << 20" in header
    assert MOST_BYTES == 1 << 20


def test_the_tables_of_the_client_in_rust_are_those_of_the_codec():
    assert wire_tables.FILE.read_text() == wire_tables.text(), "run `python -m scripts.wire_tables`"


# ---- round trips -----------------------------------------------------------------------------------------------------

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
short = st.text(max_size=60)
blob = st.binary(max_size=200)
key = st.builds(
    wire.Key, u16, u32, st.booleans(), st.sampled_from(wire.ALGORITHMS[1:]), short, st.binary(max_size=255), u16
)
keys = st.lists(key, max_size=4).map(tuple)
refusal = st.builds(wire.Refusal, st.booleans(), st.booleans(), u32, short, short, st.text(max_size=200))
slots = st.lists(short, max_size=4).map(tuple)
seq = st.none() | st.integers(0, 2**64 - 2)
receipt = st.builds(
    Receipt, blob, st.just(""), st.just(b""), st.just(""), st.sampled_from(wire.LEVELS), st.just(False), st.just(0), seq
)
kinds = st.sampled_from(wire.KINDS)
ANY_FRAME = st.one_of(
    st.builds(wire.hello, st.binary(min_size=16, max_size=16), short),
    st.builds(
        wire.sign, u64, st.builds(wire.Sign, kinds, u32, st.none() | u64, u32, blob), slot=u16, again=st.booleans()
    ),
    st.builds(
        wire.sign_many,
        u64,
        st.builds(wire.SignMany, kinds, u32, u32, st.lists(blob, max_size=5)),
        slot=u16,
        again=st.booleans(),
    ),
    st.builds(wire.verify, u64, st.builds(wire.Verify, short, blob, blob), slot=u16),
    st.builds(wire.manage, u64, st.builds(wire.Manage, st.sampled_from(wire.OPERATIONS[1:]), short), slot=u16),
    st.builds(frames.frame, st.sampled_from([Type.CANCEL, Type.ACK]), u64),
    st.builds(frames.frame, st.sampled_from([Type.PING, Type.PONG]), u64, st.binary(max_size=64)),
    st.builds(
        wire.welcome,
        st.builds(wire.Welcome, st.binary(min_size=16, max_size=16), u32, u32, u16, u32, short, slots, keys),
    ),
    st.builds(wire.signed, u64, u32, receipt, slot=u16),
    st.builds(wire.signed_many, u64, u32, st.lists(blob | refusal, max_size=5)),
    st.builds(wire.verified, u64, st.booleans()),
    st.builds(
        batched.sign_batched, u64, st.builds(batched.SignBatched, kinds, u32, blob), slot=u16, again=st.booleans()
    ),
    st.builds(
        batched.batched,
        u64,
        st.builds(batched.ClientBatchedSignature, blob, st.just(0), st.just(b""), short, blob, seq),
        slot=u16,
    ),
    st.builds(wire.error, u64, refusal),
    st.builds(wire.keys, keys),
    st.builds(wire.credit, u32),
    st.builds(wire.goaway, u32, short),
    st.builds(lambda request, text: frames.frame(Type.DONE, request, text.encode()), u64, short),
)


@given(ANY_FRAME)
def test_what_is_read_is_written_alike(made):
    [frame] = Splitter(Type).feed(made)
    meaning(frame)
    assert encoded(frame) == made


@given(st.lists(ANY_FRAME, max_size=6), st.data())
def test_cuts_of_a_stream_change_nothing(made, draw):
    stream = b"".join(made)
    whole = Splitter(Type).feed(stream)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter, found = Splitter(Type), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(stream[begin:end])
    assert found == whole
    assert len(found) == len(made)
    assert splitter.pending == 0


@given(st.lists(ANY_FRAME, min_size=1, max_size=4), st.data())
def test_what_is_refused_whole_is_refused_in_cuts(made, draw):
    """And before more of it has come than names the fault: the frames before it are not held back."""
    stream = bytearray(b"".join(made))
    stream[draw.draw(st.integers(0, len(stream) - 1))] ^= draw.draw(st.integers(1, 255))

    def fed(size: int) -> tuple[list, bool]:
        splitter, found = Splitter(Type), []
        try:
            for at in range(0, len(stream), size):
                found += splitter.feed(bytes(stream[at : at + size]))
        except WireError:
            return found, True
        return found, False

    (by_bytes, refused), (whole, refused_whole) = fed(1), fed(len(stream))
    assert refused == refused_whole
    assert refused or by_bytes == whole


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_a_frame_that_trickles_in_is_not_copied_for_each_byte():
    """Bytes that are copied, not time: feeding each further piece costs what the piece costs."""
    splitter = Splitter(CLIENT_TYPES)
    head = frames.frame(Type.SIGN, 1, wire.sign(1, wire.Sign("", 0, None, 0, bytes(MOST_BYTES - 29)))[16:])
    assert splitter.feed(head[:1000]) == []
    tracemalloc.start()
    try:
        splitter.feed(head[1000 : MOST_BYTES - 100])  # the buffer grows once
        tracemalloc.reset_peak()
        begun, _ = tracemalloc.get_traced_memory()
        for at in range(MOST_BYTES - 100, MOST_BYTES):
            assert splitter.feed(head[at : at + 1]) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - begun < MOST_BYTES // 2
    [frame] = splitter.feed(head[MOST_BYTES:])
    assert len(frame.body) == MOST_BYTES - 12


@pytest.mark.parametrize("announced", [65_535, 65_534])
def test_a_count_alone_costs_nothing(announced):
    body = (0).to_bytes(9, "little") + announced.to_bytes(2, "little")
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.read_sign_many(body)
        with pytest.raises(WireError):
            wire.read_keys(announced.to_bytes(2, "little"))
        with pytest.raises(WireError):
            wire.read_signed_many(bytes(4) + announced.to_bytes(2, "little"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_random_bytes_are_frames_or_refused():
    chance = random.Random(7)
    for _ in range(2000):
        splitter = Splitter(Type)
        try:
            for frame in splitter.feed(chance.randbytes(chance.randrange(64))):
                read(frame)
        except WireError:
            continue
        assert splitter.pending <= 64


def test_changed_bytes_are_frames_or_refused():
    """A short run of the fuzzer; `make check-deep` has the long one."""
    wrong, tried, kinds = fuzz(4000, seed=11)
    assert wrong == []
    assert tried == 4000
    assert len(kinds) > 40
