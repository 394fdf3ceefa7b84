"""The client in Rust, clients/rust, by its test program: golden vectors, gateways that lie and break, and real ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from solders.litesvm import LiteSVM
from solders.message import Message
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer
from solders.transaction import Transaction
from solders.transaction_metadata import FailedTransactionMetadata
from tests.integration.test_gateway_lists import fleet, listed, refusing
from tests.integration.test_typescript import signers
from tests.support.doc_blocks import blocks
from tests.support.gateways import PUBLIC_KEY, Cutter, FakeConnection, FakeGateway, fake_signature, gateway, honest
from tests.support.managers import until
from tests.support.paths import ROOT
from tests.support.policed import ordered
from tests.support.rust import PACKAGE, Tell, built, cargo, load, needs_cargo, probe, settled
from tests.support.size import share
from tests.support.verifiers import is_good

from hsmcore.base.receipt import Receipt
from hsmcore.errors.statuses import STATUSES
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Frame, Type

pytestmark = [pytest.mark.integration, needs_cargo, pytest.mark.timeout(240)]
AT_LENGTH = [pytest.mark.deep, pytest.mark.timeout(900)]
VECTORS = json.loads((ROOT / "tests/wire/vectors.json").read_text())
SPOKEN = {"HELLO", "SIGN", "CANCEL", "ACK", "PING", "MANAGE"}
READ = {"WELCOME", "SIGNED", "PONG", "ERROR", "KEYS", "CREDIT", "GOAWAY", "DONE"}


@pytest.fixture(scope="module")
def program() -> Path:
    return built("probe")


# ---- golden vectors --------------------------------------------------------------------------------------------------


def answers(program: Path, lines: list[str]) -> list[str]:
    done = subprocess.run(
        [program, "vectors"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def unfilled(one: Any) -> str:
    """Bytes, or so many times the same one."""
    return one if isinstance(one, str) else one["byte"] * one["times"]


def whole(one: dict[str, Any]) -> str:
    return one["hex"] + (unfilled(one["fill"]) if "fill" in one else "")


def test_golden_frames_are_made(program):
    asked = [one for one in VECTORS["frames"] if one["type"] in SPOKEN and not one["flags"] & ~3]

    def fields(kind: str, says: dict[str, Any]) -> list[Any]:
        if kind == "HELLO":
            return [says["nonce"], says["program"]]
        if kind == "SIGN":
            position = "-" if says["position"] is None else says["position"]
            return [says["kind"], says["timeout_ms"], position, says["version"], unfilled(says["message"])]
        if kind == "MANAGE":
            return [says["operation"], says["key_id"]]
        return [says["data"]] if kind == "PING" else []

    def line(one: dict[str, Any]) -> str:
        again = "again" if one["flags"] & 2 else "first"
        words = ["make", one["request"], one["slot"], again, one["type"], *fields(one["type"], one["says"])]
        return "\t".join(map(str, words))

    assert {one["type"] for one in asked} == SPOKEN
    assert answers(program, [line(one) for one in asked]) == [whole(one) for one in asked]


def meaning(kind: str, says: dict[str, Any]) -> str:
    """What a frame says, as the program tells it."""

    def keys(listed: list[dict[str, Any]]) -> str:
        names = "slot", "version", "current", "algorithm", "id", "public_key", "kinds"
        return "|".join(
            " ".join(str(one[name]).replace("True", "true").replace("False", "false") for name in names)
            for one in listed
        )

    if kind == "WELCOME":
        limits = (
            str(says[name]) for name in ("instance", "credits", "message_bytes", "batch", "remember_ms", "client")
        )
        return " ".join((*limits, ",".join(says["slots"]), keys(says["keys"])))
    if kind == "SIGNED":
        seq = "-" if says["audit_seq"] is None else says["audit_seq"]
        return f"{says['version']} {says['level']} {seq} {unfilled(says['signature'])}"
    if kind == "ERROR":
        known = says["status"] in STATUSES
        text = says["text"] if known else f"{says['status']}: {says['text']}"
        flags = f"{says['retryable']} {says['maybe_signed']}".lower()
        return f"{flags} {says['retry_after_ms']} {says['status'] if known else 'OTHER'} {says['holder']} {text}"
    if kind == "KEYS":
        return keys(says["keys"])
    if kind == "GOAWAY":
        return f"{says['left_ms']} {says['reason']}"
    return str(says[{"PONG": "data", "CREDIT": "credits", "DONE": "text"}[kind]])


def test_golden_frames_and_streams_are_read(program):
    frames = [one for one in VECTORS["frames"] if one["type"] in READ]
    assert {one["type"] for one in frames} == READ
    told = answers(program, [f"read\t{whole(one)}" for one in frames])
    for one, said in zip(frames, told, strict=True):
        head = f"{int(Type[one['type']])}\t{one['slot']}\t{one['request']}\t"
        assert said == (head + meaning(one["type"], one["says"])).replace("\n", "\\n"), one["name"]
    [stream] = [one for one in VECTORS["streams"] if one["from"] == "gateway"]
    [said] = answers(program, [f"read\t{whole(stream)}"])
    found = said.split("\t")
    assert [[Type(int(kind)).name, request] for kind, request in zip(found[::4], found[2::4], strict=True)] == stream[
        "frames"
    ]


def test_golden_faults_are_refused(program):
    unread = {int(one) for one in (Type.SIGNED_MANY, Type.VERIFIED, Type.BATCHED)}
    faults = [
        one for one in VECTORS["refused"] if one["by"] == "client" and int(one["hex"][8:10] or "0", 16) not in unread
    ]
    told = answers(program, [f"read\t{whole(one)}" for one in faults])
    assert len(faults) > 40
    assert [one["name"] for one, said in zip(faults, told, strict=True) if not said.startswith("refused\t")] == []


# ---- gateways that lie and break -------------------------------------------------------------------------------------


def signed(message: bytes) -> list[str]:
    return ["ok", fake_signature(PUBLIC_KEY, message).hex(), PUBLIC_KEY.hex(), "primary"]


async def test_a_request_that_is_not_answered_ends_with_its_deadline_and_may_be_signed(program, tmp_path):
    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s") as client:
        fake.answer = lambda *_: None
        kind, code, retryable, maybe, *_ = await client.sign(b"message", ms=50)
        assert [kind, code, retryable, maybe] == ["error", "DEADLINE_EXCEEDED", "true", "true"]
        [asked] = fake.received(Type.SIGN)
        assert 0 < wire.read_sign(asked).timeout_ms <= 50
        fake.answer = honest
        assert await client.sign(b"another") == signed(b"another")
        assert [one.request for one in fake.received(Type.CANCEL)] == [asked.request]


async def test_a_request_is_withdrawn_when_its_caller_lets_it_go(program, tmp_path):
    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s") as client:
        fake.answer = lambda *_: None
        client.say("hold", "1", "default", "", "-", 20_000, b"message".hex())
        client.say("cancel", "1")
        await until(lambda: fake.received(Type.CANCEL) != [])
        [asked] = fake.received(Type.SIGN)
        assert [one.request for one in fake.received(Type.CANCEL)] == [asked.request]


async def test_a_connection_that_breaks_has_its_requests_sent_again_with_their_numbers(program, tmp_path):
    broken = asyncio.Event()

    def breaks(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        if broken.is_set():
            honest(served, connection, one)
        elif len(served.received(Type.SIGN)) == 3:
            broken.set()
            connection.transport.abort()

    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s") as client:
        fake.answer = breaks
        for number in range(3):
            client.say("sign", number, "default", "", "-", 20_000, (b"%d" % number).hex())
        found = {one[0]: one[1:] for one in [await client.line() for _ in range(3)]}
        assert found == {str(number): signed(b"%d" % number) for number in range(3)}
        asked = [(one.request, one.flags, wire.read_sign(one).message) for one in fake.received(Type.SIGN)]
        assert [(number, message) for number, _, message in asked[:3]] == [
            (number, message) for number, _, message in asked[3:]
        ]
        assert [flags for _, flags, _ in asked] == [0, 0, 0, 2, 2, 2]


async def test_it_goes_to_the_holder_and_each_request_is_signed_once(program, tmp_path):
    async with fleet(tmp_path) as (first, second, third):
        addresses = listed([first, second, third]).split(", ")
        async with probe(program, *addresses, PROBE_CONNECTIONS="2") as client:
            assert await client.sign(b"message") == signed(b"message")
            first.answer = refusing("signer-3")
            for number in range(50):
                client.say("sign", number, "default", "", "-", 20_000, (b"%d" % number).hex())
            found = {one[0]: one[1:] for one in [await client.line() for _ in range(50)]}
            assert found == {str(number): signed(b"%d" % number) for number in range(50)}
            assert (second.frames, (await client.ask("state"))[0]) == ([], addresses[2])
            third.answer = refusing()
            assert await client.sign(b"late") == signed(b"late")
            second.answer = refusing()
            kind, code, retryable, maybe, *_ = await client.sign(b"too late", ms=100)
            assert [kind, code, retryable, maybe] == ["error", "NOT_HOLDER", "true", "false"]
            before = sum(len(one.received(Type.SIGN)) for one in (first, second, third))
            for number in range(50):
                client.say("sign", number, "default", "", "-", 200, b"no host signs it".hex())
            told = [await client.line() for _ in range(50)]
            asked = sum(len(one.received(Type.SIGN)) for one in (first, second, third)) - before
            assert 0 < asked < 50, "one is open at a time until a gateway signs"
            assert {one[2] for one in told} == {"NOT_HOLDER", "DEADLINE_EXCEEDED"}


async def test_what_is_refused_for_want_of_room_waits_and_rotations_are_followed(program, tmp_path):
    refused: list[Frame] = []

    def full(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        served.answer = honest
        refused.append(one)
        connection.transport.write(
            wire.error(one.request, wire.Refusal(True, False, 10, "QUEUE_FULL", "RETRY", "full"))
        )

    def stale(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        served.answer = honest
        said = wire.Refusal(False, False, 0, "KEY_NOT_CURRENT", "REQUEST_FATAL", "another one signs")
        connection.transport.write(wire.error(one.request, said))
        served.rotate()

    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s") as client:
        fake.answer = full
        assert await client.sign(b"message") == signed(b"message")
        fake.answer = stale
        _, made, key, _ = await client.sign(b"turned")
        assert (made, key) == (fake_signature(fake.public_keys[-1], b"turned").hex(), fake.public_keys[-1].hex())
        numbers = [one.request for one in fake.received(Type.SIGN)]
        assert numbers == sorted(set(numbers)), "each with a number of its own"
        assert [wire.read_sign(one).version for one in fake.received(Type.SIGN)] == [1, 1, 1, 2]


async def test_silence_is_found_by_a_ping_and_the_connection_made_again(program, tmp_path):
    def mute(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        if served.accepted > 1:
            honest(served, connection, one)

    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s", PROBE_PING_MS="50") as client:
        fake.answer = mute
        assert await client.sign(b"message") == signed(b"message")
        assert fake.received(Type.PING)


def verifiable(message: bytes) -> bytes:
    """A signature by the rule of the program's verifier: the key's first bytes, and the message's."""
    return PUBLIC_KEY[:4] + message.ljust(60, b"\0")


