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


def made(folder, **given):
    return Tls(GatewayTls.model_validate(self_signed(folder) | given), required=True)


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
    server = made(tmp_path)
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
        Tls(GatewayTls.model_validate(files), required=True)


@pytest.mark.parametrize(("required", "mode"), [(True, ssl.CERT_REQUIRED), (False, ssl.CERT_OPTIONAL)])
def test_a_client_s_certificate_is_asked_for_where_an_authority_is_named(tmp_path, required, mode):
    files = self_signed(tmp_path)
    assert Tls(GatewayTls.model_validate(files), required=required).context.verify_mode == ssl.CERT_NONE
    files["clientCaFile"] = files["certificateFile"]
    context = Tls(GatewayTls.model_validate(files), required=required, alpn=["h2"]).context
    assert context.verify_mode == mode
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.cert_store_stats()["x509"] == 1
