"""The configuration of a policy: what is refused, with its place."""

from __future__ import annotations

import random

import pytest

import hsmcore
from hsmcore._native import Gate
from hsmcore.base.base58 import base58
from hsmcore.doctor.common import check_policy
from hsmcore.errors import ConfigurationError

FORMAT = {"kind": "block", "prefix": "4c32424b", "length": 76, "position": {"offset": 4}}
WHERE = "$.keyManager.policy"


def policy(**block):
    manager = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "policy": {"kinds": ["block"], **block}}
    return hsmcore.load({"keyManager": manager}).key_manager.policy


def form(**changes):
    return {"formats": [FORMAT | changes]}


@pytest.mark.parametrize(
    ("block", "where", "says"),
    [
        ({"kinds": []}, "", "at least one kind"),
        ({"kinds": ["block", "block"]}, "", "each once"),
        ({"kinds": ["blocks"]}, ".kinds[0]", "must be"),
        ({"kinds": ["prehashed", "block"]}, "", "prehashed"),
        ({"kinds": ["prehashed", "tx-v0"], "transactions": {}}, "", "prehashed"),
        ({"kinds": ["digest32", "block"]}, "", "digest32"),
        ({"kinds": ["digest32", "state-root"], "callers": {"a": {"kinds": ["digest32"]}}}, "", "digest32"),
        ({"kinds": ["tx-v0"], "formats": [FORMAT]}, "", "which kinds does not list"),
        ({"transactions": {}}, "", "no kind of transaction"),
        ({"callers": {"a": {"kinds": ["raw"]}}}, "", "which kinds does not"),
        (
            {"kinds": ["raw", "batch-root"], "callers": {"a": {"kinds": ["batch-root"]}}},
            ".callers.a.kinds[0]",
            "must be",
        ),
        ({"kinds": ["raw", "key-set"], "callers": {"a": {"kinds": ["key-set"]}}}, ".callers.a.kinds[0]", "must be"),
        ({"callers": {"a": {"batch": 1}}}, ".callers.a.batch", "true or false"),
        ({"callers": {"a": {"perSecond": 0}}}, ".callers.a.perSecond", "whole number"),
        *(
            ({"kinds": ["tx-v0"], "transactions": rules}, f".transactions{where}", says)
            for rules, where, says in (
                ({"programs": ["1" * 32]}, ".programs", '{"System": ["Transfer"]}'),
                ({"programs": {"1111": "any"}}, ".programs['1111']", "neither the name of a program nor an address"),
                ({"programs": {"Sytem": ["Transfer"]}}, ".programs.Sytem", 'did you mean "System"'),
                ({"programs": {"1" * 32: "any"}}, f".programs['{'1' * 32}']", 'write "System"'),
                ({"programs": {"System": "any"}}, ".programs.System", "must list the instructions"),
                ({"programs": {"System": []}}, ".programs.System", "must list the instructions"),
                ({"programs": {"System": ["Transfer", "Asign"]}}, ".programs.System[1]", 'did you mean "Assign"'),
                ({"programs": {"Token": ["Batch"]}}, ".programs.Token[0]", "has a name"),
                ({"programs": {"Token": [7]}}, ".programs.Token[0]", "has a name"),
                ({"programs": {"Memo": ["Memo"]}}, ".programs.Memo", 'must be "any"'),
                ({"programs": {"8" * 43: ["Transfer"]}}, f".programs['{'8' * 43}']", 'must be "any"'),
                ({"recipients": []}, "", "but no programs"),
                ({"recipients": ["1111"], "programs": {}}, ".recipients[0]", "base58"),
                ({"owned": {"1" * 32: {"perMinute": 1}}}, "", "but no programs: name there the instructions"),
                ({"owned": {"1111": {"perMinute": 1}}, "programs": {}}, ".owned", "by base58 address"),
                (
                    {"owned": {base58(bytes([n]) * 32): {"perMinute": 1} for n in range(17)}, "programs": {}},
                    ".owned",
                    "at most 16",
                ),
                (
                    {"owned": {"1" * 32: {"perMinute": 0}}, "programs": {}},
                    f".owned['{'1' * 32}'].perMinute",
                    "whole number",
                ),
                ({"maxFeeLamports": 4_999}, ".maxFeeLamports", "whole number"),
                ({"lookupTables": []}, "", "lookupTables is gone: recipients"),
                ({"lamportsPerMinute": 1}, "", "lamportsPerMinute is gone: name in programs"),
                ({"tokensPerMinute": None}, "", "and in owned how much may leave each account"),
            )
        ),
        ({"kinds": ["tx-v0"], "transactions": {"role": "payer"}}, ".transactions.role", "fee-payer"),
        (
            {"formats": [FORMAT, FORMAT | {"prefix": "4c32424b00", "position": {"offset": 8}}]},
            "",
            "begins with the other",
        ),
        (form(prefix="4C32424B"), ".formats[0].prefix", "hexadecimal"),
        (form(prefix="4c3242"), ".formats[0]", "like a transaction"),
        (form(prefix="4c324201"), ".formats[0]", "like a transaction"),
        (form(prefix="90324201"), ".formats[0]", "versions of transactions"),
        (form(prefix="ff68736d"), ".formats[0]", "hsmcore's own"),
        (form(prefix="ff736f6c616e61206f6666636861696e00", position={"offset": 20}), ".formats[0]", "off-chain"),
        (form(length=11), ".formats[0]", "within length"),
        (form(position={"offset": 3}), ".formats[0]", "behind prefix"),
        (form(position={"offset": 4, "bytes": 9}), ".formats[0].position.bytes", "whole number"),
        *(
            ({"domain": name}, ".domain", "ASCII")
            for name in ("", "a b", "a+b", "\xe4", "a\xa0b", "a\u200db", "a" * 65)
        ),
        ({"maxAhead": 0}, ".maxAhead", "whole number"),
        ({"maxAhead": 1, "keepPositions": 1023}, ".keepPositions", "whole number"),
        ({"keepPositions": 999_999}, "", "at least maxAhead (1000000)"),
        ({"kinds": ["tx-v0"], "keepPositions": 1_000_000}, "", "no kind with a position"),
        ({"unknown": 1}, "", "unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused(block, where, says):
    with pytest.raises(ConfigurationError) as caught:
        policy(**block)
    assert f"{WHERE}{where}" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "length"), [("4c32424b", 76), ("0000008f", 4132), ("00000020", 1060), ("ff4c3242", 4132)]
)
def test_every_payload_of_a_format_is_of_its_kind(prefix, length):
    """Whatever stands behind the prefix: a legacy message may begin with nearly anything."""
    block = policy(**form(prefix=prefix, length=length, position={"offset": length - 8}))
    [own] = block.formats
    start, at = bytes.fromhex(own.prefix), own.position
    gate = Gate(kinds=["block"], domain="default", formats=[("block", start, length, at.offset, at.bytes, True)])
    chance = random.Random(prefix)
    for _ in range(300):
        rest = bytes(chance.choice((0, 1, 2, 32, 128, 255, chance.randrange(256))) for _ in range(length - 12))
        look = gate.look(start + rest + (7).to_bytes(8))
        assert (look.kind, look.position, look.refusal) == ("block", 7, None)


def test_only_what_must_survive_needs_the_store():
    assert policy().needs_store
    assert not policy(kinds=["tx-v0"]).needs_store
    assert not policy(kinds=["tx-v0"], transactions={"maxFeeLamports": 5_000}).needs_store
    assert policy(callers={"a": {}}).callers["a"].kinds is None


@pytest.mark.parametrize(
    ("kinds", "level", "says"),
    [
        (["batch-root"], "ok", "the key signs batch-root, and nothing else"),
        (["raw"], "warn", "give the layer 2's own payloads a format"),
        (["raw", "batch-root"], "warn", "messages of batches need it not"),
    ],
)
def test_doctor_warns_of_raw_bytes_only_where_they_are_signed(tmp_path, kinds, level, says):
    manager = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "policy": {"kinds": kinds}}
    [step] = check_policy(hsmcore.load({"keyManager": manager | {"stateFile": str(tmp_path / "s.db")}}))
    assert step.outcome == level
    assert says in f"{step.found} {step.hint}"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({}, "no policy"),
        (
            {"policy": {"kinds": ["tx-v0"], "transactions": {"programs": {"System": ["Transfer"]}, "owned": {}}}},
            "policy.transactions.owned, which each host counts alone",
        ),
    ],
)
def test_what_rests_on_one_host_is_refused_where_each_host_signs(rules, says):
    store = {"store": {"url": "postgresql:///x"}, "name": "f"}
    softhsm = {"tokenLabel": "t", "keyLabel": "k", "pin": {"env": "P"}}
    whole = {"keyManager": {"type": "softhsm", "config": softhsm, "fleet": store, **rules}}
    hsmcore.load(whole)
    whole["keyManager"]["fleet"] = {**store, "unordered": "any"}
    with pytest.raises(ConfigurationError, match=says) as caught:
        hsmcore.load(whole)
    assert caught.value.path == "$.keyManager"
    assert "fleet.unordered" in str(caught.value)
