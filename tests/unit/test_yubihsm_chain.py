"""The device's log as data: whatever is done to a stretch of it is found, and nothing is found in one left alone."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.yubihsm.log import CAPACITY, AuditLog

from hsmcore.providers.yubihsm.chain import ENTRY_BYTES, Anchor, LogEntry, after, join, verify_chain

SIGN = 0x6A


def a_log(count, first=0):
    """Raw entries as a device would have written them, and the anchor before them."""
    log = AuditLog()
    log._number = first - 1 & 0xFFFF
    anchor = Anchor(1, log._number, log._digest)
    log.entries = []
    raw = []
    for number in range(count):
        log.record(SIGN, 2 + number % 40, SIGN | 0x80, session_key=2, target=0x64)
        raw.append(log.entries[-1])
    return raw, anchor


def parsed(raw):
    return [LogEntry.parse(entry) for entry in raw]


@given(st.integers(0, 150), st.integers(0, 0xFFFF))
def test_a_log_left_alone_is_in_order(count, first):
    raw, anchor = a_log(count, first)
    assert verify_chain(parsed(raw), anchor) == []
    assert verify_chain(parsed(raw)) == []


@given(st.data())
def test_a_flipped_bit_is_found(data):
    raw, anchor = a_log(data.draw(st.integers(1, 70)), data.draw(st.integers(0, 0xFFFF)))
    index = data.draw(st.integers(0, len(raw) - 1))
    bit = data.draw(st.integers(0, ENTRY_BYTES * 8 - 1))
    changed = bytearray(raw[index])
    changed[bit // 8] ^= 1 << bit % 8
    raw[index] = bytes(changed)
    findings = verify_chain(parsed(raw), anchor)
    assert findings
    assert {finding.number for finding in findings} & {entry.number for entry in parsed(raw[index : index + 2])}


@given(st.data())
def test_dropped_entries_are_found(data):
    raw, anchor = a_log(data.draw(st.integers(2, 70)), data.draw(st.integers(0, 0xFFFF)))
    begin = data.draw(st.integers(0, len(raw) - 2))
    end = data.draw(st.integers(begin + 1, len(raw) - 1))
    left = parsed(raw[:begin] + raw[end:])
    [finding] = verify_chain(left, anchor)
    assert (finding.kind, finding.number) == ("gap", LogEntry.parse(raw[end]).number)
    assert finding.detail.startswith(f"{end - begin} entries")


def test_an_entry_that_is_left_out_and_covered_up_by_renumbering_is_found():
    raw, anchor = a_log(20)
    shifted = []
    for entry in raw[11:]:
        number = int.from_bytes(entry[:2], "big") - 1
        shifted.append(number.to_bytes(2, "big") + entry[2:])
    assert {finding.kind for finding in verify_chain(parsed(raw[:10] + shifted), anchor)} == {"tampered"}


def test_a_forged_end_is_found_by_the_next_reading():
    raw, anchor = a_log(20)
    forged = parsed(raw[:10])
    # A forger that recomputes the digests makes a chain that is right in itself, but not where it goes on.
    changed = replace(forged[-1], target_key=0x65)
    redone = replace(changed, digest=changed.digest_after(forged[-2].digest))
    assert verify_chain([*forged[:-1], redone], anchor) == []
    kept = Anchor(1, redone.number, redone.digest)
    assert [finding.kind for finding in verify_chain(parsed(raw[10:]), kept)] == ["tampered"]


def test_a_reset_device_begins_a_new_chain():
    raw, _ = a_log(5, first=100)
    last = LogEntry.parse(raw[-1])
    fresh = parsed(AuditLog().entries)
    assert [finding.kind for finding in verify_chain(fresh, Anchor(1, last.number, last.digest))] == ["reset"]


@given(st.integers(0, 62), st.data())
def test_what_was_kept_already_is_not_taken_twice(count, data):
    raw, anchor = a_log(count)
    entries = parsed(raw)
    seen = data.draw(st.integers(0, count))
    kept = anchor if seen == 0 else Anchor(1, entries[seen - 1].number, entries[seen - 1].digest)
    assert list(after(entries, kept)) == entries[seen:]
    assert list(after(entries, None)) == entries


@pytest.mark.parametrize("size", [0, 31, 33])
def test_what_is_no_entry_is_refused(size):
    with pytest.raises(ValueError, match="32 bytes"):
        LogEntry.parse(os.urandom(size))


def test_a_ring_that_ran_over_shows_as_a_gap():
    log = AuditLog()
    first = LogEntry.parse(log.entries[-1])
    for _ in range(CAPACITY + 8):
        log.record(SIGN, 10, SIGN | 0x80, 2, 0x64)
    [finding] = verify_chain(parsed(log.entries), Anchor(1, first.number, first.digest))
    assert (finding.kind, finding.detail.split()[0]) == ("gap", "8")


# ---- which is which --------------------------------------------------------------------------------------------------


def record(seq, size, **fields):
    return {"seq": seq, "operation": "sign", "result": "ok", "key_id": "0064", "message_bytes": size, **fields}


def entry(size, target=0x64, user=2, command=SIGN, result=None):
    return LogEntry(1, command, 2 + size, user, target, 0xFFFF, command | 0x80 if result is None else result, 0, b"")


def test_signatures_are_joined_by_key_length_and_order():
    records = [record(1, 10), record(2, 20), record(3, 10), record(4, 30), record(5, 10, cached=True)]
    records += [record(6, 10, result="error"), record(7, 10, key_id="label:x"), record(8, 10, operation="verify")]
    entries = [entry(10), entry(20), entry(10), entry(10), entry(40), entry(10, user=9), entry(10, result=9)]
    joined = join(entries, records, auth_key_id=2)
    assert [(pair[0].length - 2, pair[1]["seq"]) for pair in joined.pairs] == [(10, 1), (20, 2), (10, 3)]
    assert [left.length - 2 for left in joined.only_device] == [10, 40, 10]
    assert [left["seq"] for left in joined.only_ours] == [4]


def test_ecdsa_signatures_are_joined_by_order_alone():
    records = [record(1, 500), record(2, 10)]
    joined = join([entry(32, command=0x56), entry(32, command=0x56)], records, auth_key_id=2)
    assert [pair[1]["seq"] for pair in joined.pairs] == [1, 2]
    assert (joined.only_device, joined.only_ours) == ([], [])
