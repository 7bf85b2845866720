"""Core Lightning behind the Protocols, on a socket that answers what v26.06.6 was seen to answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.core.lightning.fake_lightningd import FakeLightningd, fake_lightningd
from wattline.core.errors import StopError
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import (
    Hop,
    Journal,
    NodeRefused,
    NodeUnavailable,
    NoRoute,
    PaidInvoice,
    Route,
    SendFailure,
    SendStatus,
    SentPayment,
    Signer,
    Wallet,
)
from wattline.core.lightning.onion import payment_hash_of
from wattline.core.lightning.rpc import version_numbers
from wattline.core.record import RECORD_TLV_TYPE, parse_payload

OWN, B, C = "02" + "aa" * 32, "02" + "33" * 32, "03" + "44" * 32
PREIMAGE = "11" * 32
HASH = payment_hash_of(PREIMAGE)
RECORD = "wattline:1:0123456789ABCDEFGHJKMNPQRS:3"
DIRECT = Route(B, 5000, (Hop("104x1x0/0", B, 5000, 45, 5000, 45),))
OVER_B = Route(C, 5000, (Hop("104x1x0/0", B, 6000, 51, 6000, 51), Hop("110x1x0/0", C, 6000, 51, 5000, 45)))
PATH_NEW = [
    {
        "short_channel_id_dir": "104x1x0/0",
        "node_id_in": OWN,
        "node_id_out": B,
        "amount_in_msat": 6000,
        "amount_out_msat": 6000,
        "cltv_in": 51,
        "cltv_out": 51,
    },
    {
        "short_channel_id_dir": "110x1x0/0",
        "node_id_in": B,
        "node_id_out": C,
        "amount_in_msat": 6000,
        "amount_out_msat": 5000,
        "cltv_in": 51,
        "cltv_out": 45,
    },
]
PATH_OLD = [
    {"short_channel_id_dir": "104x1x0/0", "next_node_id": B, "amount_msat": 6000, "delay": 51},
    {"short_channel_id_dir": "110x1x0/0", "next_node_id": C, "amount_msat": 6000, "delay": 51},
]
SENT_ROW = {
    "payment_hash": HASH,
    "groupid": 1,
    "amount_msat": 5000,
    "amount_sent_msat": 6000,
    "status": "complete",
    "payment_preimage": PREIMAGE,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeLightningd]:
    with fake_lightningd(tmp_path) as fake:
        set_info(fake)
        fake.result("createonion", {"onion": "0f" * 1366, "shared_secrets": ["aa" * 32]})
        fake.result("sendonion", {**SENT_ROW, "status": "pending"})
        yield fake


@pytest.fixture
def node(server: FakeLightningd) -> CoreLightning:
    return CoreLightning(server.path, answer_timeout_s=5.0)


def set_info(server: FakeLightningd, version: str = "v26.06.6", height: int = 1000) -> None:
    server.result("getinfo", {"id": OWN, "network": "regtest", "version": version, "blockheight": height})


def test_core_lightning_is_a_wallet_a_signer_and_a_journal(node: CoreLightning) -> None:
    wallet: Wallet = node
    signer: Signer = node
    journal: Journal = node
    assert wallet.info().node_id == OWN
    assert callable(signer.sign)
    assert callable(journal.paid_since)


def test_an_older_node_is_refused_with_both_versions(server: FakeLightningd, node: CoreLightning) -> None:
    for version in ("v24.11.1", "v25.02", "v25.02.1-modded"):
        set_info(server, version)
        with pytest.raises(StopError, match=rf"{version}.*v25\.02\.2") as caught:
            node.check_version()
        assert caught.value.code == "node_too_old"
    set_info(server, "v25.02.2")
    assert node.check_version().network == "regtest"


def test_a_version_is_read_with_or_without_suffix() -> None:
    assert version_numbers("v26.06.6") == (26, 6, 6)
    assert version_numbers("v25.12rc1-3-gdeadbee-modded") == (25, 12, 0)
    assert version_numbers("gdeadbee") > (26, 6)


def test_only_channels_that_can_be_used_now_are_told(server: FakeLightningd, node: CoreLightning) -> None:
    row = {"peer_id": B, "peer_connected": True, "state": "CHANNELD_NORMAL", "spendable_msat": 7, "receivable_msat": 8}
    server.result(
        "listpeerchannels",
        {
            "channels": [
                {**row, "short_channel_id": "104x1x0"},
                {**row, "alias": {"local": "1x2x3"}},
                {**row, "short_channel_id": "105x1x0", "peer_connected": False},
                {**row, "short_channel_id": "106x1x0", "state": "CHANNELD_SHUTTING_DOWN"},
                {"peer_id": C, "peer_connected": True, "state": "CHANNELD_AWAITING_LOCKIN"},
            ]
        },
    )
    channels = node.channels()
    assert [channel.short_channel_id for channel in channels] == ["104x1x0", "1x2x3"]
    assert (channels[0].spendable_msat, channels[0].receivable_msat) == (7, 8)


@pytest.mark.parametrize("path", [PATH_NEW, PATH_OLD])
def test_a_route_is_read_from_the_new_and_the_old_fields(
    server: FakeLightningd, node: CoreLightning, path: list[dict[str, Any]]
) -> None:
    server.result("getroutes", {"routes": [{"amount_msat": 5000, "final_cltv": 45, "path": path}]})
    assert node.find_route(C, 5000, 1000, 45) == OVER_B
    params = server.params("getroutes")
    assert params["layers"] == ["auto.localchans", "auto.sourcefree"]
    assert (params["source"], params["maxparts"], params["maxfee_msat"]) == (OWN, 1, 1000)


def test_a_node_without_maxparts_is_asked_for_one_part_by_its_layer(
    server: FakeLightningd, node: CoreLightning
) -> None:
    set_info(server, "v25.05")
    server.result("getroutes", {"routes": [{"amount_msat": 5000, "final_cltv": 45, "path": PATH_OLD}]})
    node.find_route(C, 5000, 1000, 45)
    params = server.params("getroutes")
    assert "maxparts" not in params
    assert params["layers"][-1] == "auto.no_mpp_support"


@pytest.mark.parametrize(("rpc_code", "code"), [(205, "no_route"), (206, "route_too_expensive")])
def test_no_route_may_pass_later(server: FakeLightningd, node: CoreLightning, rpc_code: int, code: str) -> None:
    server.error("getroutes", rpc_code, "none")
    with pytest.raises(NoRoute, match="none") as caught:
        node.find_route(C, 5000, 1000, 45)
    assert caught.value.code == code


def test_an_answer_in_several_parts_is_no_route(server: FakeLightningd, node: CoreLightning) -> None:
    part = {"amount_msat": 2500, "final_cltv": 45, "path": PATH_NEW}
    server.result("getroutes", {"routes": [part, part]})
    with pytest.raises(NoRoute, match="2 parts"):
        node.find_route(C, 5000, 1000, 45)


def test_a_payment_is_one_onion_bound_to_its_hash_under_a_fixed_group(
    server: FakeLightningd, node: CoreLightning
) -> None:
    node.send(OVER_B, HASH, PREIMAGE, RECORD, RECORD)
    onion = server.params("createonion")
    assert onion["assocdata"] == HASH
    assert [hop["pubkey"] for hop in onion["hops"]] == [B, C]
    final = parse_payload(bytes.fromhex(onion["hops"][1]["payload"]))
    assert final[RECORD_TLV_TYPE] == RECORD.encode()
    assert int.from_bytes(final[4], "big") == 1000 + 1 + 45
    sent = server.params("sendonion")
    assert sent["first_hop"] == {"id": B, "channel": "104x1x0", "amount_msat": 6000, "delay": 51}
    assert (sent["partid"], sent["groupid"], sent["payment_hash"], sent["label"]) == (0, 1, HASH, RECORD)
    assert (sent["amount_msat"], sent["destination"], sent["shared_secrets"]) == (5000, C, ["aa" * 32])


def test_the_block_height_is_asked_for_every_few_seconds_and_after_a_failure(server: FakeLightningd) -> None:
    seconds = [0.0]
    node = CoreLightning(server.path, 5.0, clock=lambda: seconds[0])

    def asked() -> int:
        return [method for method, _ in server.calls].count("getinfo")

    node.send(DIRECT, HASH, PREIMAGE, RECORD, "")
    node.send(DIRECT, HASH, PREIMAGE, RECORD, "")
    assert asked() == 1
    seconds[0] = 6.0
    node.send(DIRECT, HASH, PREIMAGE, RECORD, "")
    assert asked() == 2
    server.error("waitsendpay", 204, "late", {"erring_index": 1, "failcodename": "WIRE_EXPIRY_TOO_SOON"})
    node.wait(HASH, 1)
    node.send(DIRECT, HASH, PREIMAGE, RECORD, "")
    assert asked() == 3


def test_a_local_failure_at_sending_has_bolt_4s_name(server: FakeLightningd, node: CoreLightning) -> None:
    server.error(
        "sendonion", 204, "First peer not ready", {"erring_index": 0, "failcodename": "WIRE_TEMPORARY_CHANNEL_FAILURE"}
    )
    with pytest.raises(NodeRefused, match="First peer not ready") as caught:
        node.send(DIRECT, HASH, PREIMAGE, RECORD, "")
    assert (caught.value.code, caught.value.rpc_code) == ("temporary_channel_failure", 204)


def test_a_complete_payment_tells_what_left_the_wallet(server: FakeLightningd, node: CoreLightning) -> None:
    server.result("waitsendpay", SENT_ROW)
    assert node.wait(HASH, 0.2) == SentPayment(HASH, SendStatus.COMPLETE, 5000, 6000, PREIMAGE)
    assert server.params("waitsendpay") == {"payment_hash": HASH, "timeout": 1, "partid": 0, "groupid": 1}


def test_a_payment_still_under_way_is_none_when_the_time_ran_out(server: FakeLightningd, node: CoreLightning) -> None:
    server.error("waitsendpay", 200, "Timed out while waiting")
    assert node.wait(HASH, 0) is None


@pytest.mark.parametrize(
    ("route", "index", "name", "at_destination"),
    [
        (OVER_B, 1, "WIRE_TEMPORARY_CHANNEL_FAILURE", False),
        (OVER_B, 2, "WIRE_INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS", True),
        (OVER_B, 2, "WIRE_INVALID_ONION_PAYLOAD", True),
        (OVER_B, 1, "WIRE_INVALID_ONION_PAYLOAD", False),
        (DIRECT, 1, "WIRE_INVALID_ONION_PAYLOAD", True),
        (None, 2, "WIRE_INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS", True),
        (None, 2, "WIRE_TEMPORARY_NODE_FAILURE", False),
    ],
)
def test_a_failure_tells_its_name_and_whether_the_destination_sent_it(
    server: FakeLightningd, node: CoreLightning, route: Route | None, index: int, name: str, at_destination: bool
) -> None:
    if route is not None:
        node.send(route, HASH, PREIMAGE, RECORD, "")
    server.error("waitsendpay", 204, f"failed: {name}", {"erring_index": index, "failcodename": name})
    failure = node.wait(HASH, 1)
    assert isinstance(failure, SendFailure)
    assert (failure.code, failure.at_destination) == (name.removeprefix("WIRE_").lower(), at_destination)


@pytest.mark.parametrize("rpc_code", [202, 209])
def test_a_failure_whose_reason_is_lost_is_unknown(server: FakeLightningd, node: CoreLightning, rpc_code: int) -> None:
    server.error("waitsendpay", rpc_code, "Payment failure reason unknown")
    failure = node.wait(HASH, 1)
    assert isinstance(failure, SendFailure)
    assert (failure.code, failure.at_destination) == ("unknown", False)


def test_waiting_for_a_payment_that_was_never_made_is_refused(server: FakeLightningd, node: CoreLightning) -> None:
    server.error("waitsendpay", 208, "Never attempted")
    with pytest.raises(NodeRefused) as caught:
        node.wait(HASH, 1)
    assert caught.value.code == "payment_unknown"


@pytest.mark.parametrize(
    ("statuses", "told", "sent_msat"),
    [
        (["failed", "complete", "pending"], SendStatus.COMPLETE, 6000),
        (["failed", "pending"], SendStatus.PENDING, 6000),
        (["failed"], SendStatus.FAILED, 6000),
    ],
)
def test_the_nodes_record_of_several_attempts_is_complete_if_any_is(
    server: FakeLightningd, node: CoreLightning, statuses: list[str], told: SendStatus, sent_msat: int
) -> None:
    server.result("listsendpays", {"payments": [{**SENT_ROW, "status": status} for status in statuses]})
    sent = node.sent(HASH)
    assert sent is not None
    assert (sent.status, sent.amount_sent_msat) == (told, sent_msat)


def test_a_hash_that_the_node_does_not_know_is_none(server: FakeLightningd, node: CoreLightning) -> None:
    server.result("listsendpays", {"payments": []})
    assert node.sent(HASH) is None


def test_an_answer_about_another_payment_is_not_taken(server: FakeLightningd, node: CoreLightning) -> None:
    server.result("listsendpays", {"payments": [{**SENT_ROW, "payment_hash": "00" * 32}]})
    with pytest.raises(NodeRefused, match="another payment"):
        node.sent(HASH)


def test_nothing_is_signed_but_the_digests_of_our_own_messages(server: FakeLightningd, node: CoreLightning) -> None:
    server.result("signmessage", {"zbase": "abc"})
    assert node.sign(f"wattline:offer:1:{HASH}") == "abc"
    for message in ("é", "a\nb", "a\x00", "hello", f"wattline:offer:1:{HASH}\n", "lightning"):
        with pytest.raises(NodeRefused, match="form") as caught:
            node.sign(message)
        assert caught.value.code == "call_refused"
    assert len(server.calls) == 1


def test_a_signature_is_checked_against_the_named_key_and_nonsense_is_no_signature(
    server: FakeLightningd, node: CoreLightning
) -> None:
    signature = "rd" + "y" * 102
    server.result("checkmessage", {"verified": True, "pubkey": B})
    assert node.verify("text", signature, B)
    assert server.params("checkmessage") == {"message": "text", "zbase": signature, "pubkey": B}
    server.result("checkmessage", {"verified": False, "pubkey": C})
    assert not node.verify("text", signature, B)
    server.error("checkmessage", -32602, "zbase: cannot parse zbase signature")
    assert not node.verify("text", signature, B)
    asked = len(server.calls)
    for no_key in ("00", "02" + "bb" * 32, OWN.upper(), ""):
        assert not node.verify("text", signature, no_key)
    assert len(server.calls) == asked
    assert not node.verify("té", signature, B)


@pytest.mark.parametrize("forgery", ["", "!", "rd", "y" * 104, "9" * 104, "ro" + "y" * 102, "rd" + "y" * 103])
def test_what_would_make_lightningd_abort_is_never_handed_to_it(
    server: FakeLightningd, node: CoreLightning, forgery: str
) -> None:
    server.result("checkmessage", {"verified": True, "pubkey": B})
    asked = len(server.calls)
    assert not node.verify("text", forgery, B)
    assert len(server.calls) == asked


def test_the_journal_is_read_from_behind_the_cursor(server: FakeLightningd, node: CoreLightning) -> None:
    paid = {
        "label": "keysend-1.2",
        "payment_hash": HASH,
        "status": "paid",
        "pay_index": 4,
        "amount_received_msat": 5000,
        "paid_at": 1700000000,
        "description": f"keysend: {RECORD}",
        "updated_index": 8,
    }
    expired = {"label": "x", "payment_hash": "00" * 32, "status": "expired", "updated_index": 9}
    server.result("listinvoices", {"invoices": [paid, expired]})
    rows = node.paid_since(7, 50)
    assert server.params("listinvoices") == {"index": "updated", "start": 8, "limit": 50}
    assert rows[0] == PaidInvoice(8, 4, "keysend-1.2", f"keysend: {RECORD}", HASH, 5000, 1700000000, True)
    assert rows[1] == PaidInvoice(9, None, "x", "", "00" * 32, 0, 0, False)


@pytest.mark.parametrize(
    ("configs", "age_s"),
    [
        ({}, None),
        ({"autoclean-paidinvoices-age": {"value_int": 0}}, None),
        ({"autoclean-paidinvoices-age": {"value_int": 3600}}, 3600),
        ({"autoclean-paidinvoices-age": {"value_str": "3600"}}, 3600),
    ],
)
def test_autocleans_age_of_paid_invoices_is_told(
    server: FakeLightningd, node: CoreLightning, configs: dict[str, Any], age_s: int | None
) -> None:
    server.result("listconfigs", {"configs": configs})
    assert node.autoclean_paid_age_s() == age_s


def test_a_node_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(NodeUnavailable):
        CoreLightning(tmp_path / "lightning-rpc").info()


def test_a_socket_whose_node_has_died_is_unavailable(server: FakeLightningd, node: CoreLightning) -> None:
    server.close()
    with pytest.raises(NodeUnavailable):
        node.info()


@pytest.mark.parametrize("answer", [None, b'{"jsonrpc"', b"garbage\n\n", b"\xff\xfe\n\n", b"[]\n\n"])
def test_a_connection_that_ends_or_garbles_its_answer_is_unavailable(
    server: FakeLightningd, node: CoreLightning, answer: bytes | None
) -> None:
    server.answers["getinfo"] = lambda _params: answer
    with pytest.raises(NodeUnavailable):
        node.info()


@pytest.mark.parametrize("rpc_code", [-4, -5])
def test_a_request_cut_short_by_a_shutdown_is_in_doubt(
    server: FakeLightningd, node: CoreLightning, rpc_code: int
) -> None:
    server.error("sendonion", rpc_code, "shutting down")
    with pytest.raises(NodeUnavailable):
        node.send(DIRECT, HASH, PREIMAGE, RECORD, "")


def test_a_node_that_hangs_is_unavailable_after_the_timeout(server: FakeLightningd) -> None:
    server.hold.clear()
    with pytest.raises(NodeUnavailable, match="timed out"):
        CoreLightning(server.path, answer_timeout_s=0.1).info()


def test_an_answer_without_what_it_must_have_is_named(server: FakeLightningd, node: CoreLightning) -> None:
    server.result("getinfo", {"id": OWN})
    with pytest.raises(NodeRefused, match=r"getinfo.*network") as caught:
        node.info()
    assert caught.value.code == "unexpected_answer"


def test_many_calls_wait_at_the_same_time(server: FakeLightningd, node: CoreLightning) -> None:
    together = threading.Barrier(16, timeout=10)

    def when_all_are_there(params: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return {"result": {**SENT_ROW, "payment_hash": params["payment_hash"]}}

    server.answers["waitsendpay"] = when_all_are_there
    hashes = [f"{number:064x}" for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda payment_hash: node.wait(payment_hash, 5), hashes))
    assert [answer.payment_hash for answer in answers if isinstance(answer, SentPayment)] == hashes
