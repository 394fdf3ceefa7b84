"""The audit log's tree: a leaf for each record, and the scan that turns lines into leaves."""

from __future__ import annotations

import pytest
from bench.micro.kit import PerCall

from hsmcore import _native

LINES = 1_000
# As long as the record of a signature is.
LINE = (
    b'{"seq":%d,"time_ns":1764000000000000000,"operation":"sign","result":"ok","message_sha256":"' + b"0" * 64
    + b'","message_bytes":200,"signature":"' + b"0" * 128
    + b'","latency_ns":123456,"cached":false,"key_id":"0123456789abcdef","member":"softhsm:sequencer"}'
)  # fmt: skip


@pytest.mark.benchmark(group="merkle")
def test_leaf(per_call: PerCall) -> None:
    tree = _native.MerkleTree()
    line = LINE % 1

    def leaves() -> None:
        for _ in range(LINES):
            tree.leaf(line)

    per_call(leaves, LINES)


@pytest.mark.benchmark(group="merkle")
def test_append(per_call: PerCall) -> None:
    tree = _native.MerkleTree()
    leaf = tree.leaf(LINE % 1)

    def appends() -> None:
        for _ in range(LINES):
            tree.append(leaf)

    per_call(appends, LINES)
    assert tree.size >= LINES


@pytest.mark.benchmark(group="merkle")
def test_scan(per_call: PerCall) -> None:
    """Lines as the sealer reads them: hashed, appended and summed up for the index in one call."""
    text = b"".join(LINE % number + b"\n" for number in range(1, LINES + 1))

    def scans() -> None:
        _, used, leaves, _ = _native.MerkleTree().scan(text, 0, 1, LINES)
        assert (used, len(leaves)) == (len(text), LINES * 32)

    per_call(scans, LINES)
