"""Payments that no session can use: they fail at the htlc and the payer keeps the money; strangers are not touched."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.by_hand import HandCable, OpenRefusedError
from pyln.client import RpcError

from wattline.core.lightning.node import SendFailure, SendStatus, SentPayment
from wattline.core.record import RECORD_TLV_TYPE, format_record
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until

pytestmark = pytest.mark.lightningd

CAP_MSAT = 10_000
STRANGE_TLV_TYPE = 133773311


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork) -> Iterator[Scene]:
    trade = Trade(session={"credit_cap_msat": CAP_MSAT, "min_refund_msat": 100})
    with Scene(module_network, trade) as scene:
        socket, cable = scene.start_node(), module_network.node("cable")
        module_network.open_channel(cable, socket, 1_000_000, push_msat=300_000_000)
        scene.wait_running()
        yield scene


@pytest.fixture
def cable(scene: Scene) -> Iterator[HandCable]:
    wallet = next(node for node in scene.network.all_nodes if node.name == "cable")
    with HandCable(scene, wallet) as cable:
        yield cable
        if cable.session_id:
            scene.node.rpc.call("wattline-sessions", {"session_id": cable.session_id})
            if cable.newest_state(scene) != "closed":
                scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
                wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed" or None, 30)


def refused(outcome: SentPayment | SendFailure) -> SendFailure:
    assert isinstance(outcome, SendFailure), outcome
    assert outcome.code == "incorrect_or_unknown_payment_details"
    assert outcome.at_destination
    return outcome


def arrived(outcome: SentPayment | SendFailure | None) -> bool:
    return isinstance(outcome, SentPayment) and outcome.status is SendStatus.COMPLETE


def settled_balance_msat(cable: HandCable) -> int:
    """What is the wallet's own in its channels, once no htlc is under way."""

    def quiet() -> int | None:
        rows = cable.wallet_node.rpc.listpeerchannels()["channels"]
        return sum(row["to_us_msat"] for row in rows) if not any(row["htlcs"] for row in rows) else None

    return wait_until("no htlc is under way", quiet)


def test_a_payment_for_an_unknown_session_fails_and_costs_nothing(cable: HandCable) -> None:
    before = settled_balance_msat(cable)
    refused(cable.pay(1_000, record=format_record("0123456789ABCDEFGHJKMNPQRS", 1)))
    assert settled_balance_msat(cable) == before


def test_a_payment_for_a_closed_session_fails_and_costs_nothing(cable: HandCable) -> None:
    cable.open()
    assert arrived(cable.pay(1_000))
    cable.close()
    cable.receipt()
    before = settled_balance_msat(cable)
    refused(cable.pay(1_000))
    assert settled_balance_msat(cable) == before


@pytest.mark.parametrize(
    "record",
    [
        "wattline",
        "wattline:1:",
        "wattline:2:{id}:1",
        "wattline:1:{id}:01",
        "wattline:1:{id}:-1",
        "wattline:1:{lower}:1",
    ],
)
def test_a_malformed_record_fails_and_costs_nothing(cable: HandCable, record: str) -> None:
    session_id = cable.open()
    before = settled_balance_msat(cable)
    refused(cable.pay(1_000, record=record.format(id=session_id, lower=session_id.lower())))
    assert settled_balance_msat(cable) == before


def test_a_longer_wattline_text_under_another_type_fails_and_costs_nothing(cable: HandCable) -> None:
    session_id = cable.open()
    before = settled_balance_msat(cable)
    tlvs = {
        str(RECORD_TLV_TYPE): format_record(session_id, 1).encode().hex(),
        str(STRANGE_TLV_TYPE): format_record(session_id, 1000).encode().hex(),
    }
    with pytest.raises(RpcError):
        cable.keysend(1_000, tlvs)
    assert settled_balance_msat(cable) == before
    assert cable.statement(lambda s: True).credited_msat == 0


def test_a_payment_over_the_credit_cap_fails_and_the_cable_is_told_why(cable: HandCable) -> None:
    cable.open()
    before = settled_balance_msat(cable)
    refused(cable.pay(CAP_MSAT + 1))
    assert settled_balance_msat(cable) == before
    told = cable.message("payment_refused").payment_refused
    assert told.code == "over_credit_cap"
    assert told.amount_msat == CAP_MSAT + 1


def test_a_flood_of_tiny_payments_is_failed_leaves_no_row_and_raises_nobodys_increment(
    scene: Scene, cable: HandCable
) -> None:
    cable.plug_nothing()
    cable.open()
    wish_msat = cable.offer().min_increment_msat
    assert wish_msat == 10
    before, rows = settled_balance_msat(cable), len(scene.node.rpc.listinvoices()["invoices"])
    with ThreadPoolExecutor(16) as pool:
        for outcome in pool.map(lambda _: cable.pay(1), range(100)):
            refused(outcome)
    assert len(scene.node.rpc.listinvoices()["invoices"]) == rows
    assert settled_balance_msat(cable) == before
    told = cable.message("payment_refused").payment_refused
    assert (told.code, told.min_increment_msat) == ("below_min_increment", wish_msat)
    assert cable.statement(lambda s: True).min_increment_msat == wish_msat
    assert cable.offer().min_increment_msat == wish_msat
    assert arrived(cable.pay(wish_msat))


def test_of_sixteen_payments_in_flight_at_once_no_more_than_the_cap_is_taken(cable: HandCable) -> None:
    cable.plug_nothing()
    cable.open()
    each = CAP_MSAT // 5
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda _: cable.pay(each), range(16)))
    taken = sum(arrived(outcome) for outcome in outcomes)
    statement = cable.statement(lambda s: s.in_flight_msat == 0 and s.credited_msat == taken * each)
    assert 4 <= taken <= 5
    assert statement.credited_msat <= CAP_MSAT


@pytest.mark.parametrize("amount_msat", [6_000, 9_000])
def test_payments_with_a_wrong_preimage_fail_and_leave_the_cap_alone(cable: HandCable, amount_msat: int) -> None:
    session_id = cable.open()
    refused(cable.pay_with_wrong_preimage(amount_msat, format_record(session_id, 1)))
    assert arrived(cable.pay(CAP_MSAT // 2))


@pytest.mark.parametrize("node_id", ["the socket's own", "02" + "00" * 32, "02" + "zz" * 32, ""])
def test_a_cable_that_names_the_sockets_own_node_or_none_at_all_is_refused(
    scene: Scene, cable: HandCable, node_id: str
) -> None:
    with pytest.raises(OpenRefusedError) as caught:
        cable.open(cable_node_id=scene.node.node_id if node_id == "the socket's own" else node_id)
    assert caught.value.code == "bad_request"


def test_keysends_and_invoices_of_others_pass(scene: Scene, cable: HandCable) -> None:
    paid = cable.keysend(1_000, {})
    assert len(paid["payment_preimage"]) == 64
    paid = cable.keysend(1_000, {str(STRANGE_TLV_TYPE): b"I like wattline".hex()})
    assert len(paid["payment_preimage"]) == 64
    invoice = scene.node.rpc.invoice(2_000, f"coffee-{cable.token.hex()}", "wattline:1: is only a description here")
    cable.wallet_node.rpc.call("xpay", {"invstring": invoice["bolt11"]})
    assert scene.node.rpc.listinvoices(f"coffee-{cable.token.hex()}")["invoices"][0]["status"] == "paid"
