"""hsmcore.gateway.Client with several addresses: dead ones, wrong ones, and hosts that do not hold the epoch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.authority import Authority
from tests.support.gateways import PUBLIC_KEY, FakeConnection, FakeGateway, fake_signature, honest
from tests.support.managers import becomes, start, until
from tests.support.wire_site import site

from hsmcore.errors import BadArgument, DeadlineExceeded, HsmError, KeyMismatch, NotHolder
from hsmcore.gateway import Client, ClientTls
from hsmcore.gateway.client.dialing import GatewayAddress
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Frame, Type

NAMES = ("signer-1", "signer-2", "signer-3")


def refusing(holder: str = "", *, maybe: bool = False) -> Callable[[FakeGateway, FakeConnection, Frame], None]:
    """Hold no epoch."""

    def answer(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        if one.type is Type.SIGN_MANY:
            refusal = wire.Refusal(True, maybe, 0, "NOT_HOLDER", "RETRY", "held elsewhere", holder)
            outcomes = [refusal] * len(wire.read_sign_many(one.body).messages)
            connection.transport.write(wire.signed_many(one.request, 1, outcomes))
        elif one.type is Type.SIGN:
            refusal = wire.Refusal(True, maybe, 0, "NOT_HOLDER", "RETRY", "held elsewhere", holder)
            connection.transport.write(wire.error(one.request, refusal))
        else:
            honest(served, connection, one)

    return answer


@asynccontextmanager
async def fleet(folder: Path, *names: str) -> AsyncIterator[list[FakeGateway]]:
    """Gateways at sockets in folders of their hosts' names."""
    async with AsyncExitStack() as stack:
        made = []
        for name in names or NAMES:
            (folder / name).mkdir()
            made.append(await stack.enter_async_context(FakeGateway(f"{folder}/{name}/sign.sock")))
        yield made


def listed(fakes: list[FakeGateway]) -> str:
    return ", ".join(f"unix:{fake.path}" for fake in fakes)


def signature(message: bytes) -> bytes:
    return fake_signature(PUBLIC_KEY, message)


def test_addresses_are_a_list_or_one_string_with_commas():
    def texts(given: Any) -> list[str]:
        return [one.text for one in GatewayAddress.parse_all(given)]

    assert texts("unix:/a") == texts(["unix:/a"]) == texts(("unix:/a", "unix:/a")) == ["unix:/a"]
    assert texts("unix:/a,tls:b.example:1,  tls:[::1]:2") == ["unix:/a", "tls:b.example:1", "tls:[::1]:2"]
    assert texts("unix:/a,b") == ["unix:/a,b"], "one path, as before"
    for bad in ("", [], "tls:a:1,b:2", "tls:a:1,", ["unix:/a", "b"]):
        with pytest.raises(BadArgument):
            GatewayAddress.parse_all(bad)
    tls = ClientTls("a", "b", "c")
    for both in ({"address": "unix:/a,tls:b:1"}, {"address": "unix:/a,unix:/b", "tls": tls}):
        with pytest.raises(BadArgument, match="tls belongs"):
            Client(**both)
    assert Client("unix:/a,tls:b:1", tls=tls)


async def test_dead_addresses_are_passed_over_and_told_once(tmp_path, caplog):
    async with fleet(tmp_path) as fakes:
        dead = [f"unix:{tmp_path}/nothing", "unix:/nowhere/at/all"]
        with caplog.at_level(logging.WARNING, "hsmcore"):
            async with Client([*dead, f"unix:{fakes[0].path}"]) as km:
                receipt = await km.sign_with_receipt(b"message")
                assert (receipt.signature, receipt.member) == (signature(b"message"), f"unix:{fakes[0].path}")
                fakes[0].answer = refusing()  # all are looked at again, round after round
                task = start(km.sign(b"another"))
                await becomes(lambda: _accepted(fakes[0], 4))
                fakes[0].answer = honest
                assert await task == signature(b"another")
        told = [message for message in caplog.messages if "cannot be used" in message]
        assert [sum(address in one for one in told) for address in dead] == [1, 1]
        assert km.members()[0].name == f"unix:{fakes[0].path}"


async def _accepted(fake: FakeGateway, count: int) -> bool:
    return fake.accepted >= count


async def test_the_holder_is_next_if_its_name_is_known(tmp_path):
    async with fleet(tmp_path) as (first, second, third), Client(listed([first, second, third]), connections=3) as km:
        assert await km.sign(b"message") == signature(b"message")
        first.answer = refusing("signer-3")
        messages = [b"%d" % number for number in range(100)]
        assert await asyncio.gather(*map(km.sign, messages)) == list(map(signature, messages))
        assert (second.frames, km.members()[0].name) == ([], f"unix:{third.path}")
        await until(lambda: not first.connections)
        await until(lambda: len(third.connections) == 3)


