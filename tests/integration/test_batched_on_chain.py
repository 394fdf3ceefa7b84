"""A batched message on a chain: a program that has nothing but the transaction takes what a binary proof shows.

tests/support/sbf/batched.c is the program; LiteSVM runs it, and the chain's Ed25519 program beside it.
"""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import Message
from solders.pubkey import Pubkey
from solders.transaction import Transaction
from solders.transaction_metadata import FailedTransactionMetadata
from tests.support import batches
from tests.support.batches import KEY, OTHER_KEY, PUBLIC, changed_bytes
from tests.support.sbf import CLANG, program

from hsmcore import proof_to_bytes
from hsmcore.tlog.proof import parts_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which(CLANG) is None, reason="needs clang, which makes code for Solana's machine"),
]
SYSVAR = Pubkey.from_string("Sysvar1nstructions1111111111111111111111111")
ED25519 = Pubkey.from_string("Ed25519SigVerify111111111111111111111111111")
ADDRESS, WILLING = Pubkey(b"\7" * 32), Pubkey(b"\x08" * 32)
"""Of the program, and of one that takes anything."""
MOST = 1232
"""Bytes of a transaction."""


@cache
def code() -> bytes:
    constants = {"SYSVAR": bytes(SYSVAR), "ED25519": bytes(ED25519), "KEY": PUBLIC, "DOMAIN": '"default/"'}
    return program(Path(__file__).parents[1] / "support" / "sbf" / "batched.c", constants)


@cache
def willing() -> bytes:
    with TemporaryDirectory() as folder:
        (Path(folder) / "willing.c").write_text(DOES_NOTHING)
        return program(Path(folder) / "willing.c", {})


DOES_NOTHING = """
extern void sol_log_compute_units_(void);
unsigned long entrypoint(void);
unsigned long entrypoint(void) { sol_log_compute_units_(); return 0; }
"""


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


class Chain:
    """One with the program."""

    def __init__(self) -> None:
        self.svm, self.payer = LiteSVM(), Keypair.from_seed(b"\5" * 32)
        self.svm.airdrop(self.payer.pubkey(), 10**12)
        self.svm.add_program(ADDRESS, code())
        self.svm.add_program(WILLING, willing())

    def transaction(self, *instructions: Instruction) -> Transaction:
        now = self.svm.latest_blockhash()
        return Transaction([self.payer], Message.new_with_blockhash(instructions, self.payer.pubkey(), now), now)

    def refused(self, *instructions: Instruction) -> str:
        """Why, and by its number if the program says so; "": it is not."""
        self.svm.expire_blockhash()
        done = self.svm.send_transaction(self.transaction(*instructions))
        if isinstance(done, FailedTransactionMetadata):
            number = re.search(r"Custom\((\d+)\)", str(done.err()))
            return number[1] if number else str(done.err())
        self.units = done.compute_units_consumed()
        return ""


def verify(
    text: bytes,
    key: bytes = PUBLIC,
    signature: tuple[int, int] = (3, 1),
    behind: bytes = b"",
    key_at: tuple[int, int] = (16, 0xFFFF),
    text_at: tuple[int, int] = (48, 0xFFFF),
    by: Pubkey = ED25519,
) -> Instruction:
    """Of the Ed25519 program. `signature`, `key_at`, `text_at`: where it is, and in which instruction."""
    head = numbers(1, *signature, *key_at, text_at[0], len(text), text_at[1])
    return Instruction(by, head + key + text + behind, [])


def sysvar_of(*instructions: Instruction) -> bytes:
    """What the instructions sysvar says of these, as of the second one."""
    data, bodies = numbers(len(instructions)), b""
    begin = 2 + 2 * len(instructions)
    for one in instructions:
        data += numbers(begin + len(bodies))
        accounts = b"".join(b"\0" + bytes(account.pubkey) for account in one.accounts)
        bodies += numbers(len(one.accounts)) + accounts + bytes(one.program_id) + numbers(len(one.data)) + one.data
    return data + bodies + numbers(1)


