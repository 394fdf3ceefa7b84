"""Copies of the log: each record arrives, in order, as the line it is, whatever the destination and the log do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hypothesis
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import zygote
from tests.support.audit_logs import settings, text_of, write_log
from tests.support.aws import CREDENTIALS, OFFLINE, UNSET, moto_server
from tests.support.cloudwatch import logs_server
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.rfc5424 import parse, receiver
from tests.support.size import share

from hsmcore.audit import AuditLog
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments
from hsmcore.audit.shipping import cloudwatch
from hsmcore.audit.shipping.cloudwatch import CloudWatch
from hsmcore.audit.shipping.follow import Follower, last_seq
from hsmcore.audit.shipping.service import ShipNow
from hsmcore.audit.shipping.syslog import SyslogDestination, message
from hsmcore.config import CloudWatchLogs
from hsmcore.config.audit import Syslog
from hsmcore.errors import AuditUnavailable

pytestmark = pytest.mark.integration


@pytest.fixture
def aws(monkeypatch):
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in (OFFLINE | CREDENTIALS).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def logs(aws):
    with logs_server() as (url, known):
        known.url = url
        yield known


def cloud(url: str, **more: object) -> CloudWatch:
    given = {"logGroup": "hsm", "logStream": "audit", "region": "us-east-1", "endpointUrl": url, **more}
    return CloudWatch(CloudWatchLogs.model_validate(given))


def syslog(address: str, **more: object) -> SyslogDestination:
    return SyslogDestination(Syslog.model_validate({"address": address, **more}))


def lines_of(layout: Layout) -> list[bytes]:
    return [line for segment in segments(layout) for line in text_of(segment).splitlines()]


def first_times(lines: list[bytes]) -> list[bytes]:
    """Without repetitions, in the order of their first coming."""
    return list(dict.fromkeys(lines))


def quick(_failures: int) -> float:
    return 0.01


# ---- reading the files ----


@hypothesis.settings(max_examples=share(40))
@given(
    plan=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), min_size=1, max_size=4),
    compress=st.booleans(),
    start=st.integers(0, 500),
)
def test_every_line_is_read_once_while_files_are_rotated_and_compressed(tmp_path_factory, plan, compress, start):
    path = tmp_path_factory.mktemp("follow") / "audit.log"
    follower = None
    found: list[bytes] = []
    begin = 0
    for records, most in plan:
        layout = asyncio.run(write_log(path, records, begin=begin, compress=compress))
        begin += records
        follower = follower or Follower(layout, start)
        newest = last_seq(layout)
        while taken := follower.take(newest, 1 << 14, most):
            assert len(taken) <= most
            found += taken
    follower.close()
    assert found == lines_of(layout)[start:]
    assert follower.missing == []


@one_loop
async def test_pruned_records_are_reported_and_skipped(tmp_path):
    layout = await write_log(tmp_path / "audit.log", 900)
    full = segments(layout)
    assert len(full) >= 3
    full[0].path.unlink()
    follower = Follower(layout, 10)
    found = follower.take(last_seq(layout), 1 << 20, 100)
    follower.close()
    assert follower.missing == [(11, full[1].first - 1)]
    assert found[0].startswith(b'{"seq":%d,' % full[1].first)


# ---- CloudWatch Logs ----


async def test_records_arrive_while_the_log_is_open_and_at_its_end(tmp_path, logs):
    log = AuditLog(str(tmp_path / "audit.log"), settings(), [cloud(logs.url)])
    await log.open()
    for n in range(1500):
        log.record("sign", message=b"%d" % n, result="ok")
    await log.flush()
    await until(lambda: log.shipping["cloudWatchLogs"].sent_seq == 1500)
    status = log.shipping["cloudWatchLogs"]
    assert (status.lag_records, status.error) == (0, None)
    log.record("close")
    await log.close()
    assert logs.lines() == lines_of(Layout(tmp_path / "audit.log"))
    assert logs.violations == []


async def test_nothing_is_lost_between_failures_and_restarts(tmp_path, logs, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.shipping.shipper._full_jitter", quick)
    logs.fail = ["ThrottlingException", "hang-up", "ServiceUnavailableException", "InternalFailure", "hang-up"]
    for turn in range(3):
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [cloud(logs.url)])
        await log.open()
        for n in range(400):
            log.record("sign", message=b"%d" % n, result="ok")
            if n % 100 == 50:
                logs.fail.append("ThrottlingException")
                logs.answer_lost += turn % 2
                await asyncio.sleep(0.005)
        await log.close()
    logs.fail, logs.answer_lost = [], 0
    layout = Layout(tmp_path / "audit.log")
    assert ShipNow(layout, cloud(logs.url)).run() is None
    assert first_times(logs.lines()) == lines_of(layout)
    assert logs.violations == []


@one_loop
async def test_after_days_without_a_network_rotated_and_compressed_files_are_shipped(tmp_path, logs):
    log = AuditLog(str(tmp_path / "audit.log"), settings(), [cloud("http://127.0.0.1:9")])
    await log.open()
    for n in range(1000):
        log.record("sign", message=b"%d" % n, result="ok")
        if n % 100 == 99:
            await log.flush()  # what is written at once stays in one file, however long
    await until(lambda: log.shipping["cloudWatchLogs"].error is not None)
    await until(lambda: log.shipping["cloudWatchLogs"].lag_records == 1000)
    await log.close()
    layout = Layout(tmp_path / "audit.log")
    assert any(segment.compressed for segment in segments(layout))
    run = ShipNow(layout, cloud(logs.url))
    assert run.run() is None
    assert (run.status.sent_seq, run.status.lag_records) == (1000, 0)
    assert logs.lines() == lines_of(layout)
    assert ShipNow(layout, cloud(logs.url)).run() is None
    assert len(logs.lines()) == 1000


@one_loop
async def test_what_the_service_finds_too_old_arrives_under_the_present_time(tmp_path, logs):
    layout = await write_log(tmp_path / "audit.log", 50)
    logs.oldest_ms = -5  # everything is
    logs.streams["hsm", "audit"] = []
    shipper = ShipNow(layout, cloud(logs.url))
    assert "is the clock right" in shipper.run()
    logs.oldest_ms = 1000
    text = lines_of(layout)
    old = [line.replace(b'"time_ns":1', b'"time_ns":', 1) for line in text]
    events = cloudwatch.batch(old)
    place = cloud(logs.url)
    assert place.send(old) == len(events) == 50
    place.close()
    assert logs.lines() == old
    assert all(moment > time.time() * 1000 - 60_000 for moment, _ in logs.streams["hsm", "audit"])


@given(steps=st.lists(st.tuples(st.integers(-3_600_000, 40_000_000), st.integers(60, 65_535)), min_size=1, max_size=60))
def test_batches_keep_the_limits_and_lose_nothing(steps):
    lines, moment = [], 1_790_000_000_000
    for n, (step, size) in enumerate(steps):
        moment += step
        lines.append((b'{"seq":%d,"time_ns":%d,"x":"' % (n + 1, moment * 10**6)).ljust(size - 2, b"x") + b'"}')
    left = list(lines)
    while left:
        events = cloudwatch.batch(left)
        times = [event["timestamp"] for event in events]
        assert 1 <= len(events) <= 10_000
        assert sum(len(event["message"]) + 26 for event in events) <= 1_048_576
        assert times == sorted(times)
        assert times[-1] - times[0] < 24 * 3_600_000
        assert [event["message"].encode() for event in events] == left[: len(events)]
        del left[: len(events)]


@one_loop
async def test_a_missing_permission_is_reported(tmp_path, logs):
    layout = await write_log(tmp_path / "audit.log", 5)
    logs.may_create = False
    assert "logs:CreateLogGroup" in ShipNow(layout, cloud(logs.url)).run()


@one_loop
async def test_against_moto(tmp_path, aws):
    import boto3

    layout = await write_log(tmp_path / "audit.log", 300)
    with moto_server() as url:
        assert ShipNow(layout, cloud(url)).run() is None
        client = boto3.session.Session().client("logs", endpoint_url=url, region_name="us-east-1")
        found = client.get_log_events(logGroupName="hsm", logStreamName="audit", startFromHead=True, limit=10_000)
        client.close()
    assert [event["message"].encode() for event in found["events"]] == lines_of(layout)


@contextmanager
def container_credentials():
    """An endpoint of container credentials, and how long those that it hands out are still valid: a list of seconds."""
    validity: list[int] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            until = datetime.now(UTC) + timedelta(seconds=validity[0] if len(validity) == 1 else validity.pop(0))
            found = {"AccessKeyId": "testing", "SecretAccessKey": "testing-secret-key", "Token": "t"}
            body = json.dumps(found | {"Expiration": f"{until:%Y-%m-%dT%H:%M:%SZ}"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", validity
        finally:
            server.shutdown()
            thread.join()


async def test_credentials_that_are_renewed_too_late_stop_no_shipping(tmp_path, logs, monkeypatch):
    """botocore raises RuntimeError then, which is none of its own errors."""
    monkeypatch.setattr("hsmcore.audit.shipping.shipper._full_jitter", quick)
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    with container_credentials() as (url, validity):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        validity[:] = [-60]
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [cloud(logs.url)])
        await log.open()
        for n in range(50):
            log.record("sign", message=b"%d" % n)
        await log.flush()
        await until(lambda: log.shipping["cloudWatchLogs"].error is not None)
        refused = log.shipping["cloudWatchLogs"].error
        validity[:] = [3600]
        await until(lambda: log.shipping["cloudWatchLogs"].sent_seq == 50)
        await until(lambda: log.shipping["cloudWatchLogs"].error is None)
        await log.close()
    assert "RuntimeError" in refused
    assert logs.lines() == lines_of(Layout(tmp_path / "audit.log"))


class Raising(SyslogDestination):
    """A destination of another's making: what it raises, also when it is closed, is not foreseen."""

    def __init__(self, address: str) -> None:
        super().__init__(Syslog.model_validate({"address": address}))
        self.failures = 0

    def send(self, lines):
        if self.failures < 3:
            self.failures += 1
            raise KeyError("a secret of the library's")
        return super().send(lines)

    def close(self) -> None:
        super().close()
        raise LookupError("at the end, too")


