"""What was paid while nobody of ours was looking: lightningd's paid invoices are the journal, and it is read again."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from harness.by_hand import HandCable

from wattline.core.lightning.node import SendFailure, SendStatus, SentPayment
from wattline.core.record import format_record
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Books, Scene, Trade
from wattline.regtest.waiting import wait_until

pytestmark = [pytest.mark.lightningd, pytest.mark.long]

DELETED_IN_TIME_SINCE = (25, 9)


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork) -> Iterator[Scene]:
    trade = Trade(
        session={"credit_cap_msat": 50_000, "min_refund_msat": 100},
        payment={"refund_retry_s": 1, "journal_interval_s": 1},
    )
    with Scene(module_network, trade) as scene:
        socket, cable = scene.start_node(), module_network.node("cable")
        module_network.open_channel(cable, socket, 1_000_000, push_msat=300_000_000)
        scene.wait_running()
        scene.world.plug(0, "constant-0")
        yield scene


@pytest.fixture
def wallet(scene: Scene) -> Node:
    return next(node for node in scene.network.all_nodes if node.name == "cable")


@pytest.fixture
def cable(scene: Scene, wallet: Node) -> Iterator[HandCable]:
    with HandCable(scene, wallet) as cable:
        yield cable
        if cable.session_id and cable.newest_state(scene) != "closed":
            scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
            wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


@contextmanager
def unloaded(scene: Scene) -> Iterator[None]:
    """The plugin is away meanwhile; afterwards it has read the journal to its end."""
    scene.unload_plugin()
    try:
        yield
    finally:
        scene.load_plugin()
        scene.wait_running()


def arrived(outcome: SentPayment | SendFailure | None) -> bool:
    return isinstance(outcome, SentPayment) and outcome.status is SendStatus.COMPLETE


def agreed_books(scene: Scene, wallet: Node, session_id: str = "") -> Books:
    """The books of ledger and nodes, once all that was received is booked."""

    def look() -> Books | None:
        books = scene.books(wallet, session_id)
        return books if books.agree else None

    return wait_until("ledger, socket's node and cable's node agree", look, 20)


def waits_for_the_hook(scene: Scene) -> bool:
    rows = scene.node.rpc.listpeerchannels()["channels"]
    return any("htlc_accepted hook" in htlc.get("status", "") for row in rows for htlc in row["htlcs"])


def send_and_kill_in_the_hook(scene: Scene, cable: HandCable, amount_msat: int) -> SentPayment | SendFailure | None:
    """The plugin dies with a payment in its hook; what became of the payment."""
    pid = scene.plugin_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        outcome: Callable[[float], SentPayment | SendFailure | None] = cable.pay_without_waiting(amount_msat)
        wait_until("the payment waits for the plugin's answer", lambda: waits_for_the_hook(scene), 20)
    finally:
        os.kill(pid, signal.SIGKILL)
    result = outcome(30)
    assert scene.plugin_pid() != pid, "the guard has started another one"
    scene.wait_running()
    return result


def test_what_is_paid_while_the_plugin_is_not_loaded_is_credited_when_it_is_back(
    scene: Scene, wallet: Node, cable: HandCable
) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(2_000))
    with unloaded(scene):
        assert arrived(cable.pay(3_001))
        assert arrived(cable.pay(1_002))
    cable.reconnect()
    now = scene.session(session_id)
    assert (now["credited_msat"], now["payments"]) == (6_003, 3)
    books = agreed_books(scene, wallet, session_id)
    assert sorted(books.credited.values()) == [1_002, 2_000, 3_001]
    assert not books.orphans
    cable.close()
    receipt = cable.receipt()
    assert (receipt.credited_msat, receipt.refunded_msat + receipt.charged_msat) == (6_003, 6_003)


def test_a_session_and_its_credit_survive_two_reloads_in_a_row(scene: Scene, wallet: Node, cable: HandCable) -> None:
    session_id = cable.open()
    for amount_msat in (1_001, 2_002):
        with unloaded(scene):
            assert arrived(cable.pay(amount_msat))
    assert scene.session(session_id)["credited_msat"] == 3_003
    assert sum(agreed_books(scene, wallet, session_id).credited.values()) == 3_003


def test_what_is_paid_for_a_session_that_is_over_goes_back_once(scene: Scene, wallet: Node, cable: HandCable) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(1_000))
    cable.close()
    cable.receipt()
    refunds = cable.payments_back()
    with unloaded(scene):
        assert arrived(cable.pay(3_001))
    wait_until("the first one is back", lambda: len(cable.payments_back()) == len(refunds) + 1, 30)
    with unloaded(scene):
        assert arrived(cable.pay(3_002))
    wait_until("the second one is back", lambda: len(cable.payments_back()) == len(refunds) + 2, 30)
    # To send the second one back the socket went over all orphans again: the first was left alone.
    assert sorted(amount for sequence, amount in cable.payments_back() if sequence > 0) == [3_001, 3_002]
    books = agreed_books(scene, wallet, session_id)
    assert sorted(books.orphans.values()) == [3_001, 3_002]
    assert list(books.credited.values()) == [1_000]
    assert cable.newest_receipt().credited_msat == 1_000


def test_what_is_paid_for_a_session_that_never_was_is_booked_and_kept_for_nobody(scene: Scene, wallet: Node) -> None:
    unknown = "0123456789ABCDEFGHJKMNPQRS"
    with HandCable(scene, wallet) as cable, unloaded(scene):
        assert arrived(cable.pay(1_500, record=format_record(unknown, 1)))
    books = agreed_books(scene, wallet, unknown)
    assert list(books.orphans.values()) == [1_500]


def test_a_payment_in_the_hook_of_a_plugin_that_dies_is_credited_once(
    scene: Scene, wallet: Node, cable: HandCable
) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(1_000))
    assert arrived(send_and_kill_in_the_hook(scene, cable, 2_001)), "lightningd goes on as if it had said continue"
    wait_until("it is credited", lambda: scene.session(session_id)["credited_msat"] == 3_001, 20)
    cable.reconnect()
    assert arrived(cable.pay(1_002))
    books = agreed_books(scene, wallet, session_id)
    assert sorted(books.credited.values()) == [1_000, 1_002, 2_001]
    assert scene.session(session_id)["credited_msat"] == 4_003


def test_a_payment_in_the_hook_of_a_plugin_that_dies_goes_back_when_its_session_is_over(
    scene: Scene, wallet: Node, cable: HandCable
) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(1_000))
    cable.close()
    cable.receipt()
    assert arrived(send_and_kill_in_the_hook(scene, cable, 2_001))

    def orphans_back() -> list[int]:
        return [amount for sequence, amount in cable.payments_back() if sequence > 0]

    wait_until("it is back", lambda: orphans_back() == [2_001], 30)
    assert list(agreed_books(scene, wallet, session_id).orphans.values()) == [2_001]


def test_payments_are_failed_until_the_journal_has_been_read(scene: Scene, wallet: Node, cable: HandCable) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(1_000))
    scene.unload_plugin()
    with scene.guard_socket.with_suffix(".sock.lock").open("ab") as lock:
        # As if an older guard had not opened its relays yet: the start has to wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        scene.load_plugin()
        assert scene.status()["state"] == "starting"
        early = cable.pay(2_000)
    assert isinstance(early, SendFailure)
    assert early.code == "incorrect_or_unknown_payment_details"
    scene.wait_running()
    assert arrived(cable.pay(3_000))
    books = agreed_books(scene, wallet, session_id)
    assert sorted(books.credited.values()) == [1_000, 3_000]


def test_over_everything_so_far_ledger_and_both_nodes_agree_to_the_msat(scene: Scene, wallet: Node) -> None:
    books = agreed_books(scene, wallet)
    assert len(books.received) >= 3
    assert sum(books.credited.values()) + sum(books.orphans.values()) == sum(books.delivered.values())


def test_a_deleted_invoice_is_noticed(scene: Scene, wallet: Node, cable: HandCable) -> None:
    session_id = cable.open()
    assert arrived(cable.pay(1_000))
    agreed_books(scene, wallet, session_id)
    log_start = scene.node.log_path.stat().st_size
    with unloaded(scene):
        assert arrived(cable.pay(1_001))
        (deleted,) = [
            row
            for row in scene.node.rpc.listinvoices()["invoices"]
            if session_id in row.get("description", "") and row["amount_received_msat"] == 1_001
        ]
        scene.node.rpc.delinvoice(deleted["label"], "paid")
        assert arrived(cable.pay(1_002))
    assert scene.status()["journal"]["missing_invoices"] == 1
    scene.node.wait_for_log(r"1 paid invoice\(s\) were deleted before wattline read them", log_start, 10)
    books = scene.books(wallet, session_id)
    assert books.credited == books.received
    assert sorted(books.credited.values()) == [1_000, 1_002]


def test_a_payment_whose_invoice_is_deleted_at_once_is_credited_as_lightningd_told_of_it(
    scene: Scene, wallet: Node, cable: HandCable
) -> None:
    """As by an autoclean that waits for nothing: the session ends in good order, with all that was paid."""
    session_id = cable.open()
    tries = 0

    def is_booked(paid: set[str]) -> bool:
        return set(scene.books(wallet, session_id).credited) == paid

    while not scene.status()["journal"]["unlisted_payments"]:
        tries += 1
        if tries > 10 and scene.node.program.version < DELETED_IN_TIME_SINCE:
            pytest.skip("this lightningd tells of a payment before its invoice can be deleted")
        assert tries < 20, "the journal was always quicker than the deletion"
        amount_msat = 1_000 + tries
        assert arrived(cable.pay(amount_msat))
        for row in scene.node.rpc.listinvoices()["invoices"]:
            if session_id in row.get("description", "") and row["amount_received_msat"] == amount_msat:
                scene.node.rpc.delinvoice(row["label"], "paid")
        paid = set(scene.books(wallet, session_id).delivered)
        wait_until("it is booked", partial(is_booked, paid), 20)
    cable.close()
    receipt = cable.receipt()
    assert receipt.credited_msat == receipt.refunded_msat + receipt.charged_msat
    books = scene.books(wallet, session_id)
    assert receipt.credited_msat == sum(books.credited.values()) == sum(books.delivered.values())
    assert not books.orphans
