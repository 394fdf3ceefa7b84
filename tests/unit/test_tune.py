"""`hsmcore tune` without a device: the knee of a curve, one number in a file, the picture."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore.errors import ConfigurationError
from hsmcore_bench.tune.document import replace, with_sessions
from hsmcore_bench.tune.knee import GROWN, bracket, knee
from hsmcore_bench.tune.picture import picture
from hsmcore_bench.tune.sweep import AROUND, FLAT, Found, Point, Sweep, Visit, visits_at_most

Servers = st.integers(1, 300)
Noise = st.lists(st.floats(-0.03, 0.03), min_size=24, max_size=24)


def swept(rate: Callable[[int], float]) -> dict[int, float]:
    """What a sweep measures of a device of these rates: doublings, and points around the knee."""
    counts = [1]
    while len(counts) < 2 or rate(counts[-1]) >= FLAT * rate(counts[-2]):
        counts.append(2 * counts[-1])
    left, right = bracket({k: rate(k) for k in counts})
    counts += [left + (right - left) * part // (AROUND + 1) for part in range(1, AROUND + 1)]
    return {k: rate(k) for k in sorted({*counts} - {0})}


def measured(servers: int) -> dict[int, float]:
    """Of a device whose servers do not disturb each other."""
    return swept(lambda sessions: 250.0 * min(sessions, servers))


@given(Servers)
def test_the_knee_of_an_ideal_device_is_its_servers(servers):
    assert knee(measured(servers)) == servers


@settings(max_examples=share(400))
@given(Servers, Noise)
def test_noise_of_three_percent_moves_the_knee_by_an_eighth_at_most(servers, noise):
    exact = measured(servers)
    noisy = {k: rate * (1.0 + more) for (k, rate), more in zip(exact.items(), noise, strict=False)}
    assert abs(knee(noisy) - servers) <= servers / 8


@given(Servers, Servers)
def test_more_servers_have_no_lower_knee(one, other):
    fewer, more = sorted((one, other))
    points = measured(more).keys() | measured(fewer).keys()
    assert knee({k: float(min(k, fewer)) for k in points}) <= knee({k: float(min(k, more)) for k in points})


@given(st.dictionaries(st.integers(1, 1024), st.floats(1.0, 1e6), min_size=1), st.integers(-9, 9))
def test_the_speed_of_a_device_and_what_adds_nothing_do_not_count(rates, power):
    found = knee(rates)
    assert 1 <= found <= max(rates)
    assert knee({k: rate * 2.0**power for k, rate in rates.items()}) == found
    assert knee(rates | {2000: max(rates.values())}) == found
    left, right = bracket(rates)
    assert left < right
    assert rates.get(left, 0.0) < GROWN * max(rates.values()) <= rates[right]


@given(st.floats(0.1, 50.0))
def test_a_device_that_saturates_slowly_is_nearly_as_fast_at_its_knee(half):
    def rate(sessions: int) -> float:
        return sessions / (sessions + half)

    rates = swept(rate)
    assert rate(knee(rates)) >= 0.88 * max(rates.values())


DOCUMENT = '{"keyManager": {"type": "pkcs11", "config": {"pin": "}{,", "sessions":2 , "keyLabel": "k"}}}'
LAID_OUT = """{
  "keyManager": {
    "config": {
      "a": [1, {"b": 2}],
      "sess": "ions"MORE
    }
  }
}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (DOCUMENT, DOCUMENT.replace(":2 ", ":12 ")),
        ("\ufeff" + DOCUMENT.replace(" ", "\r\n\t"), "\ufeff" + DOCUMENT.replace(" ", "\r\n\t").replace(":2", ":12")),
        ('{"keyManager":{"config":{"a":1}}}', '{"keyManager":{"config":{"a":1,"sessions": 12}}}'),
        (LAID_OUT.replace("MORE", ""), LAID_OUT.replace("MORE", ',\n      "sessions": 12')),
        ('{"keyManager": {"config": {"sess\\u0069ons": 2}}}', '{"keyManager": {"config": {"sess\\u0069ons": 12}}}'),
    ],
)
def test_one_number_changes_and_nothing_else(before, after):
    assert with_sessions(before, "$.keyManager", 12) == after
    json.loads(after.removeprefix("\ufeff"))


Text = st.text(max_size=6)
Json = st.recursive(
    st.none() | st.integers() | Text,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(Text, one, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(Text, Json, max_size=3),
    st.lists(Json, max_size=3),
    st.integers(1, 1024),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_the_number_is_put_where_the_loader_reads_it(settings, others, sessions, indent, escaped):
    provider = {"type": "x", "config": {"pin": "p", **settings}}
    document = {"sequencer": {"keyManager": {"failover": {"primary": [*others, provider, *others]}}}}
    text = json.dumps(document, indent=indent, ensure_ascii=escaped)
    made = json.loads(with_sessions(text, f"$.sequencer.keyManager.failover.primary[{len(others)}]", sessions))
    provider["config"]["sessions"] = sessions
    assert made == document


def test_a_file_is_replaced_whole_with_its_mode_and_behind_its_link(tmp_path):
    file, link = tmp_path / "real.json", tmp_path / "link.json"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    owner = file.stat()
    replace(link, b"old", b"new", "do")
    now = file.stat()
    assert file.read_bytes() == b"new"
    assert (now.st_mode, now.st_uid, now.st_gid) == (owner.st_mode, owner.st_uid, owner.st_gid)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]
    replace(link, b"new", b"new", "do")
    assert file.stat() == now


def test_a_file_that_was_changed_meanwhile_is_left_alone(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b"other")
    with pytest.raises(ConfigurationError, match="was changed while"):
        replace(file, b"old", b"new", "do")
    assert file.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [file]


class Simulated(Sweep):
    """A sweep of a device with twelve servers whose every second visit is disturbed: it makes a fifth less."""

    async def _visit(self, sessions: int) -> None:
        visits = self.visits.setdefault(sessions, [])
        disturbed = 0.8 if sessions % 4 == 2 and len(visits) % 2 else 1.0
        visits.append(Visit(250.0 * min(sessions, 12) * disturbed, ((4_000_000, 100),), 100))


def test_points_whose_visits_differ_get_more_of_them():
    sweep = Simulated(lambda _sessions: pytest.fail("nothing is opened"), 128, 1.0)
    found = asyncio.run(sweep.run())
    visits = {sessions: len(visits) for sessions, visits in sweep.visits.items()}
    assert visits == {1: 3, 2: 6, 4: 3, 8: 3, 10: 6, 12: 3, 14: 6, 16: 3, 32: 3}
    assert found.knee == 12
    assert not found.growing
    assert sum(visits.values()) <= visits_at_most(128)


def test_the_picture_marks_the_knee():
    points = tuple(
        Point(k, 250.0 * min(k, 12), 249.0 * min(k, 12), 251.0 * min(k, 12), 4_000_000, 8_000_000)
        for k in (1, 2, 4, 8, 12, 16, 32)
    )
    drawn = picture({"a<b": Found(12, points, 1000, False, None)})
    text = " ".join(ET.fromstring(drawn).itertext())  # noqa: S314  # our own
    assert "a<b: signatures per second" in text
    assert "knee: 12 sessions" in text
    assert "a<b: the knee is at 12 sessions: 3,000/s, p99 8.00 ms in the module; 16 sessions make 3,000/s" in text
