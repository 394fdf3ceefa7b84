"""What messages are, and what a gate says of them. The 10 million messages beside solders: tests/fuzz/payloads.py."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.hash import Hash
from solders.instruction import AccountMeta, CompiledInstruction, Instruction
from solders.message import Message, MessageHeader, MessageV1, TransactionConfig, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.system_program import (
    TransferParams,
    transfer,
)
from tests.fuzz.payloads import compare
from tests.support.payloads import (
    MAKERS,
    OFF_CHAIN,
    OWN,
    a_message,
    compact,
    expected,
    mutated,
    off_chain_v0,
    off_chain_v1,
    ordered,
)

from hsmcore._native import Gate, Look, classify, leaks
from hsmcore.base.base58 import from_base58
from hsmcore.errors import BadArgument, InvalidMessageType
from hsmcore.failover.health import PROBE_PREFIX
from hsmcore.manager.rotation.backup.drill import DRILL_PREFIX
from hsmcore.manager.rotation.backup.envelope import PREFIX as BACKUP_PREFIX
from hsmcore.providers.kms.keys import PROOF

KINDS = ("tx-legacy", "tx-v0", "tx-v1", "off-chain", "block", "state-root", "digest32", "raw")
PAYER, TO, OTHER = (Pubkey(bytes([n]) * 32) for n in (1, 2, 3))
SYSTEM = Pubkey.default()
MOST = 2**64 - 1
TRANSFERS = [("System", "Transfer")]
EMPTY = bytes(37)  # a legacy transaction of no key and no instruction


def gate(**rules: object) -> Gate:
    given = {"kinds": KINDS, "domain": "default"} | rules
    return Gate(**given)  # type: ignore[arg-type]


def legacy(*instructions: Instruction, payer: Pubkey = PAYER) -> bytes:
    return bytes(Message.new_with_blockhash(instructions, payer, Hash.default()))


def pay(lamports: int = 5, to: Pubkey = TO) -> Instruction:
    return transfer(TransferParams(from_pubkey=PAYER, to_pubkey=to, lamports=lamports))


# ---- classes ---------------------------------------------------------------------------------------------------------

# In hexadecimal, with the signers and texts of Trezor's own fixtures for off-chain messages.
SIGNER = from_base58("14CCvQzQzHCVgZM3j9soPnXuJXh1RmCfwLVUcdfbZVBS")
CO_SIGNER = from_base58("7v91N7iZ9mNicL8WfG6cgSCKyRXydQjLh6UYBWwm6y1Q")
LONGER = b"This is a longer test message that should be chunked across multiple display screens on the device"
TREZOR = (
    "ff736f6c616e61206f6666636861696e010100d1699dcb1811b50bb0055f13044463128242e37a463b52f6c97a1f6eef88ad"
    "48656c6c6f2c205472657a6f7221"
)
# Of Ledger's library, and what `solana sign-offchain-message` signs: a layout that the specification has dropped.
LEDGER_COMPACT = "ff736f6c616e61206f6666636861696e00001c004c6f6e67204f66662d436861696e2054657374204d6573736167652e"
# The transfer that the tests of Ledger's library sign.
LEDGER_TRANSFER = (
    "010001035eb9862fe23e544a2a0969cc157cb31fd72901cc2824d536a67fb8ee911e02363b9ba3a2ebaf40c1cd672a80a8e1932b982cca82"
    f"64be33c39359701e113c3da2{'00' * 32}{'03' * 32}01020200010c020000002a00000000000000"
)


def v1(mask: int = 0, values: bytes = b"", keys: int = 1, rest: bytes = b"", count: int = 0) -> bytes:
    head = b"\x81\1\0\0" + mask.to_bytes(4, "little") + bytes(32) + bytes([count, keys])
    return head + b"".join(bytes([n]) * 32 for n in range(1, keys + 1)) + values + rest


EXAMPLES = {
    "empty": (b"", "raw"),
    "text": (b"hello", "raw"),
    "31 bytes": (bytes(31), "raw"),
    "digest": (bytes(32), "digest32"),
    "digest like a transaction": (b"\x80" + bytes(31), "digest32"),
    "digest after 0xff": (b"\xff" + bytes(31), "digest32"),
    "33 bytes": (bytes(33), "raw"),
    "no key": (EMPTY, "tx-legacy"),
    "cut": (EMPTY[:-1], "raw"),
    "one byte more": (EMPTY + b"\0", "unknown"),
    "0x7f": (b"\x7f" + EMPTY[1:], "tx-legacy"),
    "version 0": (b"\x80" + EMPTY + b"\0", "tx-v0"),
    "version 0 without tables": (b"\x80" + EMPTY, "unknown"),
    "version 0 in version 0": (b"\x80\x80" + EMPTY + b"\0", "unknown"),
    "version 1": (v1(), "tx-v1"),
    "version 1, cut": (v1()[:-1], "unknown"),
    "version 1, one byte more": (v1() + b"\0", "unknown"),
    "version 1, half a fee": (v1(1, bytes(4)), "unknown"),
    "version 1, the other half": (v1(2, bytes(4)), "unknown"),
    "version 1, fee": (v1(3, bytes(8)), "tx-v1"),
    "version 1, all settings": (v1(31, bytes(20)), "tx-v1"),
    "version 1, unknown setting": (v1(32, bytes(4)), "unknown"),
    "version 2": (b"\x82" + EMPTY, "unknown"),
    "version 126": (b"\xfe" + EMPTY, "unknown"),
    "version 127": (b"\xff" + EMPTY, "raw"),
    "0x80 alone": (b"\x80", "unknown"),
    "count not canonical": (b"\1\0\0\x80\0" + bytes(33), "raw"),
    "count above 65535": (b"\1\0\0\xff\xff\4" + bytes(40), "raw"),
    "ledger's transfer": (bytes.fromhex(LEDGER_TRANSFER), "tx-legacy"),
    "off-chain 0": (off_chain_v0(b"hello"), "off-chain"),
    "off-chain 0, no text": (off_chain_v0(b""), "unknown"),
    "off-chain 0, no signer": (off_chain_v0(b"hello", signers=0), "unknown"),
    "off-chain 0, 255 signers": (off_chain_v0(b"hello", 2, 255), "off-chain"),
    "off-chain 0, format 3": (off_chain_v0(b"hello", 3), "unknown"),
    "off-chain 0, newline": (off_chain_v0(b"a\n"), "unknown"),
    "off-chain 0, text": (off_chain_v0("ä".encode(), 1), "off-chain"),
    "off-chain 0, no text of UTF-8": (off_chain_v0(b"\xe4", 1), "unknown"),
    "off-chain 0, 1232 bytes": (off_chain_v0(b"a" * 1147), "off-chain"),
    "off-chain 0, 1233 bytes": (off_chain_v0(b"a" * 1148), "unknown"),
    "off-chain 0, 1233 bytes, long": (off_chain_v0(b"a" * 1148, 2), "off-chain"),
    "off-chain 0, 65535 bytes": (off_chain_v0(b"a" * 65450, 2), "off-chain"),
    "off-chain 0, 65536 bytes": (off_chain_v0(b"a" * 65451, 2), "unknown"),
    "off-chain 0, one byte more": (off_chain_v0(b"hello") + b"a", "unknown"),
    "off-chain 0, cut": (off_chain_v0(b"hello")[:-1], "unknown"),
    "off-chain, compact": (bytes.fromhex(LEDGER_COMPACT), "off-chain"),
    "off-chain, compact, 32 bytes": (OFF_CHAIN + b"\0\0\x0c\0Test Message", "off-chain"),
    "off-chain, compact, UTF-8": (OFF_CHAIN + b"\0\1\x23\0" + "Тестовое сообщение".encode(), "off-chain"),
    "off-chain, compact, 1232 bytes": (OFF_CHAIN + b"\0\0\xbc\4" + b"a" * 1212, "off-chain"),
    "off-chain, compact, 1233 bytes": (OFF_CHAIN + b"\0\0\xbd\4" + b"a" * 1213, "unknown"),
    "off-chain, compact, 1233 bytes, long": (OFF_CHAIN + b"\0\2\xbd\4" + b"a" * 1213, "off-chain"),
    "off-chain, compact, no text": (OFF_CHAIN + b"\0\0\0\0", "unknown"),
    "off-chain, compact, newline": (OFF_CHAIN + b"\0\0\1\0\n", "unknown"),
    "off-chain, compact, one byte more": (OFF_CHAIN + b"\0\0\1\0aa", "unknown"),
    "off-chain 0, two readings": (OFF_CHAIN + b"\0\1\x42\0" + b"a" * 29 + b"\0\1" + b"s" * 32 + b"\1\0t", "unknown"),
    "checkpoint": (b"log\n1\n" + b"A" * 44 + b"\n", "unknown"),
    "checkpoint, more": (b"a log+\n007\n" + b"=/" * 22 + b"\r\nmore", "unknown"),
    "no checkpoint: a name with a tab": (b"a\tb\n1\n" + b"A" * 44 + b"\n", "raw"),
    "no checkpoint: no number": (b"log\n1 \n" + b"A" * 44 + b"\n", "raw"),
    "no checkpoint: no root": (b"log\n1\n" + b"A" * 43 + b"\n", "raw"),
    "no checkpoint: no line": (b"log\n1\n" + b"A" * 44, "raw"),
    "cosignature": (b"cosignature/v1\ntime 1\n" + bytes(30), "unknown"),
    "root of a batch": (b"log/0\n1\n" + b"A" * 44 + b"\nhsmcore/batch-root/v1 0\ntime 1\n", "batch-root"),
    "off-chain 1 of Trezor": (bytes.fromhex(TREZOR), "off-chain"),
    "off-chain 1 of two": (off_chain_v1(LONGER, [SIGNER, CO_SIGNER]), "off-chain"),
    "off-chain 1, not in order": (off_chain_v1(LONGER, [CO_SIGNER, SIGNER]), "unknown"),
    "off-chain 1, twice": (off_chain_v1(LONGER, [SIGNER, SIGNER]), "unknown"),
    "off-chain 1, no signer": (off_chain_v1(LONGER, []), "unknown"),
    "off-chain 1, no text": (off_chain_v1(b"", [SIGNER]), "unknown"),
    "off-chain 1, surrogate": (off_chain_v1(b"\xed\xa0\x80", [SIGNER]), "unknown"),
    "off-chain 1, overlong": (off_chain_v1(b"\xc0\x80", [SIGNER]), "unknown"),
    "off-chain 2": (OFF_CHAIN + b"\2" + bytes(100), "unknown"),
    "off-chain prefix": (OFF_CHAIN, "unknown"),
    "block": (ordered("block", 7), "block"),
    "state root": (ordered("state-root", 7), "state-root"),
    "kind 3": (OWN + b"\3\1\1a" + bytes(40), "unknown"),
    "64 bytes of domain": (ordered("block", 7, "ä" * 32), "block"),
    "65 bytes of domain": (ordered("block", 7, "a" * 65), "unknown"),
    "no domain": (ordered("block", 7, ""), "unknown"),
    "no domain of UTF-8": (OWN + b"\1\1\1\xe4" + bytes(40), "unknown"),
    "kind 0": (OWN + b"\0\1\1a" + bytes(40), "unknown"),
    "kind 4": (OWN + b"\4\1\1a" + bytes(40), "unknown"),
    "version 2 of a block": (OWN + b"\1\2\1a" + bytes(40), "unknown"),
    "block, cut": (ordered("block", 7)[:-1], "unknown"),
    "block, one byte more": (ordered("block", 7) + b"\0", "unknown"),
    "hsmcore's prefix": (OWN, "unknown"),
    "hsmcore's prefix, 32 bytes": (OWN + bytes(24), "unknown"),
    "probe": (PROBE_PREFIX + bytes(16), "internal"),
    "drill": (DRILL_PREFIX + bytes(32), "internal"),
    "drill, 32 bytes": (DRILL_PREFIX + bytes(17), "internal"),
    "backup": (BACKUP_PREFIX + bytes(32), "internal"),
    "test of a key": (PROOF + bytes(32), "internal"),
    "less than a test of a key": (PROOF + bytes(31), "raw"),
    "doctor": (b"hsmcore doctor", "internal"),
}


@pytest.mark.parametrize(("message", "kind"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_each_class_has_its_examples(message, kind):
    assert classify(message) == kind == expected(message)[0]
    assert classify(bytearray(message)) == kind


@pytest.mark.parametrize("value", [None, "text", 7, ["a"]], ids=repr)
def test_what_is_no_message_is_refused(value):
    with pytest.raises(InvalidMessageType):
        classify(value)
    assert gate().passes(value, None) is False
    with pytest.raises(InvalidMessageType):
        gate().look(value)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 65535])
def test_a_length_has_one_spelling(value):
    """At each boundary of the compact form, as the length of an instruction's data."""
    start = b"\1\0\0\2" + bytes(64) + bytes(32) + b"\1\1\0"
    assert classify(start + compact(value) + bytes(value)) == "tx-legacy"
    assert classify(start + compact(value) + bytes(value + 1)) == "unknown"
    if value:
        assert classify(start + compact(value) + bytes(value - 1)) == "raw"
    longer = compact(value)
    longer = longer[:-1] + bytes([longer[-1] | 0x80, 0])
    assert classify(start + longer + bytes(value)) == "raw"


