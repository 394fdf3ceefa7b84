"""The gateway's TLS context: files that change, and sessions that no client takes up again."""

from __future__ import annotations

import os
import ssl
import time
from contextlib import suppress

import pytest
from tests.support.certificates import self_signed

from hsmcore.config.gateway import GatewayTls
from hsmcore.errors import ConfigurationError
from hsmcore.gateway import tls
from hsmcore.gateway.tls import Tls


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go on as the test says."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def made(folder, *, wire=True):
    return Tls(GatewayTls.model_validate(self_signed(folder)), wire=wire)


def handshake(server, client, session=None):
    """Connect in memory. Returns whether the client's session went on, and the session."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname="127.0.0.1", session=session),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"  # and tickets, if the server sends any
    found = ends[0].session_reused, ends[0].session
    for end in (*ends, ends[0]):  # a session that ends without it is kept by some Pythons only
        with suppress(ssl.SSLWantReadError):
            end.unwrap()
    return found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_client_takes_up_a_session_again(tmp_path, version):
    server = made(tmp_path, wire=False)
    client = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    client.minimum_version = client.maximum_version = version
    _, session = handshake(server.context, client)
    assert handshake(server.context, client, session)[0] is False
    assert session is None or not session.has_ticket


def test_files_that_change_are_in_use_for_the_next_connection_but_not_before_a_second(tmp_path, clock):
    server = made(tmp_path)
    first = server.context
    clock[0] += tls.LOOK_SECONDS
    assert server.context is first
    self_signed(tmp_path)
    assert server.context is first
    clock[0] += tls.LOOK_SECONDS
    second = server.context
    assert second is not first
    client = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    handshake(second, client)
    (tmp_path / "key.pem").write_text("no key")
    clock[0] += tls.LOOK_SECONDS
    assert server.context is second  # what cannot be used changes nothing
    (tmp_path / "key.pem").unlink()
    clock[0] += tls.LOOK_SECONDS
    assert server.context is second


def test_a_start_with_files_that_cannot_be_used_is_refused(tmp_path):
    files = self_signed(tmp_path)
    os.truncate(files["keyFile"], 10)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Tls(GatewayTls.model_validate(files), wire=True)


@pytest.mark.parametrize(
    ("wire", "mode", "least", "protocol"),
    [
        (True, ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_3, "hsmcore-wire/1"),
        (False, ssl.CERT_OPTIONAL, ssl.TLSVersion.TLSv1_2, "http/1.1"),
    ],
)
def test_wire_and_http_have_their_own_versions_protocols_and_certificates(tmp_path, wire, mode, least, protocol):
    files = self_signed(tmp_path)
    assert Tls(GatewayTls.model_validate(files), wire=wire).context.verify_mode == ssl.CERT_NONE
    files["clientCaFile"] = files["certificateFile"]
    context = Tls(GatewayTls.model_validate(files), wire=wire).context
    assert context.verify_mode == mode
    assert context.minimum_version == least
    assert context.cert_store_stats()["x509"] == 1
    server = made(tmp_path, wire=wire)
    for offered, selected in (([protocol], protocol), (["h2", protocol], protocol), (["h2"], None), ([], None)):
        client = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        if offered:
            client.set_alpn_protocols(offered)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(back, there, server_hostname="127.0.0.1"),
            server.context.wrap_bio(there, back, server_side=True),
        ]
        for end in (*ends, *ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        assert [end.selected_alpn_protocol() for end in ends] == [selected] * 2
