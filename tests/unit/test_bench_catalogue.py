"""Scenario files: what they may say, what they stand for, and that every mistake is named with its place."""

from __future__ import annotations

import string
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore_bench.suite.catalogue import FOLDER, ContenderRow, entries, expand, failures, kills, read, shipped
from hsmcore_bench.suite.contenders import contenders
from hsmcore_bench.suite.devices import DEVICES
from hsmcore_bench.suite.failover import REQUESTS_PER_SECOND
from hsmcore_bench.suite.targets import TARGETS

HEAD = 'title = "t"\nabout = "a"\norder = 1\n'
ROW = '[[contender]]\nname = "mine"\ntitle = "Mine"\nkind = "sign"\n'


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_catalogue_is_consistent():
    everyone = contenders(2)
    assert len({c.name for c in everyone}) == len(everyone)
    assert {c.reference for c in everyone} - {None} <= {c.name for c in everyone}
    assert {c.device for c in everyone} - {None} <= DEVICES.keys()
    for entry in shipped():
        curve = [c for c, _ in expand(entry, 2)]
        assert entry.said.chart != "curve" or all(c.series for c in curve)
        assert entry.said.sizes is None or entry.said.x == "sessions"
    assert {c.name for c in kills()} == {"host", "sessions", "sessions-5ms", "rotation"}
    assert [c.bound_ms for c in failures()] == [150.0, 150.0, 650.0, None]
    assert f"{REQUESTS_PER_SECOND:,} requests a second" in next(e for e in shipped() if e.name == "primary").said.about


UNTARGETED = {
    "sign-8": "a point between one caller and 64",
    "sign-256": "a point beyond 64",
    "pkcs11-*": "peers; over-executor and over-executor-5ms hold us against one where the module is not the limit",
    "pykcs11": "a peer, for scale",
    "*-again": "the same case twice: what the machine can resolve",
    "failover-*": "its cost is below what times can show: make guard",
    "policy-noop*": "its cost is below what times can show: make guard",
    "device-5ms-pykcs11": "a peer, for scale where the module is not the limit",
    "software-*": "no HSM: for scale",
    "curve-*": "points of a curve; sign-64 has the bound",
    "size-*": "points of a curve; sign-64 has the bound",
    "sign-p256": "the token's arithmetic hides what is ours",
    "sign-secp256k1": "the token's arithmetic hides what is ours",
    "profile-*": "further devices, kept as full as each takes; device-x2 and device-5ms have the bounds",
    "audit-interval": "between write and fsync, which have bounds",
}
"""Contenders with a reference that no target holds against it, and why not."""


def test_what_has_a_reference_has_a_target_or_a_reason():
    held = {need for target in TARGETS for need in target.needs}
    without = {c.name for c in contenders(2) if c.reference is not None} - held
    assert {name for name in without if not any(fnmatchcase(name, pattern) for pattern in UNTARGETED)} == set()
    idle = {pattern for pattern in UNTARGETED if not any(fnmatchcase(name, pattern) for name in without)}
    assert idle == set(), "has a target now"


def test_a_list_is_one_contender_for_each_of_its_values(written):
    rows = ROW.replace('"mine"', '"mine-{members}"').replace("Mine", "{members} of {in_flight}")
    entry = read(written(HEAD + rows + 'members = [2, 4]\nin_flight = [64, 1024]\nsessions = "cores"\n'))
    found = [c for c, _ in expand(entry, 3)]
    assert [(c.name, c.members, c.in_flight, c.sessions) for c in found] == [
        ("mine-2", 2, 64, 3),
        ("mine-4", 4, 1024, 3),
    ]
    assert found[1].title == "4 of 1,024"
    assert {c.scenario for c in found} == {"mine"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD + ROW + "inflight = 3\n", "contender[0] (mine).inflight: no such field"),
        (HEAD + "colour = 1\n" + ROW, "colour: no such field"),
        (HEAD + ROW + 'in_flight = "many"\n', "contender[0] (mine).in_flight: "),
        (HEAD + ROW + "in_flight = 0\n", "contender[0] (mine).in_flight: "),
        (HEAD + ROW + "in_flight = [1, 2]\nsessions = [1, 2, 3]\n", "lists must be equally long"),
        (HEAD + ROW + 'device = "toaster"\n', "device must be one of 5ms"),
        (HEAD + ROW + "per_second = 10.0\n", "per_second or share belongs to"),
        (HEAD + ROW.replace('"sign"', '"sign-open"') + "share = 0.8\nper_second = 10.0\n", "need one of them"),
        (HEAD + ROW.replace('"sign"', '"sign-open"'), "per_second or share belongs to"),
        (HEAD + ROW.replace("Mine", "{colour}"), "{colour} is no field of a contender"),
        (HEAD + ROW.replace("Mine", "{in_flight.real}"), "a brace without its partner"),
        (HEAD + ROW.replace('"mine"', '"Mine!"'), "contender[0] (Mine!).name: "),
        (HEAD + 'chart = "curve"\n' + ROW, "x belongs to chart"),
        (HEAD, "needs a [[contender]] or an event"),
        (HEAD.replace("order = 1", 'order = "1"') + ROW, "order: "),
        (ROW, "title: "),
        ("title = [", "mine.toml: "),
    ],
)
def test_every_mistake_is_named_with_its_place(text, problem, written):
    path = written(text)
    with pytest.raises(ValueError, match=r"mine\.toml: ") as caught:
        read(path)
    assert problem in str(caught.value)


def test_all_mistakes_are_named_at_once(written):
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        read(written(HEAD + "colour = 1\n" + ROW + "inflight = 3\n"))
    assert "colour: no such field" in str(caught.value)
    assert "contender[0] (mine).inflight" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("signing", ROW, "there is a scenario of this name"),
        ("mine", ROW.replace('"mine"', '"raw"'), "raw is in signing.toml, too"),
        ("mine", ROW + 'reference = "nobody"\n', "mine: no contender nobody"),
    ],
)
def test_files_must_fit_together(name, row, problem, written):
    with pytest.raises(ValueError, match=problem):
        entries((str(written(HEAD + row, name)),))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml"):
        read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.toml"):
        read(tmp_path / "binary.toml")


@settings(max_examples=share(60))
@given(
    st.sampled_from(sorted(path.name for path in FOLDER.glob("*.toml"))),
    st.text(string.ascii_lowercase + "_", min_size=1, max_size=12),
)
def test_no_field_that_is_unknown_is_taken(tmp_path_factory, name, field):
    """Whatever is added to a row of a shipped file: if the model does not know it, the file is refused."""
    text = (FOLDER / name).read_text()
    if "[[contender]]" not in text or field in tomllib.loads(text)["contender"][-1]:
        return
    place = tmp_path_factory.getbasetemp() / name
    place.write_text(f"{text}\n{field} = 1\n")
    if field in ContenderRow.model_fields:
        return
    with pytest.raises(ValueError, match=f"{field}: no such field"):
        read(place)


def test_a_misspelt_field_is_recognized(written):
    with pytest.raises(ValueError, match=r'ordre: no such field; did you mean "order"\?'):
        read(written(f"ordre = 9\n{HEAD}{ROW}"))


def test_contenders_of_an_own_file_take_part(written):
    path = str(written(HEAD + ROW + 'reference = "raw"\n'))
    assert "mine" in {c.name for c in contenders(2, (path,))}
