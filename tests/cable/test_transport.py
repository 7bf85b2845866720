"""Where a socket's name leads: resolved once, and both the certificate and the stream come from there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import SOCKET_NODE, make_certificate
from wattline.cable.link.transport import Endpoint, SocketUnreachable, fetch_certificate, open_channel, resolve
from wattline.cable.settings import SocketAddress, parse_address

READY_S = 10


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that only this machine's resolver knows, as those of mDNS, with their addresses."""
    known: dict[str, list[str]] = {}
    real: Callable[..., Any] = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [found for each in known.get(host, [host]) for found in real(each, *args, **kwargs)]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    return known


def test_a_session_is_bought_from_a_socket_whose_name_only_this_machine_can_resolve(
    bench: Bench, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its addresses the first does not answer; no proxy of the environment is asked."""
    names["socket.local"] = ["127.0.0.2", "127.0.0.1"]
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    bench.socket_settings["address"] = f"{SOCKET_NODE}@socket.local:{bench.socket.port}"
    bench.start()
    bench.until(payments=2)
    assert bench.finish().is_good


def test_a_name_that_cannot_be_resolved_is_named_with_the_reason() -> None:
    with pytest.raises(SocketUnreachable, match=r"no-such-host\.invalid:9750"):
        resolve(SocketAddress("no-such-host.invalid", 9750, None))


def test_where_nothing_answers_at_any_address_the_last_reason_is_told(names: dict[str, list[str]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names["socket.local"] = ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(SocketUnreachable, match=rf"socket\.local:{port}: Connection refused"):
        fetch_certificate(SocketAddress("socket.local", port, None))


def test_a_scoped_address_is_taken_and_kept_for_people() -> None:
    address = parse_address(f"{SOCKET_NODE}@[fe80::1%eth0.10]:9750")
    assert (address.host, address.port) == ("fe80::1%eth0.10", 9750)
    assert address.target == "[fe80::1%eth0.10]:9750"


def test_the_loopback_interface_can_be_the_scope() -> None:
    (endpoint,) = resolve(SocketAddress("fe80::1%lo", 9750, None))
    scope = socket.if_nametoindex("lo")
    assert endpoint == Endpoint(socket.AF_INET6, ("fe80::1", 9750, 0, scope))
    assert endpoint.target == f"ipv6:[fe80::1%25{scope}]:9750"


def own_scoped_addresses() -> list[str]:
    """Of the machine's interfaces, as a person would write them."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    found = []
    for digits, _, _, scope, _, interface in (line.split() for line in lines):
        if scope == "20":
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            found.append(f"{address}%{interface}")
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", *own_scoped_addresses()])
def test_the_stream_goes_to_the_address_that_presented_the_certificate(host: str) -> None:
    tls = make_certificate()
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)])
    try:
        port = server.add_secure_port(f"[{host}]:0" if ":" in host else f"{host}:0", credentials)
    except RuntimeError:
        pytest.skip(f"this machine has no {host}")
    server.start()
    try:
        presented = fetch_certificate(SocketAddress(host, port, None))
        assert presented.sha256 == tls.sha256
        with open_channel(presented) as channel:
            grpc.channel_ready_future(channel).result(READY_S)
    finally:
        server.stop(0).wait()
