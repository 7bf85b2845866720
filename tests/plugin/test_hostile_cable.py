"""A cable that says whatever the wire can carry, in any order: the real service and reception on fakes.

Nothing of it makes an internal error, a log line that is not one plain line, or an answer that the protocol has not.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cable.judged_node import zbase_of
from tests.core.lightning.judge import ZBASE32
from tests.core.wire.messages import EVIL, SHAPES, TEXTS, either, fit, wild
from tests.plugin.fakes import CABLE, SOCKET, Stall, hello, node_id, wait_until
from tests.plugin.judged_node import SellingNode
from tests.plugin.still_stall import Wallet
from wattline.core.lightning.node import is_node_id, onchain_content, signed_text
from wattline.core.wire.reading import admitted
from wattline.plugin.limits import CountedLog
from wattline.plugin.service import ChargingService
from wattline.plugin.streams import QUEUE_LENGTH
from wattline.v1 import charging_pb2 as pb

ANSWER_S = 5.0
LINES_EACH = 3
"""So many log lines, at the most, for one message of a cable's."""
NUMBERS = itertools.count(100)


class Lines(logging.Handler):
    """All that wattline logs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """All that wattline logs meanwhile, down to the least."""
    lines, logger = Lines(), logging.getLogger("wattline")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(lines)
    try:
        yield lines.records
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)


class Context:
    """Of one call; ``abort`` ends it as gRPC does."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.details = ""

    def cancel(self) -> None: ...

    def peer(self) -> str:
        """Another one each time: how often one may ask is tried elsewhere."""
        number = next(NUMBERS)
        return f"ipv4:10.0.{number // 256 % 256}.{number % 256}:4711"

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.details = details
        raise grpc.RpcError(details)


@pytest.fixture(scope="module")
def stall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stall]:
    folder: Path = tmp_path_factory.mktemp("socket")
    with Stall(folder, takes_onchain=True) as stall:
        verify = stall.signer.verify

        def watched(message: str, signature: str, signer_id: str) -> bool:
            assert message.isascii()
            assert message.isprintable()
            assert is_node_id(signer_id), "an id that was not looked at reaches the node"
            return verify(message, signature, signer_id)

        vars(stall.signer)["verify"] = watched
        yield stall


def said(stall: Stall, first: pb.ChargeRequest, later: Iterable[pb.ChargeRequest]) -> list[pb.ChargeResponse]:
    """What comes down when this goes up and the cable then hangs up."""
    context, hung_up = Context(), threading.Event()

    def requests() -> Iterator[pb.ChargeRequest]:
        yield first
        yield from later
        hung_up.set()

    heard: list[pb.ChargeResponse] = []
    answers = ChargingService(stall.app.requests).Charge(requests(), context)  # type: ignore[arg-type]
    reader = threading.Thread(target=lambda: heard.extend(answers), daemon=True)
    reader.start()
    while not hung_up.wait(0.02) and reader.is_alive():
        pass
    for callback in context.callbacks:
        callback()
    reader.join(ANSWER_S)
    assert not reader.is_alive()
    return heard


def good_opening(stall: Stall) -> pb.ChargeRequest:
    number = next(NUMBERS)
    return pb.ChargeRequest(open=stall.request(number.to_bytes(32, "big"), cable_node_id=node_id(number)))


def openings(stall: Stall) -> st.SearchStrategy[pb.ChargeRequest]:
    """Mostly such as open a session: then what follows is said to one."""
    good = st.builds(lambda: good_opening(stall))
    nonsense = st.one_of(either(pb.ChargeRequest), fit(pb.ChargeRequest, "open"), wild(pb.ChargeRequest, "open"))
    return st.one_of(good, good, nonsense)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_cable_s_message_is_an_internal_error_or_more_than_a_plain_line_of_the_log(stall: Stall, data: Any) -> None:
    first = data.draw(openings(stall))
    later = data.draw(st.lists(either(pb.ChargeRequest), max_size=8))
    with logged() as records:
        heard = said(stall, first, later)
        end_sessions(stall)
    for record in records:
        assert record.exc_info is None, logging.Formatter().format(record)
        assert record.levelno < logging.ERROR, record.getMessage()
        assert record.getMessage().isprintable(), repr(record.getMessage())
    assert len(records) <= LINES_EACH * (len(later) + 2)
    assert len(heard) <= QUEUE_LENGTH
    for answer in heard:
        assert answer.WhichOneof("message") is not None
        before = answer.SerializeToString(deterministic=True)
        assert admitted(answer).SerializeToString(deterministic=True) == before, "what we send is fit to be read"


def test_a_number_out_of_range_ends_the_stream_with_a_word_on_it_and_not_the_session(stall: Stall) -> None:
    value = pb.MeterValue(energy_uwh=2**64 - 1)
    heard = said(stall, good_opening(stall), [pb.ChargeRequest(meter_value=value)])
    opened, refused = heard
    assert opened.HasField("opened")
    assert refused.refusal.code == "bad_request"
    assert refused.refusal.message.startswith(
        "ChargeRequest.meter_value.energy_uwh is 18446744073709551615; allowed: 0 to"
    )
    assert stall.session.state.is_live
    end_sessions(stall)


