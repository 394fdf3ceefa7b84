"""The CloudHSM library's configuration file, and the choice of a token by what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmcore.config import load
from hsmcore.doctor.subject import Subject
from hsmcore.members.control import TokenRecord, TokenSelector
from hsmcore.providers.cloudhsm import probe
from hsmcore.providers.cloudhsm.client import ClientUnreadable, check_client, read_client

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["clusters", "cluster", "servers", "hostname", "enable", "x"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)
A, B = "cluster-aaaa1111", "cluster-bbbb2222"


def entry(*servers: str, **more: Any) -> dict[str, Any]:
    inner = {"hsm_ca_file": "/x", "servers": [{"hostname": host, "port": 2223, "enable": True} for host in servers]}
    return {"type": "hsm1", "cluster": inner | more}


def configured(path: Path, **config: Any) -> Any:
    config = {"username": "u", "password": {"env": "P"}, "keyLabel": "k", "clientConfig": str(path), **config}
    return load({"keyManager": {"type": "aws-cloudhsm", "config": config}}).key_manager.config


@settings(deadline=None)
@given(st.one_of(JSON.map(json.dumps), st.text(), st.just("[" * 100_000)))
def test_a_strange_file_is_unreadable_and_nothing_worse(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "client.cfg"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_client(str(path))
    except ClientUnreadable:
        assert check_client(configured(path))[0].path == "$.keyManager.config.clientConfig"
    else:
        assert isinstance(found, list)


def test_what_configure_pkcs11_writes(tmp_path: Path) -> None:
    path = tmp_path / "cloudhsm-pkcs11.cfg"
    two = entry("10.0.1.1", "10.0.1.2", options={"cluster_id": A}, region="us-east-1")
    two["cluster"]["servers"][1]["enable"] = False
    path.write_text(json.dumps({"clusters": [two, entry("fd00::1")], "logging": {"log_type": "term"}}))
    first, second = read_client(str(path)) or []
    assert (first.cluster_id, first.region, first.servers) == (A, "us-east-1", ("10.0.1.1",))
    assert (second.cluster_id, second.region, second.servers) == (None, None, ("fd00::1",))
    assert read_client(str(tmp_path / "absent")) is None
    with pytest.raises(ClientUnreadable, match="cannot be read"):
        read_client(str(tmp_path))


@pytest.mark.parametrize(
    ("endpoint", "servers", "agrees"),
    [
        ("10.0.1.1", ("10.0.1.1",), True),
        ("10.0.1.1", ("10.0.1.2", "10.0.1.1"), True),
        ("10.0.1.1", ("10.0.1.2",), False),
        ("10.0.1.1", (), False),
        ("fd00:0:0::1", ("fd00::1",), True),
        ("[fd00::1]", ("fd00::1",), True),
        ("hsm.internal", ("HSM.internal.",), True),
        ("hsm.internal", ("other.internal",), False),
        ("hsm.internal", ("10.0.1.1",), True),  # may be its name
        ("10.0.1.1", ("hsm.internal",), True),
    ],
)
def test_an_endpoint_is_refused_where_it_is_surely_another(
    tmp_path: Path, endpoint: str, servers: tuple[str, ...], agrees: bool
) -> None:
    path = tmp_path / "cfg"
    path.write_text(json.dumps({"clusters": [entry(*servers)]}))
    assert (check_client(configured(path, clusterEndpoint=endpoint)) == []) is agrees


def test_only_the_servers_of_the_named_cluster_count(tmp_path: Path) -> None:
    path = tmp_path / "cfg"
    path.write_text(json.dumps({"clusters": [entry("10.0.1.1", id=A), entry("10.0.2.1", id=B)]}))
    assert check_client(configured(path, clusterId=B, clusterEndpoint="10.0.2.1")) == []
    [fault] = check_client(configured(path, clusterId=B, clusterEndpoint="10.0.1.1"))
    assert fault.path == "$.keyManager.config.clusterEndpoint"
    assert "10.0.2.1" in fault.problem


# ---- tokens ----


def token(slot: int, description: str = "", label: str = "hsm1", serial: str = "1") -> TokenRecord:
    return TokenRecord(slot, label, serial, "Marvell", "LS2", description)


NAMED = st.sampled_from([A, B, "aaaa1111", "bbbb2222", "", "x aaaa11112"])


@given(st.lists(NAMED, max_size=4), st.sampled_from([A, B, None]))
def test_a_token_that_names_another_cluster_is_never_chosen(names: list[str], text: str | None) -> None:
    tokens = [token(slot, name) for slot, name in enumerate(names)]
    chosen = TokenSelector(text=text).choose(tokens)
    if text is None:
        assert chosen == tokens
        return
    other = B if text == A else A
    assert all(other not in t.slot_description for t in chosen)
    named = [t for t in tokens if t.slot_description in (text, text.removeprefix("cluster-"))]
    if named:
        assert chosen == named
    else:
        assert chosen == [t for t in tokens if t.slot_description != other]


def test_other_selectors_come_first() -> None:
    tokens = [token(0, A, serial="1"), token(1, A, serial="2"), token(2, B, serial="2")]
    assert TokenSelector(serial="2", text=A).choose(tokens) == [tokens[1]]
    assert TokenSelector(slot_id=2, text=A).choose(tokens) == []
    assert TokenSelector(label="hsm1").choose(tokens) == tokens
    assert "slot 0" in str(tokens[0])


def test_doctor_does_not_call_good_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "client.cfg"
    monkeypatch.setattr(probe, "CLIENT_CONFIG", str(path))
    monkeypatch.setattr("hsmcore.providers.cloudhsm.client.CLIENT_CONFIG", str(path))
    given = {"username": "u", "password": {"env": "P"}, "keyLabel": "k", "clusterHealthIntervalMs": 0}
    config = load({"keyManager": {"type": "aws-cloudhsm", "config": given}})
    subject = Subject(config.key_manager.own, config, "primary")
    [step] = probe.probe_cluster(subject)
    assert (step.outcome, step.found) == ("warn", f"there is no {path}")
    assert "configure-pkcs11" in step.hint
    path.write_text(json.dumps({"clusters": [entry("10.0.0.1")]}))
    [step] = probe.probe_cluster(subject)
    assert (step.outcome, step.found) == ("ok", f"{path} does not contradict the configuration")