async def test_whatever_a_destination_raises_its_thread_goes_on_and_leaves_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.shipping.shipper._full_jitter", lambda _failures: 0.2)
    with receiver("tcp", tmp_path) as (address, taking):
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [Raising(address)])
        await log.open()
        log.record("sign", message=b"1")
        await until(lambda: log.shipping["syslog"].error is not None)
        raised = log.shipping["syslog"].error
        await until(lambda: log.shipping["syslog"].sent_seq == 1)
        await until(lambda: log.shipping["syslog"].error is None)
        await log.close()
        assert ShipNow(Layout(tmp_path / "audit.log"), syslog(address)).run() is None
    assert raised == "KeyError"
    assert first_times([parse(raw).text for raw in taking.messages]) == lines_of(Layout(tmp_path / "audit.log"))


# ---- cursors ----


@one_loop
async def test_a_log_that_a_power_failure_shortened_is_shipped_again_from_its_checkpoint(tmp_path, logs):
    path = tmp_path / "audit.log"
    layout = await write_log(path, 100)
    text = path.read_bytes()
    log = AuditLog(str(path), settings(checkpointEverySeconds=3600), [cloud(logs.url)])
    await log.open()
    for n in range(20):
        log.record("sign", message=b"lost %d" % n)
    await log.flush()
    await until(lambda: log.shipping["cloudWatchLogs"].sent_seq == 120)
    await asyncio.sleep(1.1)  # until the cursor may be stored
    log.record("sign", message=b"one more")
    await until(lambda: log.shipping["cloudWatchLogs"].sent_seq == 121)
    cursor = next(layout.shipping.glob("*.json"))
    await until(lambda: orjson.loads(cursor.read_bytes())["seq"] == 121)
    kept = {place: place.read_bytes() for place in (layout.checkpoint, layout.history, cursor)}
    await log.close()
    for place, data in kept.items():
        place.write_bytes(data)
    path.write_bytes(text)
    again = AuditLog(str(path), settings())
    await again.open()
    for n in range(30):
        again.record("sign", message=b"again %d" % n)
    await again.close()
    assert ShipNow(layout, cloud(logs.url)).run() is None
    arrived, there = logs.lines(), lines_of(layout)
    assert arrived[-30:] == there[-30:]
    assert set(there) <= set(arrived)


