"""The address on which cables are served."""

from __future__ import annotations

import ipaddress
import socket

from wattline.core.errors import UsageError


def parse_listen(value: str) -> str:
    """``host:port`` checked; an IPv6 address stands in brackets. Raises UsageError."""
    host, separator, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError("listen_invalid", f"wattline-listen: host:port with a port from 1 to 65535, not {value!r}")
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        if host != "localhost":
            raise UsageError(
                "listen_invalid", f"wattline-listen: {host!r} is not an IP address (0.0.0.0 or [::] for all of them)"
            ) from None
        host, version = "127.0.0.1", 4
    return f"[{host}]:{port}" if version == 6 else f"{host}:{port}"


def check_free(address: str) -> None:
    """Raises UsageError when nobody could listen on ``address``."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise UsageError("port_taken", f"wattline-listen: cannot listen on {address}: {error.strerror}") from error
