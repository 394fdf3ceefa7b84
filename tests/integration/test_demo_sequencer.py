"""The example sequencer: it counts honestly, and LiteSVM refuses wrong transactions."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.support import zygote
from tests.support.size import share
from tests.support.terminal import OWN_PROCESS

from hsmcore.errors import MemberDown
from hsmcore.members.control.softhsm import SOFTHSM_PATHS
from hsmcore_bench.harness.locate import RAW_SIGN, native

pytest.importorskip("solders")
from solders.litesvm import LiteSVM
from solders.message import to_bytes_versioned
from solders.pubkey import Pubkey

from hsmcore_bench.demo import rawloop, runner
from hsmcore_bench.demo.builder import TransferBuilder
from hsmcore_bench.demo.failover import Act, line_of
from hsmcore_bench.demo.ledger import Ledger, LedgerError
from hsmcore_bench.demo.rawloop import RawLoop, RawLoopError
from hsmcore_bench.demo.report import failover_text, percentile, summary, text
from hsmcore_bench.demo.runner import Outcome, Sequencer, _sizes
from hsmcore_bench.demo.signing import sign_all

pytestmark = pytest.mark.integration
needs_softhsm = pytest.mark.skipif(not any(map(os.path.exists, SOFTHSM_PATHS)), reason="SoftHSM is not installed")
ONE_ACT = ("--no-failover", "--no-rotation")


class SoftwareSigner:
    """Stands where the key manager does, and spoils every so-manieth signature."""

    def __init__(self, *, spoil_every: int = 0, fail_every: int = 0) -> None:
        self.key = SigningKey.generate()
        self.signed = self.in_flight = self.most_in_flight = 0
        self._spoil_every, self._fail_every = spoil_every, fail_every

    async def sign(self, message: bytes, timeout: float | None = None) -> bytes:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        self.signed += 1
        if self._fail_every and self.signed % self._fail_every == 0:
            raise MemberDown("the token does not answer")
        signature = self.key.sign(message).signature
        if self._spoil_every and self.signed % self._spoil_every == 0:
            return signature[:-1] + bytes([signature[-1] ^ 0x80])
        return signature


def sequence(signer: SoftwareSigner, transactions: int, ledger: Ledger | None = None) -> Outcome:
    builder = TransferBuilder(Pubkey.from_bytes(bytes(signer.key.verify_key)))
    heard = []
    sequencer = Sequencer(signer, builder, ledger or Ledger(transactions + 2), None, 64)
    outcome = asyncio.run(sequencer.run(transactions, heard.append))
    assert sum(heard) == transactions - sum(outcome.failed.values())
    return outcome


def result_of(outcome: Outcome) -> dict:
    return summary(outcome, account="a", member="m", sessions=2, in_flight=64)


# ---- the whole of it ----


@needs_softhsm
@pytest.mark.slow("the whole demonstration")
def test_the_demonstration_on_a_token(tmp_path):
    command = [*OWN_PROCESS, "demo", "--state", tmp_path / "state", "--transactions", str(share(2000))]
    done = subprocess.run([*command, "--json"], capture_output=True, check=False, timeout=250)
    print(done.stdout.decode(), done.stderr.decode())  # noqa: T201
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert (result["built"], result["executed"], result["lost"]) == (share(2000), share(2000), 0)
    assert (result["refused"], result["failed"], result["booksBalance"]) == ({}, {}, True)
    assert result["tampered"] == {"refusedAs": "SignatureFailure", "intactAccepted": True}
    assert 0 < result["latencyMs"]["p50"] <= result["latencyMs"]["p99"] <= result["latencyMs"]["p999"]
    assert result["signingRate"] > 0
    played = result["failover"]
    assert (played["ok"], played["lost"], played["refused"], played["failed"]) == (True, 0, {}, {})
    assert played["built"] == played["executed"] == sum(played["signedBy"].values()) > 1000
    assert [event["event"] for event in played["events"]] == ["pulled", "failover", "put-back", "failback"]
    played = result["rotation"]
    assert (played["ok"], played["lost"], played["refused"], played["failed"]) == (True, 0, {}, {})
    assert played["built"] == played["executed"] == sum(played["signedBy"].values()) > 500
    assert played["oldKeyRefusedAs"].startswith("InstructionError")
    if native(RAW_SIGN) is not None:
        assert result["rawRate"] > 0
        assert result["ratioToRaw"] > 0
    # Again, for a person, with the token that is there now.
    done = subprocess.run([*command[:-1], "300", *ONE_ACT], capture_output=True, check=True, timeout=100)
    printed = done.stdout.decode()
    assert "300 executed, 0 refused, 0 failed, 0 lost" in printed
    assert "refused by the ledger (SignatureFailure)" in printed
    assert b"made a SoftHSM token" not in done.stderr


@needs_softhsm
def test_a_key_that_is_no_solana_account(tmp_path):
    state = ("--state", tmp_path / "state")
    assert zygote.run(zygote.CLI, "init", *state, "--algorithm", "ecdsa-p256").returncode == 0
    done = zygote.run(zygote.CLI, "demo", *state, "--json", *ONE_ACT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert json.loads(done.stderr.splitlines()[-1])["error"]["type"] == "AlgorithmUnsupported"


# ---- the second act ----


def act(*events: tuple[float, str], signed_by: tuple[str, ...] = ("a", "b")) -> Act:
    played = Act(Outcome(built=20, executed=20, books_balance=True), signed_by=Counter(signed_by))
    played.events = [{"atSeconds": at, "event": what, "member": "m", "from": "x", "to": "y"} for at, what in events]
    return played


WHOLE = ((1.0, "pulled"), (1.25, "failover"), (3.0, "put-back"), (4.5, "failback"))


def test_a_failover_act_is_good_only_with_failover_failback_and_no_loss():
    assert act(*WHOLE).as_dict()["ok"]
    assert not act(*WHOLE[:3]).as_dict()["ok"]
    assert not act(*WHOLE, signed_by=("a",)).as_dict()["ok"]
    for fault in ({"executed": 19}, {"executed": 19, "refused": {"X": 1}}, {"books_balance": False}):
        played = act(*WHOLE)
        for name, value in fault.items():
            setattr(played.outcome, name, value)
        assert not played.as_dict()["ok"]


def test_the_failover_act_as_text():
    played = act(*WHOLE)
    played.signed_at = [0.5, 0.1, 0.3]
    printed = failover_text(played.as_dict())
    for line in ("20 executed", "200.0 ms without", "failover after  0.250 s", "failback after  1.500 s"):
        assert line in printed
    assert "IT DID NOT COME" in failover_text(act(*WHOLE[:3]).as_dict())
    assert "failover: x → y, m signs" in line_of(played.events[1])


# ---- counting ----


def test_all_transactions_are_executed(monkeypatch):
    monkeypatch.setattr(runner, "BLOCK", 100)
    signer = SoftwareSigner()
    outcome = sequence(signer, 350)
    assert outcome.good
    assert (outcome.built, outcome.executed, outcome.lost) == (350, 350, 0)
    assert len(outcome.latencies_ns) == 350
    assert signer.most_in_flight == 64
    assert result_of(outcome)["ok"]


def test_a_wrong_signature_is_refused_and_counted():
    outcome = sequence(SoftwareSigner(spoil_every=10), 200)
    assert not outcome.good
    assert (outcome.executed, outcome.lost) == (180, 0)
    assert outcome.refused == {"SignatureFailure": 20}
    assert outcome.books_balance
    printed = text(result_of(outcome))
    assert "180 executed, 20 refused, 0 failed, 0 lost" in printed
    assert "20 x SignatureFailure" in printed


def test_a_failed_signature_is_counted_and_the_others_go_on():
    outcome = sequence(SoftwareSigner(fail_every=10), 200)
    assert not outcome.good
    assert (outcome.executed, outcome.failed, outcome.lost) == (180, {"MemberDown": 20}, 0)
    assert len(outcome.latencies_ns) == 180
    assert "20 x MemberDown" in text(result_of(outcome))


def test_a_lost_transaction_shows():
    outcome = sequence(SoftwareSigner(), 50)
    outcome.executed -= 1
    assert outcome.lost == 1
    assert not outcome.good


def test_a_ledger_that_does_not_verify_fails_the_demonstration():
    class Blind(Ledger):
        def __init__(self) -> None:
            super().__init__(history=100)
            self._svm.with_sigverify(False)

    outcome = sequence(SoftwareSigner(), 50, Blind())
    assert outcome.executed == 50
    assert outcome.tampered is None
    assert not outcome.good
    assert "NOT REFUSED" in text(result_of(outcome))


def test_balances_that_do_not_match_are_reported():
    class Embezzled(Ledger):
        def balance(self, account: Pubkey) -> int:
            return super().balance(account) - 1

    outcome = sequence(SoftwareSigner(), 50, Embezzled(history=100))
    assert outcome.executed == 50
    assert not outcome.good
    assert "DO NOT BALANCE" in text(result_of(outcome))


def test_a_run_without_signatures_is_not_good():
    outcome = sequence(SoftwareSigner(fail_every=1), 5)
    assert (outcome.executed, outcome.failed) == (0, {"MemberDown": 5})
    assert not result_of(outcome)["ok"]
    assert "not measured" in text(result_of(outcome))


def test_another_exception_than_ours_ends_the_phase():
    class Broken(SoftwareSigner):
        async def sign(self, message: bytes, timeout: float | None = None) -> bytes:
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        asyncio.run(sign_all(Broken(), [b"a"] * 3, 2))


# ---- builder and ledger ----


def test_no_two_transactions_are_the_same():
    builder = TransferBuilder(Pubkey.new_unique())
    blockhash = Ledger(0).blockhash()
    transfers = [builder.build(blockhash) for _ in range(500)]
    assert len({transfer.payload for transfer in transfers}) == 500
    assert len({len(transfer.payload) for transfer in transfers}) == 1  # the raw loop signs as many bytes
    assert transfers[0].payload[0] == 0x80
    assert transfers[0].payload == to_bytes_versioned(transfers[0].message)


def test_the_ledger_refuses_what_it_has_seen_and_what_is_stale():
    signer = SoftwareSigner()
    builder, ledger = TransferBuilder(Pubkey.from_bytes(bytes(signer.key.verify_key))), Ledger(history=10)
    ledger.fund(builder.payer, 10**10)
    first, second = (builder.build(ledger.blockhash()) for _ in range(2))
    signed = [transfer.attach(signer.key.sign(transfer.payload).signature) for transfer in (first, second)]
    assert ledger.execute(signed[0]) is None
    assert ledger.balance(first.recipient) == first.lamports
    assert ledger.execute(signed[0]) == "AlreadyProcessed"
    ledger.next_block()
    assert ledger.execute(signed[1]) == "BlockhashNotFound"


def test_a_signature_over_the_message_without_its_version_is_refused():
    signer = SoftwareSigner()
    builder, ledger = TransferBuilder(Pubkey.from_bytes(bytes(signer.key.verify_key))), Ledger(history=10)
    ledger.fund(builder.payer, 10**10)
    transfer = builder.build(ledger.blockhash())
    signature = signer.key.sign(bytes(transfer.message)).signature
    assert ledger.execute(transfer.attach(signature)) == "SignatureFailure"


def test_a_ledger_that_cannot_be_created(monkeypatch):
    with pytest.raises(LedgerError, match="funding"):
        Ledger(0).fund(Pubkey.new_unique(), 2**63)
    monkeypatch.setattr(LiteSVM, "get_sigverify", lambda _self: False)
    with pytest.raises(LedgerError, match="does not verify"):
        Ledger(0)


# ---- numbers ----


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0),
        ([7], 0.999, 7),
        ([1, 2], 0.5, 1),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 1001)), 0.999, 999),
    ],
)
def test_percentiles_are_nearest_rank(values, share, expected):
    assert percentile(values, share) == expected


@pytest.mark.parametrize("transactions", [1, 1999, 2000, 2001, 3999, 20_000, 20_007])
def test_blocks_are_of_one_size_and_none_is_left_over(transactions):
    sizes = _sizes(transactions)
    assert sum(sizes) == transactions
    assert max(sizes) - min(sizes) <= 1


# ---- the raw loop ----


def program(tmp_path: Path, monkeypatch, script: str) -> None:
    path = tmp_path / "rawsign"
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(rawloop, "native", lambda _name: path)


READY = "print('{\"ready\": true}', flush=True)"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("sys.exit('hsmcore-rawsign: C_Login: CKR 0xA0')", "C_Login: CKR 0xA0"),
        (f"{READY}\nsys.stdin.readline(); sys.exit(1)", "ended without a word"),
        ("sys.stdin.readline()", "did not answer within 0 s"),
    ],
)
def test_a_raw_loop_that_breaks(tmp_path, monkeypatch, script, says):
    program(tmp_path, monkeypatch, script)
    if "did not answer" in says:
        monkeypatch.setattr(rawloop, "_START_SECONDS", 0.3)

    async def run():
        loop = RawLoop([], bytearray(b"1234"))
        try:
            await loop.start()
            await loop.rate(0.1)
        finally:
            await loop.stop()
            await loop.stop()

    with pytest.raises(RawLoopError, match=says):
        asyncio.run(run())


def test_a_raw_loop_is_measured_in_turn(tmp_path, monkeypatch):
    program(
        tmp_path,
        monkeypatch,
        f'{READY}\nfor line in sys.stdin: print(\'{{"signatures": 500, "seconds": 0.5}}\', flush=True)',
    )
    monkeypatch.setattr(runner, "BLOCK", 50)
    signer, pin = SoftwareSigner(), bytearray(b"1234")

    async def run():
        raw = RawLoop([], pin)
        assert await raw.start()
        assert pin == bytearray(4)
        builder = TransferBuilder(Pubkey.from_bytes(bytes(signer.key.verify_key)))
        try:
            return await Sequencer(signer, builder, Ledger(202), raw, 8).run(200, lambda _count: None)
        finally:
            await raw.stop()

    outcome = asyncio.run(run())
    assert outcome.good
    assert outcome.raw_rates == [1000.0] * 4
    assert len(outcome.ratios) == 4
    assert "1,000/s in turn" in text(result_of(outcome))


def test_without_the_raw_loop(monkeypatch):
    monkeypatch.setattr(rawloop, "native", lambda _name: None)
    with pytest.raises(RawLoopError, match="was not built"):
        asyncio.run(RawLoop([], bytearray()).start())
