"""The address on which cables are served."""

from __future__ import annotations

import pytest

from wattline.core.errors import UsageError
from wattline.plugin.lifecycle import parse_listen


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:9750", "127.0.0.1:9750"),
        ("0.0.0.0:1", "0.0.0.0:1"),
        ("localhost:65535", "127.0.0.1:65535"),
        ("[::1]:9750", "[::1]:9750"),
        ("[::]:9750", "[::]:9750"),
    ],
)
def test_host_and_port(value: str, address: str) -> None:
    assert parse_listen(value) == address


@pytest.mark.parametrize(
    "value",
    ["", ":", "localhost", ":9750", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http"],
)
def test_what_has_no_port_is_told_what_it_should_be(value: str) -> None:
    with pytest.raises(UsageError, match=r"wattline-listen: host:port with a port from 1 to 65535, not ") as caught:
        parse_listen(value)
    assert caught.value.code == "listen_invalid"
    assert repr(value) in caught.value.message


@pytest.mark.parametrize("host", ["example.com", "127.0.0", "256.0.0.1", "[::g]"])
def test_a_name_is_no_address(host: str) -> None:
    with pytest.raises(UsageError, match="is not an IP address"):
        parse_listen(f"{host}:9750")
