"""Others' payments pass a socket's node whatever the plugin does, and strangers at its door disturb nobody."""

from __future__ import annotations

import secrets
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness.by_hand import HandCable, OpenRefusedError

from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import SendFailure, SendStatus, SentPayment, sign
from wattline.core.record import format_record
from wattline.plugin.service import FIRST_MESSAGE_S, MAX_STREAMS
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Books, Scene, Trade
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb

pytestmark = [pytest.mark.lightningd, pytest.mark.long]

STRANGE_TLV_TYPE = 133773311
CALL_TIMEOUT_S = 20
TRADE = Trade(profiles=("constant-0", "constant-0"), session={"credit_cap_msat": 500_000, "min_refund_msat": 100})


@pytest.fixture(scope="module")
def line(module_network: RegtestNetwork) -> Iterator[tuple[Node, Scene, Scene]]:
    """A wallet, a socket in the middle, and a far socket that is reached through it alone."""
    with Scene(module_network, TRADE, name="middle") as middle, Scene(module_network, TRADE, name="far") as far:
        middle.start_node()
        far.start_node()
        wallet = module_network.node("cable")
        module_network.line(wallet, middle.node, far.node)
        middle.wait_running()
        far.wait_running()
        yield wallet, middle, far


@pytest.fixture
def wallet(line: tuple[Node, Scene, Scene]) -> Node:
    return line[0]


@pytest.fixture
def middle(line: tuple[Node, Scene, Scene]) -> Scene:
    return line[1]


@pytest.fixture
def far(line: tuple[Node, Scene, Scene]) -> Scene:
    return line[2]


@contextmanager
def session(scene: Scene, wallet: Node, outlet_id: str = "A1") -> Iterator[HandCable]:
    """An open session, stopped at the end."""
    with HandCable(scene, wallet, outlet_id) as cable:
        cable.open()
        yield cable
        if cable.newest_state(scene) not in ("settling", "closed"):
            scene.node.rpc.call("wattline-stop", {"session_id": cable.session_id})
        wait_until("the session is closed", lambda: cable.newest_state(scene) == "closed", 30)


def arrived(outcome: SentPayment | SendFailure | None) -> bool:
    return isinstance(outcome, SentPayment) and outcome.status is SendStatus.COMPLETE


def agreed_books(scene: Scene, wallet: Node, session_id: str) -> Books:
    def look() -> Books | None:
        books = scene.books(wallet, session_id)
        return books if books.agree else None

    return wait_until("ledger, socket's node and cable's node agree", look, 20)


def pay_invoice(wallet: Node, payee: Node, amount_msat: int) -> None:
    label = f"coffee-{secrets.token_hex(8)}"
    invoice = payee.rpc.invoice(amount_msat, label, "wattline:1: is only a description here")
    wallet.rpc.call("xpay", {"invstring": invoice["bolt11"]})
    assert payee.rpc.listinvoices(label)["invoices"][0]["status"] == "paid"


def keysend(wallet: Node, payee: Node, amount_msat: int, text: str = "") -> None:
    extra = {"extratlvs": {str(STRANGE_TLV_TYPE): text.encode().hex()}} if text else {}
    assert len(wallet.keysend(payee, amount_msat, retry_for=10, **extra)["payment_preimage"]) == 64


def strangers_pass(wallet: Node, middle: Scene, far: Scene) -> None:
    """Payments to the middle node and through it, of every kind, also for a session of the socket behind it."""
    invoices = len(middle.node.rpc.listinvoices()["invoices"])
    forwards = len(middle.node.rpc.listforwards("settled")["forwards"])
    keysend(wallet, far.node, 10_000)
    keysend(wallet, far.node, 10_000, "for the electrician")
    pay_invoice(wallet, far.node, 10_000)
    with session(far, wallet) as cable:
        assert arrived(cable.pay(20_001))
        cable.statement(lambda s: s.credited_msat == 20_001)
        assert list(agreed_books(far, wallet, cable.session_id).credited.values()) == [20_001]
    assert len(middle.node.rpc.listforwards("settled")["forwards"]) >= forwards + 4
    assert len(middle.node.rpc.listinvoices()["invoices"]) == invoices, "nothing of it was for the node in the middle"
    keysend(wallet, middle.node, 1_000)
    keysend(wallet, middle.node, 1_000, "for the electrician")
    pay_invoice(wallet, middle.node, 1_000)