def test_what_a_cable_says_for_the_record_is_one_plain_line_of_the_log_and_of_the_ledger(stall: Stall) -> None:
    closing = pb.ChargeRequest(close=pb.Close(reason=EVIL + "A" * 500))
    vars(stall.app.requests)["_lines"] = vars(stall.opener)["_lines"] = CountedLog()
    with logged() as records:
        said(stall, good_opening(stall), [closing])
        end_sessions(stall)
    (told,) = [record.getMessage() for record in records if "closed by the cable" in record.getMessage()]
    assert "\\x1b[2J" in told
    assert told.isprintable()
    assert len(told) < 160


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(fit(pb.GetOfferRequest), wild(pb.GetOfferRequest), fit(pb.GetReceiptRequest), wild(pb.GetReceiptRequest))
)
def test_no_question_outside_a_session_is_an_internal_error(stall: Stall, request_: Any) -> None:
    service, context = ChargingService(stall.app.requests), Context()
    ask: Any = service.GetOffer if isinstance(request_, pb.GetOfferRequest) else service.GetReceipt
    try:
        answer = ask(request_, context)
    except grpc.RpcError:
        assert context.details.isprintable()
        assert len(context.details) < 400
    else:
        admitted(answer)
        if isinstance(answer, pb.GetOfferResponse):
            admitted(pb.Offer.FromString(answer.offer))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stall]:
    """Its node fails the test when it is called with something foreign that was not parsed."""
    with Stall(tmp_path_factory.mktemp("judged"), takes_onchain=True, node_on=SellingNode) as stall:
        yield stall
        assert stall.node.broken == []


def signed_opening(stall: Stall, method: pb.Method.ValueType, cable_node_id: str, signature: str = "") -> pb.Open:
    """Signed as that node signs, unless another signature is given."""
    token = next(NUMBERS).to_bytes(32, "big")
    request = stall.request(token, method=method, cable_node_id=cable_node_id)
    text = signed_text("open", request.SerializeToString(deterministic=True))
    request.signature = signature or zbase_of(text, cable_node_id)
    return request


SIGNATURES = st.one_of(TEXTS, st.sampled_from(SHAPES), st.text(ZBASE32, min_size=104, max_size=104))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_cable_s_reaches_the_node_that_was_not_parsed(judged: Stall, data: Any) -> None:
    cable_node_id = data.draw(st.one_of(st.just(node_id(next(NUMBERS))), TEXTS, st.sampled_from(SHAPES)))
    method = data.draw(st.sampled_from([pb.METHOD_KEYSEND, pb.METHOD_ONCHAIN]))
    signature = data.draw(st.one_of(st.just(""), SIGNATURES))
    opening = signed_opening(judged, method, cable_node_id, signature)
    asked, psbt = data.draw(st.one_of(st.just(None), SIGNATURES)), data.draw(st.binary(max_size=300))

    def later() -> Iterator[pb.ChargeRequest]:
        found = judged.ledger.session_by_token(hashlib.sha256(opening.token).hexdigest())
        session = found.session.session_id if found is not None else ""
        good = zbase_of(signed_text("onchain", onchain_content(SOCKET, session)), cable_node_id)
        yield pb.ChargeRequest(onchain_request=pb.OnchainRequest(signature=good if asked is None else asked))
        yield pb.ChargeRequest(aggregate_version=pb.AggregateVersion(number=1, psbt=psbt))

    said(judged, pb.ChargeRequest(open=opening), later())
    end_sessions(judged)
    assert judged.node.broken == []


def test_a_session_of_each_way_of_paying_hands_the_node_only_what_was_parsed(judged: Stall) -> None:
    session = hello(judged.app.requests.open(signed_opening(judged, pb.METHOD_KEYSEND, CABLE))).session_id
    judged.pay(session, 1, 50_000)
    judged.app.requests.close(session, "done")
    wait_until(lambda: judged.is_over(session))
    assert judged.receipt(session).refunded_msat > 0

    session = hello(judged.app.requests.open(signed_opening(judged, pb.METHOD_ONCHAIN, CABLE))).session_id
    aggregate = judged.ask_for_address(session, zbase_of)
    tx = Wallet.of(judged.chain, aggregate.script).sign(aggregate.rules.floor_sat)
    judged.hand_over(session, 1, tx)
    judged.deliver(aggregate.rules.floor_sat * 1000)
    judged.app.requests.close(session, "done")
    wait_until(lambda: tx.txid in judged.chain.mempool)
    # lightningd hears of it after bitcoind.
    every = {"checkmessage", "createonion", "getroutes", "newaddr", "sendonion", "sendpsbt", "signmessage"}
    wait_until(lambda: every <= {*judged.node.asked})
    assert judged.node.broken == []


def end_sessions(stall: Stall) -> None:
    for record in stall.ledger.sessions(100):
        stall.app.sessions.stop(record.session.session_id)
    wait_until(lambda: stall.outlet.view.session is None and not stall.outlet.view.waiting)
