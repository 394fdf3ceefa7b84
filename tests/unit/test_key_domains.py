"""The row of each key that has bound positions: against a model, over restarts, races, and writers of the store."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.raw_store import beside
from tests.support.size import share
from tests.unit.test_watermark import A, B, Bytes, Life

from hsmcore.config import Policy
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import DomainMismatch, StoreNotGenuine, domains
from hsmcore.state.domains import Binder, KeyDomain

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
BLOCKS = KeyDomain("chain", ("block",))


@pytest.fixture(params=[None, Bytes()], ids=["plain", "sealed"])
def secret(request):
    return request.param


class KeyedLife(Life):
    """One process's life, with keys that sign."""

    def __init__(self, place, secret, says=BLOCKS, keys=(ONE,)):
        super().__init__(place, secret)
        self.says, self.keys = says, list(keys)

    async def __aenter__(self):
        await super().__aenter__()
        self.mark = Watermark(self.store, self.holder, binder=Binder(self.says, lambda: self.keys))
        return self

    async def bind(self, position, digest=A, domain=None):
        await super().bind(position, digest, domain or f"{self.says.domain}/block")

    async def rows(self):
        """What the store says of keys."""
        return await self.store.run(domains.everything)


def formats(*found):
    """What a policy with these formats, as (kind, length), says."""
    listed = [
        {"kind": kind, "prefix": "4c32424b", "length": length, "position": {"offset": 4}} for kind, length in found
    ]
    return Policy.model_validate({"kinds": ["block", "state-root"], "formats": listed}).forms


FORMS = [("block",), ("block", "state-root"), formats(("block", 76)), formats(("block", 76), ("block", 80))]
SAYS = st.builds(KeyDomain, st.sampled_from(["chain", "Chain"]), st.sampled_from(FORMS), st.just(""))


@settings(max_examples=share(16), deadline=None)
@given(st.lists(st.tuples(SAYS, st.sets(st.sampled_from([ONE, TWO, THREE]), min_size=1)), max_size=6), st.booleans())
def test_a_key_binds_where_it_did_and_by_no_fewer_forms(tmp_path_factory, lives, sealed):
    """Each life has a configuration and keys: it binds if each of them has bound so before, and else nothing."""
    asyncio.run(_as_the_model_says(tmp_path_factory.mktemp("store") / "state.db", lives, Bytes() if sealed else None))


async def _as_the_model_says(path, lives, secret):
    known = {}
    for number, (says, keys) in enumerate(lives):
        before = {key: known[key] for key in keys if key in known}
        good = all(says.domain == one.domain and set(says.forms) >= set(one.forms) for one in before.values())
        async with KeyedLife(path, secret, says, sorted(keys)) as life:
            try:
                await life.bind(number)
                assert good
                known |= dict.fromkeys(keys, says)
            except DomainMismatch:
                assert not good
            assert await life.rows() == known
            assert life.mark.bound == good


async def test_two_that_begin_at_once_do_not_bind_one_key_in_two_domains(place, secret):
    other = KeyDomain("chal1", ("block",))
    async with KeyedLife(place, secret) as one, KeyedLife(place, secret, other) as two:
        done = await asyncio.gather(*(life.bind(7) for life in (one, two) * 20), return_exceptions=True)
        assert {type(result) for result in done[::2]} | {type(result) for result in done[1::2]} == {
            type(None),
            DomainMismatch,
        }
        assert one.mark.bound + two.mark.bound == 1
        loser = two if one.mark.bound else one
        with pytest.raises(DomainMismatch, match="has bound positions in domain cha"):
            await loser.bind(8)


async def test_what_is_refused_writes_no_row(place, secret):
    async with KeyedLife(place, secret, keys=()) as life:
        await life.bind(7)
    async with KeyedLife(place, secret) as life:
        for _ in range(2):
            with pytest.raises(Exception, match="another payload"):
                await life.bind(7, B)
            assert await life.rows() == {}
        await life.bind(7)  # a store of before: the first payload that is signed writes it
        assert await life.rows() == {ONE: BLOCKS}


async def test_hsmcores_own_kinds_bind_no_key_to_a_domain(place, secret):
    """Their texts name the domain: batches that are added later need no rebind, and none is needed for them alone."""
    assert Policy.model_validate({"kinds": ["batch-root", "key-set", "raw"]}).forms == ()
    async with KeyedLife(place, secret, KeyDomain("chain", ())) as life:
        await life.mark.require(PayloadPlace("chain/batch-root", 9, A, 0))
        assert await life.rows() == {}


@pytest.mark.parametrize("forged", [
    "UPDATE key_domain SET domain = 'Chain'",
    "UPDATE key_domain SET forms = '[\"block\", \"state-root\"]'",
    "DELETE FROM key_domain",
    "INSERT INTO key_domain SELECT replace(public_key, '01', '02'), domain, forms, 0, '' FROM key_domain",
])  # fmt: skip
async def test_a_forged_row_binds_nothing(place, forged):
    async with KeyedLife(place, Bytes()) as life:
        await life.bind(1)
    beside(place, forged)
    for says in (BLOCKS, KeyDomain("Chain", ("block", "state-root"))):
        async with KeyedLife(place, Bytes(), says, [ONE, TWO]) as life:
            with pytest.raises(StoreNotGenuine, match="domains"):
                await life.bind(2)
            assert life.mark.bound == 0


async def test_an_audit_log_puts_back_what_it_knows(place, secret):
    says = KeyDomain("chain", FORMS[2])
    async with KeyedLife(place, secret, says, [ONE, TWO]) as life:
        await life.store.run(lambda on: domains.put_back(on, {ONE: "chain"}, 1))
        assert await life.rows() == {ONE: KeyDomain("chain", ())}
        await life.bind(1)
        assert await life.rows() == dict.fromkeys([ONE, TWO], says)
        await life.store.run(lambda on: domains.put_back(on, {ONE: "Chain", THREE: "Chain"}, 1))
        assert await life.rows() == {**dict.fromkeys([ONE, TWO], says), THREE: KeyDomain("Chain", ())}