def test_every_class_is_as_solders_has_it():
    """The 100,000 messages of a seed; `make check-deep` has ten million."""
    begun = leaks()
    found, classes = compare(100_000, 1)
    assert found == []
    assert set(classes) == {*KINDS, "batch-root", "key-set", "internal", "unknown"}
    assert min(classes.values()) > 500
    assert leaks() == begun


def test_two_thousand_hostile_messages_do_no_harm():
    """Each is of a class and is let through or refused by every gate, with one answer."""
    chance = Random(2)
    gates = [
        gate(
            programs=[],
            instructions=[("System", "Transfer")],
            recipients=[],
            max_fee=5000,
            role=role,
            formats=[("block", b"\0", 40, 1, 8, False)],
        )
        for role in ("any", "fee-payer", "authority")
    ]
    for number in range(2000):
        if number % 4:
            message = a_message(chance)
            for _ in range(number % 7):
                message = mutated(chance, message)
        else:
            # Counts that promise more than there is, or all there may be.
            start = chance.choice((b"", b"\x80", b"\x81"))
            message = start + b"\xff" * chance.randrange(80) + b"\xff\xff\3" * chance.randrange(40) + bytes(number)
        for each in gates:
            look = each.look(message, signers=[message[4:36].ljust(32, b"\0")])
            assert look.kind in {*KINDS, "batch-root", "key-set", "internal", "unknown"}
            assert look.refusal is None or look.refusal
            assert not each.passes(message, None) or look.refusal is None