async def test_a_batch_goes_on_with_those_that_were_refused(tmp_path):
    async with fleet(tmp_path, "signer-1", "signer-2") as (first, second), Client(listed([first, second])) as km:
        messages = [b"%d" % number for number in range(20)]

        def half(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
            refusal = wire.Refusal(True, True, 0, "NOT_HOLDER", "RETRY", "the lease was over", "signer-2")
            own = wire.read_sign_many(one.body).messages
            outcomes = [signature(message) if int(message) % 2 else refusal for message in own]
            connection.transport.write(wire.signed_many(one.request, 1, outcomes))

        first.answer = half
        assert await km.sign_many(messages) == list(map(signature, messages))
        again = [
            message for one in second.received(Type.SIGN_MANY) for message in wire.read_sign_many(one.body).messages
        ]
        assert sorted(map(int, again)) == list(range(0, 20, 2))
        first.answer, second.answer = honest, refusing()
        assert await km.sign_many(messages) == list(map(signature, messages))


async def test_a_fleet_without_a_holder_is_not_stormed(tmp_path):
    async with fleet(tmp_path) as fakes, Client(listed(fakes), timeout=1.5) as km:
        for fake in fakes:
            fake.answer = refusing()
        errors = await asyncio.gather(*(km.sign(b"%d" % n) for n in range(500)), return_exceptions=True)
        assert {type(one) for one in errors} <= {NotHolder, DeadlineExceeded}
        assert all(one.retryable and not one.maybe_signed for one in errors)
        # At first what the credits allow, then one for each look at a gateway: seven rounds in 1.5 s, or fewer.
        assert sum(len(fake.received(Type.SIGN)) for fake in fakes) <= fakes[0].credits + 3 * 12
        fakes[2].answer = honest
        assert await asyncio.gather(*(km.sign(b"%d" % n, 60) for n in range(50))) == [
            signature(b"%d" % n) for n in range(50)
        ]


async def test_a_gateway_of_another_fleet_is_passed_over_and_told_once(tmp_path, caplog):
    async with fleet(tmp_path) as (first, strange, third), Client(listed([first, strange, third])) as km:
        strange.public_keys = [b"another fleet's" + bytes(17)]
        first.answer = refusing()
        with caplog.at_level(logging.WARNING, "hsmcore"):
            assert await km.sign(b"message") == signature(b"message")
            third.answer = refusing()
            task = start(km.sign(b"another"))
            await becomes(lambda: _accepted(strange, 3))
            first.answer = honest
            assert await task == signature(b"another")
        assert strange.received(Type.SIGN) == []
        assert [strange.path in message for message in caplog.messages if "none of the keys" in message] == [True]
        own = km._connections._problems[1]
        assert isinstance(own, KeyMismatch)


async def test_a_certificate_of_another_authority_is_passed_over(tmp_path, world, caplog):
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    mine = good.issue("client", dns=["sequencer.test"])
    async with AsyncExitStack() as stack:
        addresses = []
        for name, authority in (("other", other), ("good", good)):
            (tmp_path / f"at-{name}").mkdir()
            own = authority.issue("gateway", ips=["127.0.0.1"])
            tls = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
            clients = {"test": {"names": ["dns:sequencer.test"], "keys": ["default"]}}
            made = site(world.config(), tmp_path / f"at-{name}", clients, listen=["tls:127.0.0.1:0"], tls=tls)
            addresses.append((await stack.enter_async_context(made)).addresses[0])
        tls = ClientTls(mine.certificate, mine.key, good.file)
        with caplog.at_level(logging.WARNING, "hsmcore"):
            async with Client(addresses, tls=tls) as km:
                receipt = await km.sign_with_receipt(b"message")
        assert receipt.member == addresses[1]
        assert sum("cannot be used" in message and addresses[0] in message for message in caplog.messages) == 1
        with pytest.raises(HsmError, match="cannot be reached"):
            await Client(addresses[:1], tls=tls).initialize()


async def test_a_client_that_is_closed_while_it_moves_leaves_nothing(tmp_path):
    loop = asyncio.get_running_loop()
    async with fleet(tmp_path) as fakes:
        for fake in fakes:
            fake.answer = refusing()
        for accepted in range(1, 8):  # at another moment each time
            before = sum(fake.accepted for fake in fakes)
            client = Client([f"unix:{tmp_path}/nothing", *listed(fakes).split(", ")], connections=2, timeout=0.3)
            await client.initialize()
            tasks = [start(client.sign(b"%d" % number)) for number in range(3)]
            await asyncio.sleep(0)
            await until(
                lambda least=before + accepted, tasks=tasks: (
                    sum(fake.accepted for fake in fakes) >= least or all(one.done() for one in tasks)
                )
            )
            await client.close()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, NotHolder | DeadlineExceeded) for one in errors)
            await until(lambda: not any(fake.connections for fake in fakes))
            timers = [one for one in getattr(loop, "_scheduled", ()) if not one.cancelled()]
            assert [one for one in timers if "gateway" in repr(one)] == []
