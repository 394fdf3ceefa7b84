"""The runbook for a stolen key is played: a thief has a copy; what verifiers take of it is seen after each step."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
from nacl.signing import SigningKey
from tests.support.gateways import gateway
from tests.support.key_sets import Case, by_hsmcore, by_node, by_python
from tests.support.levels import SAME
from tests.support.loops import one_loop
from tests.support.managers import becomes
from tests.support.runbooks import Operator, blocks
from tests.support.softhsm import RFC8032_SEED

from hsmcore.errors import HsmError
from hsmcore.gateway import Client
from hsmcore.tlog.key_set import KeyEntry, KeySet, signer, text_of
from hsmcore.tlog.note import signature_line

pytestmark = [pytest.mark.integration, pytest.mark.slow("each step of the runbook is a command of its own")]
TITLE = "A signing key may be stolen"
THIEF = SigningKey(bytes.fromhex(RFC8032_SEED))
M = b"what the thief wants"


def forged(kept):
    """A set of the thief's: his next key is the current one."""
    own = SigningKey(bytes(32))
    now = int(time.time())
    keys = [
        *(replace(key, state="retired", not_after=now) for key in kept.keys if key.state == "current"),
        KeyEntry(9, "ed25519", bytes(own.verify_key), "current", now, None, None),
    ]
    text = text_of(kept.domain, kept.serial + 9, now, kept.kinds, keys)
    signed = [(bytes(one.verify_key), one.sign(text).signature) for one in (own, THIEF)]
    return text + b"\n" + b"".join(signature_line(signer(kept.domain, key), signature) for key, signature in signed)


@one_loop
async def test_a_signing_key_may_be_stolen(fresh_token, terminal, tmp_path):
    token, log, notes = fresh_token(SAME), tmp_path / "audit.log", tmp_path / "notes"
    config = token.config(
        maxCacheSize=0,
        requestTimeoutMs=5000,
        auditLogFile=str(log),
        stateFile=str(tmp_path / "state.db"),
        policy={"kinds": ["raw", "key-set"], "domain": "my-rollup"},
        keyRotation={"intervalDays": 30, "overlapDays": 2},
    )
    stolen, signature = bytes(THIEF.verify_key), THIEF.sign(M).signature
    async with gateway(tmp_path, config) as served:
        file = tmp_path / "gateway.json"
        operator = Operator(
            terminal, file, AUDIT_LOG=str(log), NOTES=str(notes), OLD=token.keys["ed25519"].id,
            GATEWAY=str(served._process.pid),
        )  # fmt: skip
        look, clients, rotate, end, sets, evidence = blocks(TITLE)
        async with Client(served.addresses[0]) as km:
            assert km.public_key == stolen
            honest = await km.sign(b"before")

            async def has_set():
                await operator.run([f"hsmcore keys set --output {notes}"])
                return notes.read_bytes()

            await becomes(lambda: _works(has_set))
            kept = KeySet.trust(notes.read_bytes(), stolen, "my-rollup")
            first, own = kept.note, forged(kept)  # what the haste is for: it is followed

            await operator.run(look)
            one = json.loads(file.read_text())
            one["gateway"]["clients"] = {"another": {"uid": [os.getuid() + 1], "keys": ["default"]}}
            file.write_text(json.dumps(one))
            await operator.run(clients)

            async def is_refused():
                try:
                    await km.sign(b"for the thief", timeout=1)
                except HsmError as error:
                    return "no client of the gateway" in str(error)
                return False  # the signal is on its way

            await becomes(is_refused)

        await operator.run(rotate)
        await operator.run([f"hsmcore keys set --since {kept.serial} --output {notes}"])
        kept = kept.follow(notes.read_bytes())
        assert kept.current.public_key != stolen
        assert kept.entry(stolen).state == "overlap"
        assert kept.verify(M, signature)  # until the overlap ends, or is ended
        late = forged(replace(kept, keys=(replace(kept.entry(stolen), state="current"),)))

        await operator.run(end)

        async def is_retired():
            await operator.run(sets)
            return KeySet.remembered(kept.note).follow(notes.read_bytes()).entry(stolen).state == "retired"

        await becomes(is_retired)
        fresh = kept.follow(notes.read_bytes())
        assert kept.verify(M, signature)  # a verifier that does not fetch is not told
        for ago in (0, 10**9):
            assert fresh.verify(M, signature, now=time.time() - ago) is None
        assert not fresh.accepts(stolen)
        assert fresh.accepts(fresh.current.public_key)
        cases = [
            Case("the thief's set, before the rotation", first, own),
            Case("the thief's set, after it", kept.note, late),
            Case("ours, after the thief's", own, fresh.note),
            Case("ours", kept.note, fresh.note),
        ]
        for verifier in (by_hsmcore, by_python, by_node):
            assert verifier(cases) == [True, False, False, True]
        assert KeySet.trust(fresh.note, fresh.current.public_key, "my-rollup").serial == fresh.serial
        await operator.run(evidence)
    assert '"operation":"gateway-refused"' in log.read_text()
    assert "for the thief" not in "".join(operator.said.values())
    found = [json.loads(line) for line in operator.said[evidence[1]].splitlines()]
    assert [record["caller"] for record in found if record.get("signature") == honest.hex()] == ["test"]
    assert not any(record.get("signature") == signature.hex() for record in found)


async def _works(work):
    try:
        return bool(await work())
    except AssertionError:
        return False