def answered(request: int, signature: bytes) -> bytes:
    return wire.signed(request, 1, Receipt(signature, "", b"", "", "primary", False, 0, None))


async def test_a_signature_that_does_not_verify_is_not_handed_out(program, tmp_path):
    def false(_: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        connection.transport.write(answered(one.request, verifiable(wire.read_sign(one).message + b"?")))

    async with FakeGateway(f"{tmp_path}/s") as fake, probe(program, f"unix:{tmp_path}/s", PROBE_VERIFIER="1") as client:
        fake.answer = false
        assert (await client.sign(b"message"))[:4] == ["error", "SIGNATURE_INVALID", "false", "true"]
        good = verifiable(b"message").hex()
        assert await client.ask("verify", "default", b"message".hex(), good) == ["true"]
        assert await client.ask("verify", "default", b"another".hex(), good) == ["false"]


class Liar:
    """Answers, but for some bytes: changed, cut, twice, out of turn, or of another request."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)

    def __call__(self, served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
        if one.type is not Type.SIGN:
            honest(served, connection, one)
            return
        chance = self.chance
        data = answered(one.request, verifiable(wire.read_sign(one).message))
        at = chance.randrange(len(data))
        refusal = wire.Refusal(
            True, False, 5, chance.choice(["QUEUE_FULL", "BUSY", "NOT_HOLDER", "KEY_NOT_CURRENT"]), "", ""
        )
        welcome = wire.welcome(wire.Welcome(bytes(16), 1, 1, 1, 1, "t", ("default",), served.keys()))
        lies = [
            data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :],
            data[:at],
            data + data,
            chance.randbytes(at + 1) + data,
            wire.goaway(chance.randrange(100), "going"),
            welcome + data,
            wire.done(one.request, "done") + data,
            wire.keys(()) + data,
            wire.credit(chance.randrange(3)) + data,
            answered(max(1, one.request - 1), verifiable(b"another")),
            wire.error(one.request, refusal),
            b"",
        ]
        connection.transport.write(chance.choice(lies) if chance.random() < 0.5 else data)


@pytest.mark.parametrize(
    "seeds", [range(share(48, 12)), pytest.param(range(48, 300), marks=AT_LENGTH)], ids=["some", "many"]
)
async def test_no_lie_makes_it_hang_panic_or_take_the_signature_of_another_request(program, tmp_path, seeds):
    kinds: Counter[str] = Counter()
    for seed in seeds:
        path = f"{tmp_path}/{seed}"
        async with FakeGateway(path) as fake, probe(program, f"unix:{path}", PROBE_VERIFIER="1") as client:
            fake.answer = Liar(seed)
            messages = {str(number): b"%d of %d" % (number, seed) for number in range(20)}
            for number, message in messages.items():
                client.say("sign", number, "default", "", "-", 300, message.hex())
            told = [await client.line() for _ in messages]
            assert {one[0] for one in told} == messages.keys(), "each is told once"
            for number, kind, said, *_ in told:
                assert kind == "error" or said == verifiable(messages[number]).hex(), (seed, number)
                kinds[said if kind == "error" else kind] += 1
    assert {"ok", "SIGNATURE_INVALID", "DEADLINE_EXCEEDED"} <= kinds.keys()


# ---- real gateways ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [share(4, 2), pytest.param(20, marks=AT_LENGTH)])
async def test_kills_of_the_gateway_lose_nothing_and_sign_nothing_with_two_keys(program, fresh_token, tmp_path, kills):
    rules = {"stateFile": str(tmp_path / "state.db"), "keyRotation": {"intervalDays": 30, "overlapDays": 2}}
    config = fresh_token().config(auditLogFile=str(tmp_path / "audit.log"), **rules)
    async with gateway(tmp_path, config) as served:

        async def killing(tell: Tell) -> None:
            for number in range(kills):
                await tell("wait 150")
                if number % 3 == 1:
                    await tell("rotate")
                    await tell("wait 150")
                await served.kill()
                await served.start()
            await tell("wait 150")

        made = await load(program, tmp_path, killing, served.addresses[0])
    by = signers(tmp_path / "audit.log")
    assert len(settled(tmp_path, made)) == len(by)
    assert len({key for keys in by.values() for key in keys}) > 1
    assert {message: keys for message, keys in by.items() if len(keys) > 1} == {}


async def test_cut_connections_and_drains_cost_no_request_and_no_second_signature(program, fresh_token, tmp_path):
    config = fresh_token().config(auditLogFile=str(tmp_path / "audit.log"), maxCacheSize=0)
    async with gateway(tmp_path, config) as served:
        cutter = Cutter(Random(1), str(tmp_path / "sign.sock"), 40_000)
        await cutter.listen(str(tmp_path / "cut.sock"))

        async def cutting(tell: Tell) -> None:
            await tell("wait 1000")
            while cutter.cuts <= 10:
                await tell("wait 200")
            cutter.cutting = False
            await tell("wait 100")

        try:
            made = await load(program, tmp_path, cutting, f"unix:{tmp_path}/cut.sock")
        finally:
            await cutter.close()
        by = signers(tmp_path / "audit.log")
        assert len(settled(tmp_path, made)) == len(by)
        assert {message for message, keys in by.items() if keys.total() > 1} == set()

        async def draining(tell: Tell) -> None:
            await tell("wait 100")
            assert await served.end() == 0
            await served.start()
            await tell("wait 100")

        made = await load(program, tmp_path, draining, served.addresses[0])
        settled(tmp_path, made)


async def test_a_policy_refuses_and_a_position_is_signed_once(program, fresh_token, tmp_path):
    policy = {"kinds": ["block"]}
    config = fresh_token().config(stateFile=str(tmp_path / "s.db"), policy=policy)
    async with gateway(tmp_path, config) as served, probe(program, *served.addresses) as client:
        assert (await client.sign(b"any bytes"))[:4] == ["error", "POLICY_REFUSED", "false", "false"]
        block, other = ordered(7, b"a"), ordered(7, b"b")
        kind, made, key, _ = await client.sign(block, kind="block", position="7")
        assert kind == "ok"
        assert is_good("ed25519", bytes.fromhex(key), block, bytes.fromhex(made))
        assert (await client.sign(block, kind="block", position="8"))[:2] == ["error", "POLICY_REFUSED"]
        assert (await client.sign(other, kind="block", position="7"))[:2] == ["error", "DOUBLE_SIGN"]
        assert (await client.sign(block, key="another"))[:2] == ["error", "POLICY_REFUSED"]
        assert (await client.sign(b""))[:2] == ["error", "BAD_ARGUMENT"]
        said, text = await client.ask("manage", "default", "versions", "", 20_000)
        assert (said, [one["publicKey"] for one in json.loads(text)]) == ("done", [key])
        assert (await client.ask("keys", "default"))[0].split()[5] == key


async def test_a_stream_of_the_caller_s_carries_it_over_tcp(program, fresh_token, tmp_path):
    """The program's stream changes each byte, as TLS does, and cannot be halved; what is between changes it back."""

    async def veil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(bytes(one ^ 0x5A for one in data))
            await writer.drain()
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(str(tmp_path / "sign.sock"))
        await asyncio.gather(veil(reader, far_writer), veil(far_reader, writer))

    async with gateway(tmp_path, fresh_token().config()):
        server = await asyncio.start_server(between, "127.0.0.1")
        async with server, probe(program, f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            for number in range(200):
                client.say("sign", number, "default", "", "-", 20_000, (b"%d" % number * 900).hex())
            for said in [await client.line() for _ in range(200)]:
                message = b"%d" % int(said[0]) * 900
                assert is_good("ed25519", bytes.fromhex(said[3]), message, bytes.fromhex(said[2])), said


# ---- the package -----------------------------------------------------------------------------------------------------


def test_the_example_signs_a_transaction_that_is_executed(fresh_token, tmp_path):
    example = built("transaction")
    token = fresh_token()
    payer = Pubkey(token.keys["ed25519"].public_key)
    chain = LiteSVM()
    chain.airdrop(payer, 1_000_000_000)
    moves = transfer(TransferParams(from_pubkey=payer, to_pubkey=Pubkey(bytes([9]) * 32), lamports=890_880))
    message = bytes(Message.new_with_blockhash([moves], payer, chain.latest_blockhash()))

    async def run() -> bytes:
        async with gateway(tmp_path, token.config()) as served:
            done = await asyncio.to_thread(
                subprocess.run, [example, *served.addresses], input=message, stdout=subprocess.PIPE, check=True
            )
            return done.stdout

    made = asyncio.run(run())
    assert chain.get_sigverify()
    assert not isinstance(chain.send_transaction(Transaction.from_bytes(made)), FailedTransactionMetadata)


def test_the_documents_have_the_examples_and_the_package_what_it_should():
    examples = sorted((PACKAGE / "examples").iterdir())
    assert sorted(block.text for block in blocks("rust")) == sorted(path.read_text() for path in examples)
    packed = set(cargo("package", "--list", "--allow-dirty").split())
    files = {str(path.relative_to(PACKAGE)) for path in (*(PACKAGE / "src").iterdir(), *examples)}
    made = {"Cargo.toml.orig", "Cargo.lock", ".cargo_vcs_info.json"}
    assert packed - made == files | {"Cargo.toml", "README.md", "LICENSE"}
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