def test_payments_through_and_to_a_socket_s_node_pass(wallet: Node, middle: Scene, far: Scene) -> None:
    strangers_pass(wallet, middle, far)


def test_a_record_of_the_middle_socket_s_session_is_nothing_to_it_in_a_forward(
    wallet: Node, middle: Scene, far: Scene
) -> None:
    with session(middle, wallet) as own, HandCable(far, wallet) as stranger:
        outcome = stranger.pay(20_000, record=format_record(own.session_id, 1))
        assert isinstance(outcome, SendFailure), "the far socket has no such session"
        assert outcome.at_destination
        assert own.newest_state(middle) == "open"


@contextmanager
def broken_plugin(scene: Scene, directory: Path, method: str) -> Iterator[None]:
    """The plugin with a bug: a function of its gate raises whatever it is asked."""
    program = directory / "wattline-plugin"
    program.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            from wattline.plugin.hook import KeysendGate
            from wattline.plugin.main import main

            def broken(*_):
                raise RuntimeError("a bug")

            KeysendGate.{method} = broken
            main()
            """
        )
    )
    program.chmod(0o755)
    scene.unload_plugin()
    scene.node.start_plugin(program, wattline_config=str(scene.config), wattline_listen=scene.listen)
    scene.wait_running()
    try:
        yield
    finally:
        scene.node.stop_plugin(program)
        scene.load_plugin()
        scene.wait_running()


def test_when_judging_raises_strangers_pass_and_payments_with_the_record_fail(
    wallet: Node, middle: Scene, far: Scene, tmp_path: Path
) -> None:
    with broken_plugin(middle, tmp_path, "judge"):
        strangers_pass(wallet, middle, far)
        with session(middle, wallet) as cable:
            outcome = cable.pay(1_000)
            assert isinstance(outcome, SendFailure)
            assert outcome.code == "incorrect_or_unknown_payment_details"
            assert middle.session(cable.session_id)["credited_msat"] == 0
    with session(middle, wallet) as cable:
        assert arrived(cable.pay(1_000))


def test_when_even_the_quick_test_raises_everything_passes_and_the_journal_books_it_once(
    wallet: Node, middle: Scene, far: Scene, tmp_path: Path
) -> None:
    with broken_plugin(middle, tmp_path, "speaks_of_wattline"):
        strangers_pass(wallet, middle, far)
        with session(middle, wallet) as cable:
            assert arrived(cable.pay(1_000))
            wait_until("it is credited", lambda: middle.session(cable.session_id)["credited_msat"] == 1_000, 20)
            assert list(agreed_books(middle, wallet, cable.session_id).credited.values()) == [1_000]


def refused_first(cable: HandCable, first: pb.ChargeRequest) -> pb.Refusal:
    """What the socket answers to a stream that begins so; it ends the stream."""
    answers = list(cable.stub.Charge(iter([first]), timeout=CALL_TIMEOUT_S))
    assert [answer.WhichOneof("message") for answer in answers] == ["refusal"]
    return answers[0].refusal


def test_a_session_is_resumed_with_its_own_token_only(wallet: Node, middle: Scene) -> None:
    with session(middle, wallet) as victim, session(middle, wallet, "A2") as thief:
        for session_id, token, code in (
            (victim.session_id, secrets.token_bytes(32), "wrong_token"),
            (victim.session_id, thief.token, "wrong_token"),
            (victim.session_id, b"", "wrong_token"),
            ("0123456789ABCDEFGHJKMNPQRS", thief.token, "unknown_session"),
            ("", thief.token, "unknown_session"),
        ):
            resume = pb.ChargeRequest(resume=pb.Resume(session_id=session_id, token=token))
            assert refused_first(thief, resume).code == code
        assert not any(message.HasField("refusal") for message in victim.messages), "its stream is left alone"
        assert arrived(victim.pay(1_000))
        victim.close()
        assert victim.receipt().credited_msat == 1_000


def test_a_receipt_is_for_who_holds_the_token(wallet: Node, middle: Scene) -> None:
    with session(middle, wallet) as cable:
        cable.close()
        cable.receipt()
        for session_id, token in (
            (cable.session_id, secrets.token_bytes(32)),
            (cable.session_id, b""),
            ("0123456789ABCDEFGHJKMNPQRS", cable.token),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                cable.stub.GetReceipt(pb.GetReceiptRequest(session_id=session_id, token=token), timeout=CALL_TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert str(caught.value.details()).startswith("unknown_session: ")
        assert cable.newest_receipt().session_id == cable.session_id


def test_opening_again_with_a_token_gives_the_same_session_and_ends_the_older_stream(
    wallet: Node, middle: Scene
) -> None:
    with session(middle, wallet) as cable, HandCable(middle, wallet, "A2") as again:
        again.token = cable.token
        assert again.open() == cable.session_id
        assert again.messages[0].opened.resumed
        assert cable.message("refusal").refusal.code == "replaced"
        assert middle.status()["outlets"][1]["session_id"] is None, "no second session was opened"
        again.close()
        assert again.receipt().session_id == cable.session_id
    with HandCable(middle, wallet) as late:
        late.token = cable.token
        late.open()
        assert late.receipt().session_id == cable.session_id, "a session that is over is answered with its receipt"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": b""}, "bad_request"),
        ({"token": bytes(33)}, "bad_request"),
        ({"outlet_id": "A9"}, "unknown_outlet"),
        ({"outlet_id": "A1\n; DROP"}, "bad_request"),
        ({"tariff_id": "0123456789abcdef"}, "tariff_changed"),
        ({"method": 2}, "method_not_supported"),
        ({"method": 77}, "method_not_supported"),
        ({"cable_node_id": ""}, "bad_request"),
        ({"cable_node_id": "04" + "00" * 32}, "bad_request"),
        ({"signature": "y" * 104}, "not_allowed"),
        ({"signature": "9" * 104}, "not_allowed"),
        ({"signature": "d7" + "y" * 102}, "not_allowed"),
        ({"signature": "rm" + "9" * 102}, "not_allowed"),
        ({"signature": "rc" + "y" * 102}, "not_allowed"),
        ({"signature": "not zbase32 !"}, "not_allowed"),
    ],
)
def test_an_open_that_makes_no_sense_is_refused(
    wallet: Node, middle: Scene, changes: dict[str, object], code: str
) -> None:
    with HandCable(middle, wallet) as cable, pytest.raises(OpenRefusedError) as caught:
        cable.open(**changes)
    assert caught.value.code == code
    assert [outlet["state"] for outlet in middle.status()["outlets"]] == ["available", "available"]


def test_an_open_is_signed_by_the_cable_s_own_node(wallet: Node, middle: Scene, far: Scene) -> None:
    with HandCable(middle, wallet) as cable:
        opening = pb.Open(
            token=cable.token,
            outlet_id="A1",
            tariff_id=cable.offer().tariff.tariff_id,
            method=pb.METHOD_KEYSEND,
            cable_node_id=wallet.node_id,
            socket_node_id=middle.node.node_id,
        )
        content = opening.SerializeToString(deterministic=True)
        opening.signature = sign(CoreLightning(far.node.rpc_path), "open", content)
        assert refused_first(cable, pb.ChargeRequest(open=opening)).code == "not_allowed"
        elsewhere = pb.Open()
        elsewhere.CopyFrom(opening)
        elsewhere.socket_node_id, elsewhere.signature = far.node.node_id, ""
        elsewhere.signature = sign(cable.wallet, "open", elsewhere.SerializeToString(deterministic=True))
        assert refused_first(cable, pb.ChargeRequest(open=elsewhere)).code == "not_allowed"
        cable.open(signature=sign(cable.wallet, "open", content), socket_node_id=middle.node.node_id)
        cable.close()
        cable.receipt()


def test_a_first_message_that_makes_no_sense_is_refused(wallet: Node, middle: Scene) -> None:
    with HandCable(middle, wallet) as cable:
        for first in (
            pb.ChargeRequest(),
            pb.ChargeRequest(meter_value=pb.MeterValue(energy_uwh=1)),
            pb.ChargeRequest(close=pb.Close(reason="done")),
        ):
            assert refused_first(cable, first).code == "bad_request"
        assert [answer.refusal.code for answer in cable.stub.Charge(iter([]), timeout=CALL_TIMEOUT_S)] == [
            "bad_request"
        ]
        garbage: Any = cable._channel.stream_stream("/wattline.v1.ChargingService/Charge")
        with pytest.raises(grpc.RpcError):
            list(garbage(iter([b"\xff\xff\xff\xff"]), timeout=CALL_TIMEOUT_S))
        with pytest.raises(grpc.RpcError) as caught:
            list(garbage(iter([bytes(200_000)]), timeout=CALL_TIMEOUT_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert cable.offer().node_id == middle.node.node_id


def test_a_second_open_within_a_stream_ends_it_and_not_the_session(wallet: Node, middle: Scene) -> None:
    with session(middle, wallet) as cable:
        cable._up.put(pb.ChargeRequest(open=pb.Open(token=cable.token)))
        assert cable.message("refusal").refusal.code == "bad_request"
        assert cable.newest_state(middle) == "open"
        cable.reconnect()
        assert cable.messages[0].opened.resumed


def test_streams_that_say_nothing_are_cut_and_do_not_keep_others_out(wallet: Node, middle: Scene) -> None:
    released = threading.Event()

    def silence() -> Iterator[pb.ChargeRequest]:
        released.wait()
        yield from ()

    with session(middle, wallet) as cable, HandCable(middle, wallet, "A2") as crowd:
        calls = [
            crowd.stub.Charge(silence(), timeout=FIRST_MESSAGE_S + CALL_TIMEOUT_S) for _ in range(MAX_STREAMS + 16)
        ]
        try:
            with ThreadPoolExecutor(len(calls)) as pool:
                codes = list(pool.map(lambda call: call.code(), calls))
        finally:
            released.set()
        assert set(codes) == {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes.count(grpc.StatusCode.CANCELLED) >= MAX_STREAMS
        assert arrived(cable.pay(1_000)), "who was there before is not disturbed"
        cable.statement(lambda s: s.credited_msat == 1_000)
        assert crowd.open() == crowd.session_id
        crowd.close()
        crowd.receipt()


def test_a_cable_that_never_reads_holds_up_nobody(wallet: Node, middle: Scene) -> None:
    token, done = secrets.token_bytes(32), threading.Event()
    with HandCable(middle, wallet) as mute:
        opening = pb.Open(
            token=token,
            outlet_id="A1",
            tariff_id=mute.offer().tariff.tariff_id,
            method=pb.METHOD_KEYSEND,
            cable_node_id=wallet.node_id,
        )

        def requests() -> Iterator[pb.ChargeRequest]:
            yield pb.ChargeRequest(open=opening)
            done.wait()

        call = mute.stub.Charge(requests())
        try:
            mute.session_id = wait_until(
                "its session is open",
                lambda: "".join(middle.status()["outlets"][0]["waiting_sessions"]),
                CALL_TIMEOUT_S,
            )
            for price in range(100_000, 100_300):
                middle.node.rpc.call("wattline-tariff", {"energy_msat_per_kwh": price})
            with session(middle, wallet, "A2") as other:
                assert arrived(other.pay(1_000))
                other.close()
                assert other.receipt().credited_msat == 1_000
            middle.node.rpc.call("wattline-stop", {"session_id": mute.session_id})
            wait_until("its session is closed", lambda: mute.newest_state(middle) == "closed", CALL_TIMEOUT_S)
        finally:
            done.set()
            call.cancel()
