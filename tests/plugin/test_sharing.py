"""Sessions that have paid nothing: they share an outlet, keep it from nobody, and leave nothing behind."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugin.fakes import (
    CABLE,
    Stall,
    hello,
    htlc,
    new_session,
    node_id,
    payment_hash,
    record_of,
    session_id,
    wait_until,
)
from tests.plugin.still_stall import FLOOR_SAT, StillStall, Wallet
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.clock import DAY_S
from wattline.core.errors import RetryError
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.state import State, StopReason
from wattline.plugin.hook import KeysendGate, Pass, Refuse
from wattline.plugin.limits import Limits
from wattline.plugin.onchain.admission import MOST_GIVEN_BACK
from wattline.plugin.sessions import UNPAID_KEPT, UNPAID_KEPT_S
from wattline.plugin.streams import QUEUE_LENGTH, Refused, Stream
from wattline.v1 import charging_pb2 as pb

OTHER = node_id(6)
FLOOD_AT, HONEST_AT = "ipv4:198.51.100.7:4711", "ipv4:192.0.2.1:4711"


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    with Stall(tmp_path) as stall:
        yield stall


@pytest.fixture
def still(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as still:
        yield still


def token(number: int) -> bytes:
    return number.to_bytes(32, "big")


def heard(stream: Stream) -> list[pb.ChargeResponse]:
    """Everything, when it has ended."""
    stream.end()
    return list(stream)


def refusals(messages: list[pb.ChargeResponse]) -> list[str]:
    return [message.refusal.code for message in messages if message.HasField("refusal")]


def offers_the_outlet(stall: Stall) -> bool:
    return pb.Offer.FromString(stall.app.requests.offer(b"n" * 16).offer).outlets[0].available


def judge(stall: Stall, session: str, number: int, amount_msat: int = 1000) -> str:
    """The code with which the hook fails payment ``number``; empty when it passes."""
    answer = KeysendGate(lambda: stall.app.crediting).judge(htlc(session, number, amount_msat))
    assert isinstance(answer, Pass | Refuse)
    return answer.code if isinstance(answer, Refuse) else ""


def test_the_first_credit_takes_the_outlet_and_the_other_cable_is_told_and_keeps_its_money(stall: Stall) -> None:
    streams = [stall.app.requests.open(stall.request(token(number))) for number in range(2)]
    first, second = (next(iter(stream)).opened.session_id for stream in streams)
    assert offers_the_outlet(stall)
    stall.pay(second, 1, 5000)
    assert not offers_the_outlet(stall)
    assert judge(stall, first, 2) in ("outlet_busy", "unknown_session")
    wait_until(lambda: not stall.app.streams.is_attached(first))
    assert refusals(heard(streams[0])) == ["outlet_busy"]
    over = stall.ledger.session(first)
    assert over is not None
    assert (over.session.state, over.session.stop_reason) == (State.CLOSED, StopReason.OUTLET_TAKEN)
    assert stall.receipt(first).credited_msat == 0, "it may be asked for"
    assert stall.session.session_id == second


def test_from_the_first_payment_on_its_way_others_keep_their_money_until_it_cannot_come_in_any_more(
    stall: Stall,
) -> None:
    first, second = stall.open(token(1)), stall.open(token(2))
    assert judge(stall, first, 1) == ""
    assert judge(stall, second, 2) == "outlet_busy"
    assert judge(stall, first, 3) == "", "its own next one passes"
    stall.app.reservations.forget(first)
    assert judge(stall, second, 2) == ""
    stall.app.crediting.paid(payment_hash(2), 1000)
    wait_until(lambda: stall.outlet.view.session is not None)
    assert stall.session.session_id == second


def test_of_two_sessions_that_both_were_paid_the_first_in_the_journal_has_the_outlet_and_the_other_gets_it_back(
    stall: Stall,
) -> None:
    """The plugin was killed between two payments and its next save."""
    records = [
        record_of(new_session(number), token(number), cable_node_id=cable) for number, cable in ((1, CABLE), (2, OTHER))
    ]
    for record in records:
        stall.ledger.save_session(record)
        stall.app.restore(record)
    stall.journal.add(session_id(2), 1, 7000)
    stall.journal.add(session_id(1), 2, 5000)
    stall.app.journal.read_to_end()
    assert stall.session.session_id == session_id(2)
    assert stall.ledger.credited_msat(session_id(2)) == 7000
    assert [orphan.session_id for orphan in stall.ledger.orphans()] == [session_id(1)]
    wait_until(lambda: stall.app.sessions.outlet_of(session_id(1)) is None)
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 5000)]


@pytest.mark.parametrize("ends", ["the cable closes", "the operator stops it", "its outlet is taken"])
def test_a_session_that_was_never_paid_leaves_no_row_for_ever(stall: Stall, ends: str) -> None:
    session = stall.open(token(1))
    if ends == "the cable closes":
        stall.app.requests.close(session, "done")
    elif ends == "the operator stops it":
        stall.app.sessions.stop(session)
    else:
        stall.pay(stall.open(token(2)), 1, 5000)
    wait_until(lambda: stall.app.sessions.outlet_of(session) is None)
    stall.app.sessions.save_changed()
    assert list(stall.ledger.events(100, session)) == []
    assert list(stall.ledger.receipts(session)) == []
    assert stall.ledger.session(session) is not None, "a payment of it may still be on its way"
    passed = [0.0]
    vars(stall.app.sessions)["_clock"] = lambda: time.monotonic() + passed[0]
    for passed[0], is_known in ((0.0, True), (UNPAID_KEPT_S - 60.0, True), (UNPAID_KEPT_S + 60.0, False)):
        stall.app.sessions.forget_unpaid()
        assert (stall.ledger.session(session) is not None) is is_known
    with pytest.raises(Refused, match="no session with that id"):
        stall.app.requests.receipt(session, token(1))


def test_what_was_paid_or_is_still_owed_is_never_forgotten(stall: Stall) -> None:
    paid, named = stall.open(token(1)), session_id(8)
    stall.pay(paid, 1, 5000)
    stall.app.requests.close(paid, "done")
    wait_until(lambda: stall.is_over(paid))
    stall.ledger.save_session(closed_unpaid(8))
    stall.journal.add(named, 2, 4000)
    stall.app.journal.read_to_end()
    assert list(stall.ledger.unpaid_over()) == []
    stall.ledger.forget_unpaid([paid, named])
    assert stall.ledger.session(paid) is not None
    assert stall.ledger.session(named) is not None, "an orphan names it: it tells where that goes"


def closed_unpaid(number: int) -> SessionRecord:
    over = replace(new_session(number), state=State.CLOSED, stop_reason=StopReason.NOT_PAID)
    return record_of(over, token(number), closed_at=1000 + number)


def test_however_many_sessions_are_opened_and_never_paid_only_so_many_rows_stay(
    stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.plugin.sessions.UNPAID_KEPT", 5)
    for number in range(30):
        stall.ledger.save_session(closed_unpaid(number))
    stall.app.sessions.forget_unpaid()
    assert [record.session.session_id for record in stall.ledger.sessions(100)] == [
        session_id(number) for number in range(29, 24, -1)
    ]


def test_a_flood_of_opens_keeps_the_outlet_from_nobody_who_pays(stall: Stall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stall.limit(Limits(stall.settings.limits, lambda: 0.0))
    opened, codes = 0, set()

    def flood(begin: int) -> None:
        nonlocal opened
        for number in range(begin, begin + 100):
            try:
                stall.app.requests.open(stall.request(token(number), cable_node_id=node_id(number)), FLOOD_AT)
                opened += 1
            except Refused as refused:
                codes.add((refused.code, "try again in" in refused.message))

    flood(100)
    honest = stall.app.requests.open(stall.request(token(1)), HONEST_AT)
    session = next(iter(honest)).opened.session_id
    flood(300)
    assert codes == {("too_many_opens", True)}
    assert opened < 60
    stall.pay(session, 1, 5000)
    assert stall.session.session_id == session
    wait_until(lambda: not stall.outlet.view.waiting)
    assert len(stall.ledger.sessions(1000)) == opened + 1, "what was refused wrote nothing"
    assert len(caplog.records) < 10


def test_when_too_many_wait_the_oldest_of_the_address_with_most_goes_and_is_told(stall: Stall) -> None:
    stall.app.limits.unpaid._most = 2
    streams = [
        stall.app.requests.open(stall.request(token(number)), peer)
        for number, peer in enumerate((HONEST_AT, FLOOD_AT, FLOOD_AT, FLOOD_AT))
    ]
    wait_until(lambda: len(vars(stall.app.streams)["_streams"]) == 2)
    assert [refusals(heard(stream)) for stream in streams] == [[], ["too_many_opens"], ["too_many_opens"], []]


def test_offers_and_receipts_are_signed_only_so_often_for_one_address(stall: Stall) -> None:
    stall.limit(Limits(stall.settings.limits, lambda: 0.0))
    for _ in range(160):
        stall.app.requests.offer(b"n" * 16, FLOOD_AT)
    with pytest.raises(RetryError, match="try again in 1 s"):
        stall.app.requests.offer(b"n" * 16, FLOOD_AT)
    assert len(stall.signer.signed) == 160
    with pytest.raises(RetryError):
        stall.app.requests.receipt(session_id(1), token(1), FLOOD_AT)
    assert stall.app.requests.offer(b"n" * 16, HONEST_AT)


def test_a_stream_that_nobody_reads_is_cut() -> None:
    stream, cuts = Stream("S"), []
    stream.cut = lambda: cuts.append("cut")
    for number in range(QUEUE_LENGTH):
        stream.put(pb.ChargeResponse(statement=pb.Statement(sequence=number)))
    assert not cuts
    stream.put(pb.ChargeResponse())
    assert cuts == ["cut"]
    assert len(list(stream)) < QUEUE_LENGTH


def test_a_small_payment_is_failed_and_a_flood_of_them_changes_nobodys_increment(stall: Stall) -> None:
    session = stall.open()
    for number in range(50):
        assert judge(stall, session, number, 9) == "below_min_increment"
    assert stall.app.reservations.in_flight_msat(session) == 0
    assert judge(stall, session, 60, 10) == ""
    assert pb.Offer.FromString(stall.app.requests.offer(b"n" * 16).offer).min_increment_msat == 10


# On the chain.


def test_an_address_that_no_version_ever_named_is_given_to_the_next_session_and_one_that_did_never_again(
    still: StillStall,
) -> None:
    first, second = still.open(1), still.open(2, "A2")
    addresses = [still.invite(session).address for session in (first, second)]
    assert len(set(addresses)) == 2, "one address, one session"
    for session in (first, second):
        still.close_session(session)
    still.work()
    still.kill()
    third = still.open(3)
    invitation = still.invite(third)
    assert invitation.address in addresses
    assert still.ledger.aggregate(first) is None or still.ledger.aggregate(second) is None
    assert still.hand_over(third, 1, Wallet.of(still.chain, invitation.script).sign(1500)) == ""
    still.finish(third)
    fourth, fifth = still.open(4), still.open(5, "A2")
    assert still.invite(fourth).address != invitation.address
    assert still.invite(fifth).address not in (invitation.address, still.invite(fourth).address)
    assert len(still.funds.addresses) == 3, "the third one was needed: two live sessions, and one that is used"


def test_the_first_version_takes_the_outlet_and_another_cables_is_refused_before_it_is_stored(
    still: StillStall,
) -> None:
    first, second = still.open(1), still.open(2, cable_node_id=OTHER)
    wallets = [
        Wallet.of(still.chain, still.invite(session, cable).script)
        for session, cable in ((first, CABLE), (second, OTHER))
    ]
    assert still.hand_over(second, 1, wallets[1].sign(1500)) == ""
    assert still.hand_over(first, 1, wallets[0].sign(1500)) == "session_closed"
    assert still.ledger.newest_version(first) is None
    assert still.session(second).account.credited_msat == 1_500_000
    still.work()
    assert still.session(first).stop_reason is StopReason.OUTLET_TAKEN


def test_while_a_payment_over_lightning_is_on_its_way_no_version_of_another_session_is_stored(
    still: StillStall,
) -> None:
    first, second = still.open(1), still.open(2, cable_node_id=OTHER)
    wallet = Wallet.of(still.chain, still.invite(second, OTHER).script)
    assert still.app.reservations.reserve(payment_hash(1), first, 5000, lambda _: True)
    assert still.hand_over(second, 1, wallet.sign(1500)) == "session_closed"
    still.app.reservations.release(payment_hash(1))
    assert still.hand_over(second, 1, wallet.sign(1500)) == ""
    assert still.app.reservations.in_flight_msat(second) == 0


def test_refused_versions_and_invitations_are_looked_at_only_so_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Stall(tmp_path, takes_onchain=True) as stall:
        assert stall.app.onchain is not None
        vars(stall.app.requests)["_pause"].set()  # nobody waits here
        session = stall.open()
        looked_at: list[int] = []
        take = stall.app.onchain.intake.hand_over

        def counted(session_id: str, version: pb.AggregateVersion) -> pb.VersionAccepted:
            looked_at.append(version.number)
            return take(session_id, version)

        vars(stall.app.onchain.intake)["hand_over"] = counted
        for number in range(1, 1000):
            stall.app.requests.aggregate_version(session, pb.AggregateVersion(number=number, psbt=b"no"))
        assert len(looked_at) < 60
        calls = len(stall.funds.addresses)
        for _ in range(1000):
            stall.app.requests.onchain_request(session, pb.OnchainRequest(signature="no"))
        assert len(stall.funds.addresses) == calls
    assert len(caplog.records) < 10


def test_unpaid_sessions_with_payments_that_never_come_hold_up_nobody_who_has_paid(tmp_path: Path) -> None:
    with Stall(tmp_path, drain_timeout_s=60.0) as stall:
        for number in range(1, 25):
            unpaid = stall.open(bytes([number]) * 32)
            assert stall.app.reservations.reserve(payment_hash(number + 100), unpaid, 1000, lambda _: True)
            stall.app.requests.close(unpaid, "bye")
        honest = stall.open(b"h" * 32)
        assert stall.app.reservations.reserve(payment_hash(1), honest, 5000, lambda _: True)
        stall.app.crediting.paid(payment_hash(1), 5000)
        stall.journal.add(honest, 1, 5000)
        wait_until(lambda: stall.outlet.view.session is not None)
        stall.app.requests.close(honest, "done")
        wait_until(lambda: stall.is_over(honest), 10)


def test_sessions_with_payments_that_never_come_are_crowded_out_and_honest_ones_are_not(tmp_path: Path) -> None:
    with Stall(tmp_path) as stall:
        stall.app.limits.unpaid._most = 5
        honest = hello(stall.app.requests.open(stall.request(b"h" * 32), "ipv4:192.0.2.1:1")).session_id
        for number in range(1, 30):
            request = stall.request(bytes([number]) * 32)
            unpaid = hello(stall.app.requests.open(request, "ipv4:198.51.100.7:1")).session_id
            assert stall.app.reservations.reserve(payment_hash(number + 100), unpaid, 1000, lambda _: True)
        waiting = [each.session_id for each in stall.outlet.view.waiting if each.state.is_live]
        assert honest in waiting
        assert len(waiting) <= 6


def test_opens_that_did_not_come_about_push_out_nobody_who_may_still_be_paid(tmp_path: Path) -> None:
    with Stall(tmp_path) as stall:
        first = stall.open(b"a" * 32)
        stall.app.requests.close(first, "bye")
        wait_until(lambda: stall.app.sessions.outlet_of(first) is None)
        for number in range(2000, 2000 + UNPAID_KEPT + 1):
            record = record_of(new_session(number), number.to_bytes(32, "big"))
            stall.app.sessions.add(record, stall.outlet)
            stall.app.sessions.never_opened(record.session.session_id)
        assert first in stall.app.sessions._over_unpaid


def test_a_coin_that_was_handed_over_for_nothing_too_often_is_taken_again_a_day_later_and_others_meanwhile(
    still: StillStall,
) -> None:
    numbers, coin = itertools.count(1), still.chain.fund(100_000)

    def idle(coin: Outpoint) -> str:
        """A session that is paid with the coin and takes nothing; why it was refused."""
        session = still.open(next(numbers))
        code = still.hand_over(session, 1, Wallet(still.chain, [coin], still.invite(session).script).sign(FLOOR_SAT))
        still.close_session(session)
        still.work()
        assert still.is_over(session)
        return code

    assert [idle(coin) for _ in range(MOST_GIVEN_BACK + 2)] == [""] * MOST_GIVEN_BACK + ["input_refused"] * 2
    assert idle(still.chain.fund(100_000)) == ""
    still.time_s += DAY_S + 1
    assert idle(coin) == ""
