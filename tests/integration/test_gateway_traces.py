"""A request can be followed from its caller to the audit record: trace ids over HTTPS and over the wire."""

from __future__ import annotations

import uuid

import pytest
from tests.support.loops import one_loop
from tests.support.vault_site import b64, site

pytestmark = pytest.mark.integration
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SIGN, VERIFY = "/v1/transit/sign/default", "/v1/transit/verify/default"
_CHANGED = (
    (PARENT, ""), (PARENT, "00"), ("00-", "01-"), ("00-", "ff-"), ("00-", "00_"), ("-01", "-01-"), ("-01", "-01-00"),
    ("-01", "-010"), ("-01", "-1"), ("-01", f"-01,{PARENT}"), ("-01", '-"}'), ("-01", "-\xb2\xb2"), (TRACE, "0" * 32),
    (SPAN, "0" * 16), (TRACE, TRACE.upper()), (TRACE, TRACE[1:]), (TRACE, TRACE[:-1] + "g"), (TRACE, "4" * 4000),
)  # fmt: skip
HOSTILE = tuple(PARENT.replace(part, other) for part, other in _CHANGED)
"""Values of the header that are none."""


async def records(manager, **match):
    """What the audit log has."""
    await manager.audit.flush()
    return [record async for record in manager.audit.query(match=match)]


@one_loop
async def test_vault_s_request_is_found_by_its_trace_and_by_its_request_id(world, tmp_path):
    config = world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    async with site(config, tmp_path) as vault:
        headers = {"traceparent": PARENT}
        signed = (await vault.asked("POST", SIGN, {"input": b64(b"m")}, headers=headers)).json()
        batch = {"batch_input": [{"input": b64(b"a")}, {"input": b64(b"b")}, {"input": b64(b"c"), "kind": "block"}]}
        many = (await vault.asked("POST", SIGN, batch, headers=headers)).json()
        good = {"input": b64(b"m"), "signature": signed["data"]["signature"]}
        checked = (await vault.asked("POST", VERIFY, good, headers=headers)).json()
        plain = (await vault.asked("POST", SIGN, {"input": b64(b"n")})).json()
        found = await records(vault.manager, trace_id=TRACE)
        [last] = await records(vault.manager, request_id=plain["request_id"])
    asked = [(signed, "sign", "ok"), (many, "sign", "ok"), (many, "sign", "ok"), (many, "sign", "error")]
    asked.append((checked, "verify", None))
    told = {(one["request_id"], one["operation"], one.get("result"), one["caller"]) for one in found}
    assert told == {(reply["request_id"], what, result, "app") for reply, what, result in asked}
    assert len(found) == len(asked)
    assert (last["operation"], last["caller"], "trace_id" in last) == ("sign", "app", False)
    assert uuid.UUID(plain["request_id"]).version == 4


@one_loop
async def test_a_traceparent_that_is_none_is_ignored(world, tmp_path):
    config = world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    async with site(config, tmp_path) as vault:
        for hostile in HOSTILE:
            await vault.data("POST", SIGN, {"input": b64(b"m")}, headers={"traceparent": hostile})
        found = await records(vault.manager, operation="sign")
    assert len(found) == len(HOSTILE)
    assert not any("trace_id" in one for one in found)
