from __future__ import annotations

import socket as sockets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import CABLE_NODE, SOCKET_NODE, FakeSigner, FakeSocket, TlsPair, World, make_certificate
from wattline.cable.link.transport import NotWattline, SocketUnreachable, open_socket
from wattline.cable.policy.offer import Offer, OfferError, check_prices, choose_outlet, clocks_apart
from wattline.cable.settings import CableLimitSettings, parse_address
from wattline.core.errors import WattlineError
from wattline.core.tariff import Tariff
from wattline.v1 import charging_pb2 as pb

SIGNER = FakeSigner(CABLE_NODE)


@pytest.fixture
def seller(tls: TlsPair) -> Iterator[FakeSocket]:
    seller = FakeSocket(World(), tls)
    yield seller
    seller.stop()


def offer_of(seller: FakeSocket, address: str | None = None, network: str = "regtest") -> Offer:
    opened = open_socket(parse_address(address or seller.address), SIGNER, network)
    opened.channel.close()
    return opened.offer


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(WattlineError) as caught:
        action()
    return caught.value.code


def test_a_genuine_offer_is_taken(seller: FakeSocket) -> None:
    offer = offer_of(seller)
    assert offer.node_id == SOCKET_NODE
    assert offer.tariff == Tariff.of(300_000)
    assert offer.methods == ("keysend",)
    assert offer.outlets[0].max_power_mw == 1_400_000


def test_an_offer_that_its_node_has_not_signed_is_forged(seller: FakeSocket) -> None:
    seller.signer = FakeSigner(CABLE_NODE)
    assert code_of(lambda: offer_of(seller)) == "offer_forged"


def test_an_offer_for_another_certificate_is_forged(seller: FakeSocket) -> None:
    """Somebody in between has a certificate of his own and passes the true socket's offer on."""
    seller.certificate_sha256 = make_certificate().sha256
    assert code_of(lambda: offer_of(seller)) == "offer_forged"


def test_an_old_offer_is_known_by_its_nonce(seller: FakeSocket) -> None:
    def replay(offer: pb.Offer) -> None:
        offer.nonce = b"0" * 32

    seller.lie_offer = replay
    assert code_of(lambda: offer_of(seller)) == "offer_replayed"


@pytest.mark.parametrize(
    ("valid_s", "words"),
    [(-3600, "at least 36"), (60, None), (30 * 86_400, "behind the socket's")],
    ids=["its clock is behind", "both are right", "its clock is ahead"],
)
def test_the_nonce_makes_an_offer_fresh_whatever_the_clocks_say(
    seller: FakeSocket, valid_s: int, words: str | None
) -> None:
    seller.valid_s = valid_s
    apart = clocks_apart(offer_of(seller), time.time())
    assert apart is None if words is None else apart is not None and words in apart


def test_an_offer_of_another_node_than_the_pinned_one_is_not_taken(seller: FakeSocket) -> None:
    with pytest.raises(OfferError) as caught:
        offer_of(seller, f"{CABLE_NODE}@127.0.0.1:{seller.port}")
    assert caught.value.code == "socket_not_pinned"
    assert CABLE_NODE in caught.value.message
    assert SOCKET_NODE in caught.value.message


def test_any_node_is_taken_where_none_is_pinned(seller: FakeSocket) -> None:
    assert offer_of(seller, f"127.0.0.1:{seller.port}").node_id == SOCKET_NODE


def test_a_socket_on_another_network_is_not_taken(seller: FakeSocket) -> None:
    assert code_of(lambda: offer_of(seller, network="bitcoin")) == "wrong_network"


def test_an_impossible_tariff_is_named(seller: FakeSocket) -> None:
    def lie(offer: pb.Offer) -> None:
        offer.tariff.energy_msat_per_kwh = 2**63

    seller.lie_offer = lie
    assert code_of(lambda: offer_of(seller)) == "offer_invalid"


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SocketUnreachable) as caught:
        open_socket(parse_address(f"{SOCKET_NODE}@127.0.0.1:{port}"), SIGNER, "regtest")
    assert f"127.0.0.1:{port}" in caught.value.message


def test_a_name_that_does_not_exist_is_unreachable() -> None:
    with pytest.raises(SocketUnreachable):
        open_socket(parse_address(f"{SOCKET_NODE}@no-such-host.invalid:9750"), SIGNER, "regtest")


def test_a_server_without_tls_is_not_wattline() -> None:
    with sockets.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(NotWattline) as caught:
            open_socket(parse_address(f"{SOCKET_NODE}@127.0.0.1:{listener.getsockname()[1]}"), SIGNER, "regtest")
        thread.join(5)
    assert "no TLS" in caught.value.message


def test_a_grpc_server_without_the_service_is_not_wattline(tls: TlsPair) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)]))
    server.start()
    try:
        with pytest.raises(NotWattline) as caught:
            open_socket(parse_address(f"{SOCKET_NODE}@127.0.0.1:{port}"), SIGNER, "regtest")
    finally:
        server.stop(0).wait()
    assert "ChargingService" in caught.value.message


def test_a_price_above_the_limit_names_both(bench: Bench) -> None:
    bench.limits["max_price_msat_per_kwh"] = 250_000
    summary = bench.run()
    assert summary.stop_reason == "price_too_high"
    assert "300000 msat/kWh" in summary.message
    assert "250000 msat/kWh" in summary.message
    assert bench.socket.opens == []


@pytest.mark.parametrize(
    ("tariff", "key"),
    [
        (Tariff.of(300_001), "max_price_msat_per_kwh"),
        (Tariff.of(300_000, 1), "max_time_price_msat_per_hour"),
        (Tariff.of(300_000, 0, 1), "max_session_fee_msat"),
    ],
)
def test_every_price_has_its_limit(tariff: Tariff, key: str) -> None:
    limits = CableLimitSettings(
        max_price_msat_per_kwh=300_000, max_prepaid_msat=1_000, max_session_msat=1_000, max_day_msat=1_000
    )
    check_prices(Tariff.of(300_000), limits.prices)
    with pytest.raises(OfferError, match=key):
        check_prices(tariff, limits.prices)


def test_an_outlet_in_use_or_unknown_is_told_apart(seller: FakeSocket) -> None:
    offer = offer_of(seller)
    assert choose_outlet(offer, "A1").outlet_id == "A1"
    assert choose_outlet(offer, None).outlet_id == "A1"
    assert code_of(lambda: choose_outlet(offer, "Z9")) == "unknown_outlet"
    seller.available = False
    busy = offer_of(seller)
    assert code_of(lambda: choose_outlet(busy, "A1")) == "outlet_busy"
    assert code_of(lambda: choose_outlet(busy, None)) == "outlet_busy"


def test_a_socket_that_takes_no_keysend_is_not_asked_to_open(bench: Bench) -> None:
    bench.socket.methods = [pb.METHOD_ONCHAIN]
    summary = bench.run()
    assert summary.stop_reason == "method_not_supported"
    assert "onchain" in summary.message
