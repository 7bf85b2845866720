"""What goes wrong between a cable, its node and a socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from tests.cable.fakes import make_certificate
from tests.cli_errors.mistake import ENDED, NOBODY, WELL, Desk, Mistake
from wattline.core.tariff import Tariff

CHECK = ["cable", "check", "--config"]
RUN = ["cable", "run", "--config"]
DAY_S = 86_400
DEAR = Tariff.of(energy_msat_per_kwh=300_001)


def on_bench(command: list[str], change: Callable[[Any], None], **payment: int) -> Callable[[Desk], list[str]]:
    """``command`` on a cable to which all is well but for ``change``; ``payment`` goes into its configuration."""

    def make(desk: Desk) -> list[str]:
        bench = desk.fixture("bench")
        change(bench)
        changes: dict[str, dict[str, Any]] = {"meter": {"bus": "sim:toaster"}, "payment": payment}
        return [*command, desk.cable_toml(changes, bench.socket.address)]

    return make


def of(name: str, value: Any, where: str = "socket") -> Callable[[Any], None]:
    return lambda bench: setattr(getattr(bench, where), name, value)


def plain_server(desk: Desk) -> list[str]:
    """Something listens there that has never heard of TLS."""
    server = socket.create_server(("127.0.0.1", 0))
    desk.closing.append(server.close)

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    desk.lightningd()
    return [*CHECK, desk.cable_toml(address=f"{NOBODY}@127.0.0.1:{server.getsockname()[1]}")]


def other_service(desk: Desk) -> list[str]:
    """A gRPC server over TLS that sells something else."""
    tls = make_certificate("example.org")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)]))
    server.start()
    desk.closing.append(lambda: server.stop(None))
    desk.lightningd()
    return [*CHECK, desk.cable_toml(address=f"{NOBODY}@127.0.0.1:{port}")]


def old_node(desk: Desk) -> list[str]:
    desk.lightningd("v24.11.1")
    return [*CHECK, desk.cable_toml()]


def nobody_there(desk: Desk) -> list[str]:
    desk.lightningd()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [*CHECK, desk.cable_toml(address=f"{NOBODY}@127.0.0.1:{port}")]


def from_street(command: list[str], buyer: str, payment_msat: int = 10) -> Callable[[Desk], list[str]]:
    """A cable on a practice node, at a socket on another."""

    def make(desk: Desk) -> list[str]:
        street = desk.fixture("street")
        desk.monkeypatch.setattr("wattline.cable.service.CHANNEL_MS", 300)
        for name, value in street.scene.network.environment.items():
            desk.monkeypatch.setenv(name, value)  # cable and socket measure in one world
        changes = {
            "payment": {"min_increment_msat": payment_msat, "max_increment_msat": max(10_000, payment_msat)},
            "limits": {
                "max_prepaid_msat": max(5000, payment_msat),
                **dict.fromkeys(("max_session_msat", "max_day_msat"), 2 * max(5000, payment_msat)),
            },
        }
        path: Path = street.scene.write_cable_config(getattr(street, buyer), f"{buyer}-{payment_msat}", 0, changes)
        return [*command, str(path)]

    return make


def jumping_clock(desk: Desk) -> list[str]:
    """The machine's clock is put a day forward after the first payment, and two days back, a day too far, after the
    fifth."""
    bench = desk.fixture("bench")
    really = time.time

    def jumps() -> float:
        paid = len(bench.socket.orders)
        return really() + (0 if paid < 1 else DAY_S if paid < 5 else -DAY_S)

    desk.monkeypatch.setattr("time.time", jumps)
    begun = time.monotonic()

    def has_run_for_its_time() -> None:
        assert len(bench.socket.orders) >= 5, "both jumps were made, and it paid on"
        assert 3.9 < time.monotonic() - begun < 15, "by the clock on the wall it would end at once or never"

    desk.closing.append(has_run_for_its_time)
    return ["cable", "run", "--for", "4", "--config", desk.cable_toml({}, bench.socket.address)]


NODES = (
    Mistake(
        "no node",
        lambda desk: [*CHECK, desk.cable_toml()],
        1,
        ("node_unavailable", "lightning-rpc", "No such file"),
        beside=WELL,
    ),
    Mistake(
        "no node at a run",
        lambda desk: [*RUN, desk.cable_toml()],
        1,
        ("wattline: error: node_unavailable", "lightning-rpc", "No such file"),
    ),
    Mistake(
        "a node's directory for its socket",
        lambda desk: [*CHECK, desk.cable_toml({"node": {"rpc": "."}})],
        1,
        ("node_unavailable", "is a directory", "lightning-rpc"),
        beside=WELL,
    ),
    Mistake(
        "a file for a node's socket",
        lambda desk: [*CHECK, desk.cable_toml({"node": {"rpc": "cable.toml"}})],
        1,
        ("node_unavailable", "cable.toml", "plain file"),
        beside=WELL,
    ),
    Mistake("an old node", old_node, 1, ("node_too_old", "v24.11.1", "v25.02.2 or newer"), beside=WELL),
    Mistake(
        "another network",
        on_bench(CHECK, of("network", "bitcoin", "node")),
        1,
        ("wrong_network", "regtest", "bitcoin"),
        beside=WELL,
    ),
)

SOCKETS = (
    Mistake("no socket", nobody_there, 1, ("socket_unreachable", "127.0.0.1:", "refused"), beside=WELL),
    Mistake("a server without TLS", plain_server, 1, ("not_wattline", "no TLS"), beside=WELL),
    Mistake("a server that is no wattline", other_service, 1, ("not_wattline", "no ChargingService"), beside=WELL),
    Mistake(
        "a certificate that the offer does not name",
        on_bench(CHECK, of("certificate_sha256", bytes(32))),
        1,
        ("offer_forged", "certificate", "somebody may sit in between"),
        beside=WELL,
    ),
    Mistake(
        "a price that is too high, at a check",
        on_bench(CHECK, of("tariff", DEAR)),
        1,
        ("price_too_high", "300001", "300000", "max_price_msat_per_kwh"),
        beside=WELL,
    ),
    Mistake(
        "a price that is too high, at a run",
        on_bench(RUN, of("tariff", DEAR)),
        1,
        ("wattline: error: price_too_high", "300001", "300000", "max_price_msat_per_kwh"),
    ),
    Mistake(
        "clocks that are an hour apart",
        on_bench(CHECK, of("valid_s", -3600)),
        0,
        ("warning  clock", "ahead of the socket's", "nothing is measured by either"),
        beside=WELL,
    ),
    Mistake(
        "a clock that jumps while energy flows",
        jumping_clock,
        0,
        ("done: the time is up",),
        beside=ENDED,
    ),
)

CHANNELS = (
    Mistake(
        "no channel, at a check", from_street(CHECK, "poor"), 1, ("no_channel", "nothing can be paid"), beside=WELL
    ),
    Mistake("no channel, at a run", from_street(RUN, "poor"), 1, ("wattline: error: no_channel", "fundchannel")),
    Mistake(
        "a channel with too little",
        from_street(CHECK, "fresh", 30_000_000),
        1,
        ("channel_too_small", "30 000.000 sat"),
        # What follows from it.
        beside=(
            *WELL,
            "problem  prepaid  prepaid_limit: payments of payment.min_increment_msat, 30000000 msat,",
            "problem  route    no_route: for 30 000.000 sat",
            "problem  refund   no_way_back: ",
        ),
    ),
    Mistake(
        "a channel with too little, at a run",
        on_bench(RUN, of("largest_msat", 5, "node"), max_failures_in_a_row=3),
        1,
        ("wattline: error: payment_failed", "no single route for"),
        beside=ENDED,
    ),
    Mistake(
        "no way back for a refund",
        from_street(CHECK, "fresh"),
        1,
        ("problem", "no_way_back", "5.000 sat", "stays owed until"),
        beside=WELL,
    ),
    Mistake(
        "no way back for a refund, at a run",
        from_street(["cable", "run", "--for", "3", "--config"], "fresh"),
        0,
        ("warning: no_way_back", "5.000 sat", "stays owed until"),
        beside=("done: the time is up", *ENDED),
    ),
)