@one_loop
async def test_one_process_ships_to_a_destination(tmp_path, logs):
    log = AuditLog(str(tmp_path / "audit.log"), settings(), [cloud(logs.url)])
    await log.open()
    log.record("sign", message=b"1")
    await until(lambda: log.shipping["cloudWatchLogs"].sent_seq == 1)
    with pytest.raises(AuditUnavailable, match="shipping it to cloudWatchLogs"):
        ShipNow(Layout(tmp_path / "audit.log"), cloud(logs.url)).run()
    await log.close()
    assert ShipNow(Layout(tmp_path / "audit.log"), cloud(logs.url)).run() is None


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"seq":-1}', b'{"seq":9,"sha256":"","sealed":99}', b"\xff" * 5000]
)
@one_loop
async def test_a_damaged_cursor_ships_all_again(tmp_path, logs, damage):
    layout = await write_log(tmp_path / "audit.log", 20)
    assert ShipNow(layout, cloud(logs.url)).run() is None
    next(layout.shipping.glob("*.json")).write_bytes(damage)
    assert ShipNow(layout, cloud(logs.url)).run() is None
    assert logs.lines() == lines_of(layout) * 2


# ---- syslog ----


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("receiver.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def tls_of(folder, **more):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, {"tls": {"caFile": str(folder / "cert.pem"), "serverName": "receiver.test", **more}}


@pytest.mark.parametrize("kind", ["unix", "udp", "tcp", "tls"])
async def test_syslog_messages_are_strictly_rfc_5424(tmp_path, certificates, kind):
    context, tls = tls_of(certificates) if kind == "tls" else (None, {})
    with receiver(kind, tmp_path, context=context) as (address, taking):
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [syslog(address, facility="local3", **tls)])
        await log.open()
        for n in range(500):
            log.record("sign", message=b"%d" % n, result="ok" if n % 2 else "error", key_id="0a")
        log.record("note", reason='a "quote", a ] and a \\ ü', tag='x"]\\ü')
        await log.flush()
        await until(lambda: len(taking.messages) >= 501)
        await log.close()
    assert taking.faults == []
    lines = lines_of(Layout(tmp_path / "audit.log"))
    for raw, line in zip(taking.messages, lines, strict=True):
        found, record = parse(raw), orjson.loads(line)
        assert found.text == line
        assert (found.facility, found.severity) == (19, 4 if record.get("result") == "error" else 6)
        assert (found.app_name, found.msgid) == ("hsmcore", record["operation"])
        assert found.procid == str(record["source"]["pid"])
        assert int(found.timestamp.timestamp() * 1e6) == pytest.approx(record["time_ns"] // 1000, abs=1)
        shown = found.data["hsmcore@32473"]
        assert shown["seq"] == str(record["seq"])
        assert shown.get("tag") == record.get("tag")
    assert parse(taking.messages[-1]).data["hsmcore@32473"]["tag"] == 'x"]\\ü'


@given(
    st.dictionaries(
        st.sampled_from(["result", "member", "tag", "user", "operation", "key_id", "source", "level"]),
        st.one_of(st.text(), st.integers(), st.none(), st.dictionaries(st.text(max_size=3), st.text())),
    ),
    st.integers(480, 4000),
    st.integers(-(1 << 70), 1 << 70),
)
def test_whatever_a_record_holds_the_message_is_one(fields, most, moment):
    try:
        line = orjson.dumps({"seq": 7, "time_ns": moment, **fields})
    except TypeError:
        return
    made = message(line, Syslog.model_validate({"address": "unix:///dev/log", "maxMessageBytes": most}))
    found = parse(made)
    assert found.data["hsmcore@32473"]["seq"] in ("7", "0")
    if len(made) <= most and found.text != line:
        summary = json.loads(found.text)
        assert summary["leaf_sha256"] == hashlib.sha256(b"\0" + line).hexdigest()


async def test_a_receiver_that_hangs_up_or_is_away_gets_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("hsmcore.audit.shipping.shipper._full_jitter", quick)
    with receiver("tcp", tmp_path) as (address, first):
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [syslog(address)])
        await log.open()
        first.drop_next = 2
        for n in range(300):
            log.record("sign", message=b"%d" % n)
        await log.flush()
        await until(lambda: log.shipping["syslog"].sent_seq == 300)
        await until(lambda: len(set(first.messages)) == 300)
    for n in range(100):
        log.record("sign", message=b"%d" % n)
    await log.flush()
    await until(lambda: log.shipping["syslog"].error is not None)
    with receiver("tcp", tmp_path, port=int(address.rpartition(":")[2])) as (_, second):
        await until(lambda: log.shipping["syslog"].lag_records == 0)
        await until(lambda: len(set(second.messages)) >= 100)
        await log.close()
    assert first.connections >= 3
    assert first.faults == second.faults == []
    arrived = [parse(raw).text for raw in first.messages + second.messages]
    assert first_times(arrived) == lines_of(Layout(tmp_path / "audit.log"))