@given(st.binary(max_size=200))
def test_any_bytes_are_of_the_class_that_solders_says(message):
    kind, sound = expected(message)
    assert classify(message) == kind
    look = gate().look(message)
    assert look.kind == kind
    assert (look.refusal is None) == (kind in ("raw", "digest32", "off-chain") or sound or look.domain == "default")


@given(st.integers(0, 2**32), st.sampled_from(range(len(MAKERS))))
def test_a_gate_passes_what_it_would_not_refuse(seed, maker):
    message = MAKERS[maker](Random(seed))
    for each in (gate(), gate(max_fee=5000), gate(programs=[]), gate(kinds=("raw",))):
        look = each.look(message)
        plain = look.refusal is None and look.position is None
        assert each.passes(message, None) == plain
        assert each.passes(message, look.kind) == each.passes(message, None)
        assert not each.passes(message, "block")
    assert not gate(role="authority").passes(message, None)


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one byte more", "off-chain prefix", "kind 3", "probe", "doctor"])
def test_what_is_never_signed_for_a_caller(name):
    message, kind = EXAMPLES[name]
    look = gate().look(message)
    assert look.kind == kind
    assert kind in str(look.refusal)
    assert not gate().passes(message, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_not_listed_is_refused(kind):
    message = next(message for message, name in EXAMPLES.values() if name == kind and message not in (b"", EMPTY))
    others = gate(kinds=[name for name in KINDS if name != kind])
    assert others.look(message).refusal == f"kinds does not list {kind}"
    assert not others.passes(message, None)
    assert "kinds" not in str(gate(kinds=[kind, "prehashed"]).look(message).refusal)


def test_a_kind_that_the_caller_states_must_be_right():
    assert gate().look(b"hello", "raw").refusal is None
    assert gate().look(b"hello", "block").refusal == "it is raw, not block"
    assert gate().passes(b"hello", "raw")
    assert gate().passes(b"hello", b"raw".decode())  # another object
    assert not gate().passes(b"hello", "digest32")


def test_a_payload_of_another_domain_is_refused():
    look = gate(domain="main").look(ordered("block", 7, "te\nst"))
    assert look.refusal == "its domain is 'te\\nst', not 'main'"
    assert (look.domain, look.position) == ("te\nst", 7)
    assert gate(domain="main").look(ordered("block", 7, "main")).refusal is None
    assert gate(domain="mai").look(ordered("block", 7, "main")).refusal is not None


@pytest.mark.parametrize(("position", "good"), [(2**63 - 1, True), (2**63, False), (MOST, False)])
def test_a_position_fits_into_the_store(position, good):
    form = ("block", b"L2 block", 48, 8, 8, True)
    for message in (ordered("block", position), b"L2 block" + position.to_bytes(8) + bytes(32)):
        look = gate(formats=[form]).look(message)
        assert (look.position, look.refusal is None) == (position, good)
        assert not gate(formats=[form]).passes(message, None)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("big", [True, False])
def test_a_format_says_where_the_position_is(size, big):
    form = ("state-root", b"root", 32, 20, size, big)
    position = int.from_bytes(bytes(range(1, size + 1))) % 2**63
    message = b"root".ljust(20, b".") + position.to_bytes(size, "big" if big else "little")
    message = message.ljust(32, b"\xee")
    look = gate(formats=[form], domain="chain").look(message)
    assert look == Look("state-root", None, "chain", position)
    assert not gate(formats=[form]).passes(message, None)
    assert gate(formats=[form], kinds=("digest32",)).look(message).refusal == "kinds does not list state-root"
    for other in (message + b".", message[:-1], b"Root" + message[4:]):
        assert gate(formats=[form]).look(other).position is None
        assert gate(formats=[form]).passes(other, None)


def test_a_format_is_asked_only_of_what_no_other_class_claims():
    message = legacy(pay())
    look = gate(formats=[("block", message[:3], len(message), 3, 8, True)]).look(message)
    assert (look.kind, look.position) == ("tx-legacy", None)


@pytest.mark.parametrize(
    "form",
    [
        ("raw", b"a", 10, 1, 8, True),
        ("block", b"a", 10, 3, 8, True),
        ("block", b"a", 10, 1, 9, True),
        ("block", b"a", 10, 1, 0, True),
        ("block", b"a", 10, -1, 8, True),
        ("batch-root", b"a", 10, 1, 8, True),
    ],
    ids=repr,
)
def test_a_format_that_reads_outside_of_its_message_is_refused(form):
    with pytest.raises(BadArgument):
        gate(formats=[form])


@pytest.mark.parametrize(
    "rules",
    [
        {"kinds": ["internal"]},
        {"kinds": ["tx"]},
        {"role": "payer"},
        {"programs": [bytes(31)]},
        {"recipients": [b""]},
        {"instructions": [("System", "transfer")]},
        {"instructions": [("Memo", "any")]},
    ],
    ids=repr,
)
def test_a_gate_of_no_sense_is_refused(rules):
    with pytest.raises(BadArgument):
        gate(**rules)
    with pytest.raises(BadArgument):
        gate().look(b"hello", signers=[bytes(33)])


def compiled(header: tuple[int, int, int], keys: int, *instructions: tuple[int, bytes]) -> bytes:
    keys_of = [Pubkey(bytes([n + 1]) * 32) for n in range(keys)]
    parts = [CompiledInstruction(program, b"", accounts) for program, accounts in instructions]
    return bytes(Message.new_with_compiled_instructions(*header, keys_of, Hash.default(), parts))


@pytest.mark.parametrize(
    ("message", "good"),
    [
        (compiled((1, 0, 0), 1), True),
        (compiled((1, 0, 1), 2, (1, b"\0\1")), True),
        (EMPTY, False),
        (compiled((0, 0, 0), 1), False),
        (compiled((1, 1, 0), 2), False),
        (compiled((2, 1, 1), 2), False),
        (compiled((1, 0, 0), 2, (0, b"")), False),
        (compiled((1, 0, 0), 2, (2, b"")), False),
        (compiled((1, 0, 0), 2, (1, b"\2")), False),
        (v1(16, (32 * 1024).to_bytes(4, "little")), True),
        (v1(16, (256 * 1024).to_bytes(4, "little")), True),
        (v1(16, (31 * 1024).to_bytes(4, "little")), False),
        (v1(16, (257 * 1024).to_bytes(4, "little")), False),
        (v1(16, (32 * 1024 + 1).to_bytes(4, "little")), False),
        (v1(keys=64), True),
        (v1(keys=65), False),
        (v1(keys=2, count=64, rest=b"\1\0\0\0" * 64), True),
        (v1(keys=2, count=65, rest=b"\1\0\0\0" * 65), False),
        (v1(keys=2).replace(b"\2" * 32, b"\1" * 32), False),
    ],
)
def test_a_transaction_that_the_chain_rejects_is_refused(message, good):
    look = gate().look(message)
    assert look.kind == expected(message)[0]
    assert (look.refusal is None) == good == expected(message)[1] == gate().passes(message, None)
    assert good or "the chain rejects" in str(look.refusal)


@given(st.integers(0, 30), st.randoms(use_true_random=False))
def test_a_program_is_found_in_a_list_of_any_order(count, chance):
    listed = [chance.randbytes(32) for _ in range(count)] + [bytes(OTHER)]
    chance.shuffle(listed)
    message = legacy(Instruction(OTHER, b"", []))
    assert gate(programs=listed).passes(message, None)
    assert not gate(programs=[key for key in listed if key != bytes(OTHER)]).passes(message, None)


def test_the_fee_payer_pays_and_does_nothing_else():
    payer = gate(role="fee-payer")
    signers = [bytes(OTHER), bytes(PAYER)]
    aside = legacy(Instruction(SYSTEM, b"x", [AccountMeta(TO, True, True)]))
    assert payer.look(aside, signers=signers).refusal is None
    assert payer.look(legacy(pay()), signers=signers).refusal == "an instruction names the key that pays the fee"
    assert payer.look(aside, signers=[bytes(TO)]).refusal == "the key does not pay the fee"
    assert payer.look(aside).refusal == "the key does not pay the fee"
    assert not payer.passes(aside, None)
    # Listed twice, and named by the other index: the runtime refuses it, and so does the gate.
    twice = bytearray(compiled((1, 0, 1), 3, (2, b"\1")))
    twice[4 + 32 : 4 + 64] = twice[4 : 4 + 32]
    assert "names" in str(payer.look(twice, signers=[bytes(PAYER)]).refusal)


def test_the_authority_is_one_of_the_signers():
    authority = gate(role="authority")
    message = legacy(Instruction(SYSTEM, b"x", [AccountMeta(TO, True, True), AccountMeta(OTHER, False, True)]))
    assert authority.look(message, signers=[bytes(TO)]).refusal is None
    assert authority.look(message, signers=[bytes(PAYER)]).refusal is None
    assert authority.look(message, signers=[bytes(OTHER)]).refusal == "the key is none of the required signers"
    assert authority.look(message).refusal == "the key is none of the required signers"
    assert not authority.passes(message, None)


def test_version_1_is_judged_like_the_others():
    instruction = CompiledInstruction(2, b"\2\0\0\0" + (9).to_bytes(8, "little"), b"\0\1")
    built = MessageV1(
        MessageHeader(1, 0, 1), TransactionConfig(), Hash.default(), [PAYER, TO, SYSTEM], [instruction] * 2
    )
    message = to_bytes_versioned(built)
    assert gate(max_fee=5000).look(message) == Look("tx-v1", None, None, None)
    assert gate(programs=[], instructions=TRANSFERS, recipients=[bytes(TO)]).passes(message, None)
    assert not gate(programs=[bytes(TO)]).passes(message, None)


def test_the_rules_are_asked_in_their_order():
    message = legacy(pay(), Instruction(OTHER, b"", []))
    strict = {"programs": [], "instructions": TRANSFERS, "role": "authority", "kinds": ["tx-legacy"]}
    free = strict | {"programs": None}
    asked = [
        (gate(**strict).look(message + b"\0", "raw"), "unknown"),
        (gate(**strict).look(message, "raw"), "not raw"),
        (gate(**strict | {"kinds": ["raw"]}).look(message), "kinds"),
        (gate(**strict).look(message), "programs"),
        (gate(**free | {"recipients": [], "max_fee": 1}).look(message), "recipients"),
        (gate(**free | {"max_fee": 1}).look(message), "maxFeeLamports"),
        (gate(**free).look(message), "signers"),
        (gate(kinds=["raw"], domain="a").look(ordered("block", MOST)), "kinds"),
        (gate(domain="a").look(ordered("block", MOST)), "domain"),
        (gate(domain="default").look(ordered("block", MOST)), "position"),
    ]
    assert [text in str(look.refusal) for look, text in asked] == [True] * len(asked)
