"""The demonstration of a fleet: its counts, and that each of them can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.nodes import needs_postgres

from hsmcore.errors import SystemFailure
from hsmcore.members.control.softhsm import SOFTHSM_PATHS
from hsmcore_bench.demo import postgres

pytest.importorskip("solders")
from nacl.signing import SigningKey
from solders.message import to_bytes_versioned
from solders.pubkey import Pubkey

from hsmcore_bench.demo.fleet import DEEDS, Chain
from hsmcore_bench.demo.fleet_member import TRANSFERS, block_of, transfer_of
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.report import fleet_text

pytestmark = pytest.mark.integration
PROGRAM = [sys.executable, "-c", "from hsmcore.cli import main; main()"]


@needs_postgres
@pytest.mark.slow("leases that end by themselves")
@pytest.mark.timeout(240)
@pytest.mark.skipif(not any(map(os.path.exists, SOFTHSM_PATHS)), reason="SoftHSM is not installed")
def test_the_holder_is_stopped_and_killed_and_nothing_comes_twice():
    done = subprocess.run([*PROGRAM, "demo", "--fleet", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    played = json.loads(done.stdout)
    assert played["ok"]
    assert (played["positionsWithTwoBlocks"], played["transactionsExecutedTwice"]) == (0, 0)
    assert (played["transactionsMissing"], played["badSignatures"], played["booksBalance"]) == (0, 0, True)
    assert len(played["takeovers"]) == len(played["takeoversOpening"]) == len(DEEDS)
    assert all(0 <= part < whole for whole, part in zip(played["takeovers"], played["takeoversOpening"], strict=True))
    late = [event["seconds"] for event in played["events"] if event["event"] == "was opening"]
    assert late == [part for part in played["takeoversOpening"] if part]
    assert min(played["blocksByHost"].values()) >= 10
    epochs = [event["epoch"] for event in played["events"] if event["event"] == "signs"]
    assert epochs == sorted(set(epochs))


def test_a_takeover_that_waited_for_a_host_to_open_says_so():
    counts = {"blocks": 1, "positionsWithTwoBlocks": 0, "transactionsExecuted": 1, "transactionsMissing": 0}
    more = {"transactionsExecutedTwice": 0, "ttlMs": 1000, "blocksRefusedToFormerHolder": 0, "booksBalance": True}
    took = {"takeovers": [1.2, 2.8], "takeoversOpening": [0.0, 1.75]}
    text = fleet_text({**counts, **more, **took, "blocksByHost": {"north": 1}, "transactionsRefusedByLedger": {}})
    assert "1.20 s, 2.80 s (1.75 s to open), with leases of 1.0 s" in text


def test_a_missing_postgresql_says_what_to_install(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(SystemFailure, match="not installed") as caught:
        postgres.find_programs()
    assert "apt-get install postgresql" in str(caught.value)


def line(chain: Chain, key: SigningKey, position: int, *, content: bytes = b"", first: int = 0) -> dict[str, Any]:
    """What a sequencer writes of a block."""
    payer, blockhash = Pubkey.from_bytes(bytes(key.verify_key)), chain.ledger.blockhash()
    messages = [to_bytes_versioned(transfer_of(first + n, payer, blockhash)) for n in range(TRANSFERS)]
    block = block_of(position, content)
    return {
        "host": "north",
        "position": position,
        "first": first,
        "block": block.hex(),
        "signature": key.sign(block).signature.hex(),
        "signatures": [key.sign(message).signature.hex() for message in messages],
    }


def test_a_second_block_and_a_second_transaction_are_counted():
    key = SigningKey.generate()
    chain = Chain(Ledger(history=1000))
    chain.fund(bytes(key.verify_key))
    blockhash = chain.ledger.blockhash()
    chain.add(line(chain, key, 0), blockhash)
    assert (chain.two_blocks, chain.bad, chain.books_balance()) == (0, 0, True)
    chain.add(line(chain, key, 0, content=b"another"), blockhash)
    assert chain.two_blocks == 1
    assert sum(chain.refused.values()) == TRANSFERS  # the ledger takes none of them again
    assert set(chain.done.values()) == {1}
    spoilt = line(chain, key, 1, first=TRANSFERS)
    chain.add(spoilt | {"signature": "00" * 64}, blockhash)
    assert chain.bad == 1
    chain.ledger.fund(chain.payer, 1)
    assert not chain.books_balance()