@one_loop
async def test_a_receiver_that_takes_nothing_delays_closing_only_shortly(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr("hsmcore.audit.shipping.service.CLOSE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        place = syslog(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        log = AuditLog(str(tmp_path / "audit.log"), settings(), [place])
        await log.open()
        for n in range(20_000):
            log.record("sign", message=b"%d" % n)
        begun = time.monotonic()
        await log.close()
        assert time.monotonic() - begun < 30
    assert last_seq(Layout(tmp_path / "audit.log")) == 20_000


IMPOSSIBLE = [
    f"tls://{'a' * 64}.example.com",
    "tcp://logs..example.com",
    "udp://logs..example.com:514",
    "tcp://[::1]:99999",
]


@pytest.mark.parametrize("address", IMPOSSIBLE)
async def test_an_address_that_cannot_exist_is_reported_and_leaves_no_lock(tmp_path, address):
    log = AuditLog(str(tmp_path / "audit.log"), settings(), [syslog(address)])
    await log.open()
    log.record("sign", message=b"1")
    await until(lambda: log.shipping["syslog"].error is not None)
    assert address in log.shipping["syslog"].error
    assert log.shipping["syslog"].lag_records == 1
    await log.close()
    assert address in ShipNow(Layout(tmp_path / "audit.log"), syslog(address)).run()


@one_loop
async def test_a_file_of_authorities_that_is_missing_is_named(tmp_path, certificates):
    layout = await write_log(tmp_path / "audit.log", 3)
    context, tls = tls_of(certificates, caFile=str(tmp_path / "absent.pem"))
    with receiver("tls", tmp_path, context=context) as (address, _):
        assert f"{tmp_path}/absent.pem: No such file" in ShipNow(layout, syslog(address, **tls)).run()


@pytest.mark.parametrize("wrong", [{"serverName": "other.test"}, {"caFile": None}])
@one_loop
async def test_a_receiver_that_cannot_prove_its_name_gets_nothing(tmp_path, certificates, wrong):
    layout = await write_log(tmp_path / "audit.log", 3)
    context, tls = tls_of(certificates, **wrong)
    with receiver("tls", tmp_path, context=context) as (address, taking):
        problem = ShipNow(layout, syslog(address, **tls)).run()
    assert "CERTIFICATE_VERIFY_FAILED" in problem or "certificate" in problem.lower()
    assert taking.messages == []


@one_loop
async def test_records_that_were_not_shipped_are_not_pruned(tmp_path, logs):
    logs.fail = ["ThrottlingException"] * 10_000
    path = str(tmp_path / "audit.log")
    layout = await write_log(tmp_path / "audit.log", 900)
    before = segments(layout)
    rules = settings(retainDays=1, checkpointEveryRecords=1)
    log = AuditLog(path, rules, [cloud(logs.url)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time_ns", lambda real=time.time_ns: real() + 3 * 86_400 * 10**9)
        patch.setattr("hsmcore.base.steady.HELD_NS", 0)
        await log.open()
        log.record("sign", message=b"x")
        await log.flush()
        await log.checkpoint()
        await log.close()
    assert [segment.first for segment in segments(layout)][: len(before)] == [segment.first for segment in before]


def test_the_command(tmp_path, logs):
    path = tmp_path / "audit.log"
    layout = asyncio.run(write_log(path, 30))
    config = tmp_path / "hsm.json"
    place = {"logGroup": "hsm", "logStream": "audit", "region": "us-east-1", "endpointUrl": logs.url}
    manager = {
        "type": "softhsm",
        "config": {"tokenLabel": "t", "keyLabel": "k", "pin": {"env": "NONE"}},
        "auditLogFile": str(path),
    }

    def run(code, **more):
        config.write_text(json.dumps({"keyManager": manager | more}))
        done = zygote.run(zygote.CLI, "audit", "ship", "--config", config, "--json", text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if code < 2 else done.stderr

    assert "nowhere to ship to" in run(2)
    assert run(0, cloudWatchLogs=place) == {"cloudWatchLogs": {"sentSeq": 30, "lagRecords": 0, "error": None}}
    assert logs.lines() == lines_of(layout)
    left = run(1, audit={"syslog": {"address": f"unix://{tmp_path}/nobody"}})["syslog"]
    assert (left["sentSeq"], left["lagRecords"]) == (0, 30)
    assert "No such file" in left["error"]
