"""hsmcore as a witness: the console's server cosigns logs that only grow, and no history beside that."""

from __future__ import annotations

import base64
import random
import urllib.request

import pytest
from nacl.signing import SigningKey
from tests.support.audit_logs import keys_of, settings, write_log
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.rfc6962 import root_of
from tests.support.witness_server import line_of, vkey

import hsmcore
from hsmcore.audit import AuditLog
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.serve import attached
from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.note import VerifierKey

ORIGIN = "example.com/log"


class Log:
    """A log by its leaves' hashes, from RFC 6962."""

    def __init__(self, leaves=(), secret=None):
        self.leaves, self.secret = list(leaves), secret or SigningKey.generate()
        self.key = vkey(ORIGIN, 1, bytes(self.secret.verify_key))

    def note(self, size):
        text = f"{ORIGIN}\n{size}\n{base64.b64encode(root_of(self.leaves[:size])).decode()}\n".encode()
        return text + b"\n" + line_of(ORIGIN, 1, bytes(self.secret.verify_key), self.secret.sign(text).signature)

    def request(self, old, size):
        path = proof(old, self.leaves[:size], whole=True) if 0 < old < size else []
        lines = [b"old %d" % old, *(base64.b64encode(one) for one in path), b"", b""]
        return b"\n".join(lines) + self.note(size)


def proof(old, leaves, *, whole):
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if old == len(leaves):
        return [] if whole else [root_of(leaves)]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= half:
        return [*proof(old, leaves[:half], whole=whole), root_of(leaves[half:])]
    return [*proof(old - half, leaves[half:], whole=False), root_of(leaves[:half])]


def hashes(seed, count):
    chosen = random.Random(seed)
    return [chosen.randbytes(32) for _ in range(count)]


def witness_of(folder, *logs):
    return LogWitness(folder, "w.example", [VerifierKey.parse(log.key) for log in logs])


def test_no_other_history_is_cosigned_whatever_its_holder_knows(tmp_path):
    """200 logs, each written again from somewhere by who has its key, with the proof of each size that may help."""
    for seed in range(200):
        chosen = random.Random(seed)
        size, more = chosen.randint(1, 70), chosen.randint(0, 40)
        log = Log(hashes(seed, size))
        witness = witness_of(tmp_path / str(seed), log)
        assert witness.add(log.request(0, size)).status == 200
        at = chosen.randrange(size)
        other = Log([*log.leaves[:at], *hashes(seed + 1000, size - at + more)], log.secret)
        for old in {0, at, size, size + more}:
            for new in {at, size, size + more}:
                if old <= new and other.leaves[:new] != log.leaves[: len(other.leaves[:new])]:
                    assert witness.add(other.request(old, new)).status in (400, 409, 422), (seed, old, new)
        true = Log([*log.leaves, *hashes(seed + 2000, more + 1)], log.secret)
        again = witness_of(tmp_path / str(seed), log)  # as after a restart
        answer = again.add(true.request(size, size + more + 1))
        assert answer.status == 200
        name, _, said = answer.content.decode().removeprefix("\u2014 ").partition(" ")
        value = base64.b64decode(said)
        assert (name, value[:4]) == ("w.example", again.key.id)
        assert again.key.accepts(true.note(size + more + 1).partition(b"\n\n")[0] + b"\n", value[4:])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (lambda log: b"", 400),
        (lambda log: b"\xff" * 4000, 400),
        (lambda log: log.request(0, 5).replace(b"old 0", b"old 00"), 400),
        (lambda log: log.request(0, 5).replace(b"old 0", b"old -1"), 400),
        (lambda log: log.request(0, 5).replace(b"old 0", b"old 9"), 400),
        (lambda log: log.request(0, 5).replace(b"old 0\n", b"old 0\nAAAA\n"), 400),
        (lambda log: log.request(0, 5).replace(b"old 0\n", b"old 0\n" + base64.b64encode(bytes(32)) + b"\n"), 422),
        (
            lambda log: log.request(0, 5).replace(b"old 0\n", b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 64),
            400,
        ),
        (lambda log: log.request(3, 5), 409),
        (lambda log: Log(log.leaves).request(0, 5), 403),
        (lambda log: log.request(0, 5).replace(b"\n5\n", b"\n4\n"), 403),
        (lambda log: log.request(0, 5).replace(b"example.com/log", b"example.com/lag"), 404),
    ],
)
def test_what_is_no_request_is_refused_and_nothing_is_remembered(tmp_path, body, status):
    log = Log(hashes(0, 9))
    witness = witness_of(tmp_path / "w", log)
    assert witness.add(body(log)).status == status
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["key"]
    assert (tmp_path / "w" / "key").stat().st_mode & 0o077 == 0
    assert witness.add(log.request(0, 5)).status == 200
    assert witness.add(log.request(5, 5)).status == 200, "the same again has a new time"
    assert witness.add(log.request(0, 9)).content == b"5\n"


def test_a_damaged_memory_cosigns_nothing(tmp_path):
    log = Log(hashes(0, 9))
    witness = witness_of(tmp_path / "w", log)
    assert witness.add(log.request(0, 5)).status == 200
    [place] = [path for path in (tmp_path / "w").iterdir() if path.name != "key"]
    place.write_bytes(b"")
    with pytest.raises(ValueError, match="no blank line"):
        witness.add(log.request(0, 9))


@pytest.mark.integration
@one_loop
async def test_a_host_cosigns_the_log_of_another(tmp_path, world):
    layout = await write_log(tmp_path / "audit.log", 300)
    [key] = keys_of(layout)
    rules = {"name": "host-1.example/w", "folder": str(tmp_path / "witness"), "logs": [str(key)]}
    config = world.config(monitoring={"listen": "127.0.0.1:0", "witness": rules})
    async with opened(config) as km, attached(km) as site:
        said = urllib.request.urlopen(f"{site.address}/witness", timeout=30).read().decode().strip()  # noqa: S310, ASYNC210
        log = AuditLog(str(layout.log), settings(witnesses=[{"url": site.address, "key": said}], cosignEverySeconds=1))
        await log.open()
        await until(lambda: log.witnesses["host-1.example/w"].size >= 300)
        await log.close()
        assert verify(layout, Trust(witnesses=[VerifierKey.parse(said)])).findings == []


def test_a_key_that_others_may_read_signs_nothing(tmp_path):
    log = Log(hashes(0, 9))
    witness_of(tmp_path / "w", log)
    (tmp_path / "w" / "key").chmod(0o644)
    with pytest.raises(hsmcore.AuditUnavailable, match="open to others"):
        witness_of(tmp_path / "w", log)