def take(data: bytes, message: bytes, sysvar: Pubkey = SYSVAR) -> Instruction:
    return Instruction(ADDRESS, numbers(len(data)) + data + message, [AccountMeta(sysvar, False, False)])


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 10_000, 65_536])
@pytest.mark.parametrize("blind", [False, True])
def test_proof_message_and_signature_fit_into_one_transaction(count, blind):
    chain, messages = Chain(), [b"message %d" % number for number in range(count)]
    made = batches.of(messages, first=10**12, epoch=7, blind=blind)
    for number in sorted({0, count // 2, count - 1}):
        text, data = parts_of(made[number].proof).text, proof_to_bytes(made[number].proof)
        both = verify(text), take(data, messages[number])
        assert len(bytes(chain.transaction(*both))) - len(messages[number]) + 190 <= MOST, "a message has room"
        assert chain.refused(*both) == ""
        assert chain.units < 30_000
        assert chain.refused(verify(text), take(data, messages[number] + b"!")) == "19"


def test_the_text_of_a_proof_has_no_room_in_a_transaction():
    made = batches.of([b"message %d" % number for number in range(65_536)], first=10**12, epoch=7)
    text, proof = parts_of(made[0].proof).text, made[0].proof
    size = len(bytes(Chain().transaction(verify(text), take(proof, b""))))
    assert size > MOST


def test_what_is_not_shown_is_refused():
    chain, messages = Chain(), [b"message %d" % number for number in range(13)]
    [one, other, foreign, blind] = (
        batches.of(messages, first=500, **more)[3] for more in ({}, {"epoch": 1}, {"key": OTHER_KEY}, {"blind": True})
    )
    text, data = parts_of(one.proof).text, proof_to_bytes(one.proof)
    assert chain.refused(verify(text), take(data, messages[3])) == ""
    their_text, theirs = parts_of(foreign.proof).text, proof_to_bytes(foreign.proof)
    their_key = bytes(OTHER_KEY.verify_key)
    assert chain.refused(verify(their_text, their_key), take(theirs, messages[3])) == "9"
    own = KEY.sign(b"another text").signature
    wrong = {
        "no signature was verified": (take(data, messages[3]),),
        "two of the program": (take(data, messages[3]),) * 2,
        "of another text": (verify(parts_of(other.proof).text), take(data, messages[3])),
        "of a text that the key did not sign": (verify(text.replace(b"time", b"tine")), take(data, messages[3])),
        "of its own text": (verify(b"another text", signature=(60, 0), behind=own), take(data, messages[3])),
        "another account": (verify(text), take(data, messages[3], Pubkey(b"\6" * 32))),
        "no account": (verify(text), Instruction(ADDRESS, numbers(len(data)) + data + messages[3], [])),
        "a proof that is longer than what there is": (verify(text), take(data + bytes(9), b"")),
        "nothing": (verify(text), Instruction(ADDRESS, b"", [AccountMeta(SYSVAR, False, False)])),
        "blinded, by another one's signature": (verify(text), take(proof_to_bytes(blind.proof), messages[3])),
    }
    assert [what for what, instructions in wrong.items() if not chain.refused(*instructions)] == []
    forms = {
        "13": data[:66] + b"\x8d\x00" + data[67:],
        "14": data[:66] + b"\x03" + data[67:],
        "15": bytes([data[0] ^ 0x30]) + data[1:90],
        "16": data[:-1],
        "17": data[:-32],
        "18": data[:65] + b"\x80\x01" + data[66:],
    }
    assert {number: chain.refused(verify(text), take(one, messages[3])) for number, one in forms.items()} == {
        number: number for number in forms
    }
    moved = verify(text, signature=(0, 2)), take(data[:1] + bytes(64) + data[65:], messages[3])
    assert chain.refused(*moved, Instruction(WILLING, data[1:65], [])) == "6", "each byte of the proof counts"


def test_a_thief_s_text_is_not_taken_for_one_of_the_key():
    """By what looks like an answer of the Ed25519 program, and is none."""
    chain, thief = Chain(), bytes(OTHER_KEY.verify_key)
    account = Pubkey(b"\x0a" * 32)
    anything = KEY.sign(b"x" * 106)  # as long as the text of a checkpoint is here
    mine = b"message " + thief + anything.message
    [one] = batches.of([mine], key=OTHER_KEY)
    text, data = parts_of(one.proof).text, proof_to_bytes(one.proof)
    assert len(text) == len(anything.message)
    chain.svm.set_account(account, Account(10**9, sysvar_of(verify(text), take(data, mine)), WILLING))
    behind = 2 + len(data) + len("message ")  # where another key stands, and another text behind it
    attempts = {
        "2": (verify(text, thief), take(data, mine, account)),
        "4": (verify(text, by=WILLING), take(data, mine)),
        "7": (verify(text, key_at=(behind, 1)), take(data, mine)),
        "8": (
            verify(text, text_at=(behind + len(thief), 1)),
            take(data[:1] + anything.signature + data[65:], mine),
        ),
        "9": (verify(text, thief), take(data, mine)),
    }
    assert {number: chain.refused(*instructions) for number, instructions in attempts.items()} == {
        number: number for number in attempts
    }


def test_bytes_that_were_changed_show_nothing():
    """As with the other verifiers. The text is the one that was signed, so that nothing but the program can refuse."""
    chain, messages = Chain(), [b"message %d" % number for number in range(13)]
    for data, message in changed_bytes(Random(61), 300):
        place = messages.index(message)
        good = [batches.of(messages, first=first)[place].proof for first in (0, 500, 10**15)]
        for text in {parts_of(proof).text for proof in good}:
            assert chain.refused(verify(text), take(data, message)) != ""
