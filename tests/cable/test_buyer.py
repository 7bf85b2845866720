from __future__ import annotations

from dataclasses import replace

from wattline.cable.policy.budget import Caps, PaymentAccount
from wattline.cable.policy.buyer import METER_STALE_MS, PAY_BLIND_MS, Buyer
from wattline.cable.policy.events import Arrived, Failed, InDoubt, Payment, PaymentRefused, SocketState, Statement
from wattline.cable.policy.offer import BuyerLimits, SessionTerms
from wattline.cable.policy.reconciliation import EnergyTrack, Lateness, Tolerance
from wattline.cable.policy.rhythm import Hold, Pace
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.meters.reading import MIN_VOLTAGE_MV

TARIFF = Tariff.of(300_000)
SESSION = "00000000000000000000000001"
TERMS = SessionTerms(SESSION, "02" + "51" * 32, "A1", TARIFF, 1_400_000, 100_000, 1_000, 10, 1)
STATEMENT = Statement(SESSION, 1, SocketState.OPEN, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, "")


class Desk:
    """A buyer at time 0 with one reading, and what it was told to begin."""

    def __init__(self, caps: Caps | None = None, terms: SessionTerms = TERMS) -> None:
        self.now_ms = 0
        self.begun: list[Payment] = []
        self.buyer = Buyer(
            terms=terms,
            limits=BuyerLimits(
                caps or Caps(5_000, 1_000_000, 1_000_000, 50_000),
                Pace(10, 10_000, 4),
                Tolerance(20_000, 1_000_000),
                3,
                MIN_VOLTAGE_MV,
            ),
            account=PaymentAccount(),
            track=EnergyTrack(0),
            day_sent_msat=lambda account: account.sent_msat,
            next_sequence=1,
            opened_ms=0,
        )
        self.tell()

    def tell(self, **changes: object) -> None:
        """A new reading and a statement that follows the last one with ``changes``."""
        self.buyer.on_reading(self.now_ms, self.buyer.track.energy_uwh, 0, 48_000)
        last = self.buyer.statement or STATEMENT
        self.buyer.on_statement(replace(last, sequence=last.sequence + 1, **changes), self.now_ms)  # type: ignore[arg-type]

    def later(self, passed_ms: int, **changes: object) -> list[Payment]:
        self.now_ms += passed_ms
        self.tell(**changes)
        payments = self.buyer.decide(self.now_ms)
        self.begun += payments
        return payments

    def all_arrive(self) -> None:
        for payment in self.begun:
            self.buyer.on_payment(Arrived(payment.sequence, payment.amount_msat, payment.amount_msat, 50), self.now_ms)
        self.begun.clear()


def test_a_socket_that_does_not_begin_is_offered_more_and_more_within_the_cap() -> None:
    desk = Desk()
    first = desk.later(0)
    desk.all_arrive()
    assert first
    for _ in range(60):
        desk.later(500)
        desk.all_arrive()
    assert 5 * first[0].amount_msat < desk.buyer.account.settled_msat <= 5_000


def test_without_a_fresh_own_reading_nothing_is_paid() -> None:
    desk = Desk()
    assert desk.buyer.decide(METER_STALE_MS + 1) == []
    assert desk.buyer.decide(0) != []


def test_while_the_stream_is_cut_payments_go_on_only_for_a_moment() -> None:
    desk = Desk()
    desk.buyer.on_cut(0)
    desk.buyer.on_reading(PAY_BLIND_MS + 1, 0, 0, 48_000)
    assert desk.buyer.decide(PAY_BLIND_MS + 1) == []
    desk = Desk()
    desk.buyer.on_cut(0)
    desk.buyer.on_reading(1_000, 0, 0, 48_000)
    assert desk.buyer.decide(1_000) != []


def test_a_session_that_settles_is_not_paid() -> None:
    desk = Desk()
    assert desk.later(10, state=SocketState.SETTLING) == []


def test_after_the_stop_nothing_is_paid_and_the_first_reason_stands() -> None:
    desk = Desk()
    desk.buyer.end("done", "enough")
    desk.buyer.end("energy_mismatch", "too late")
    assert desk.later(10) == []
    assert desk.buyer.stop is not None
    assert desk.buyer.stop.reason == "done"


def test_the_socket_s_credit_cap_binds_like_the_own_one() -> None:
    desk = Desk(terms=replace(TERMS, credit_cap_msat=300))
    desk.later(0)
    assert desk.buyer.account.handed_over_msat <= 300


def test_an_old_statement_does_not_replace_a_newer_one() -> None:
    desk = Desk()
    desk.later(10, credited_msat=0)
    newest = desk.buyer.statement
    desk.buyer.on_statement(STATEMENT, desk.now_ms)
    assert desk.buyer.statement is newest


def test_a_payment_in_doubt_stays_in_flight_until_it_is_known() -> None:
    desk = Desk()
    payment = desk.later(0)[0]
    desk.buyer.on_payment(InDoubt(payment.sequence, payment.amount_msat, "?"), 10)
    assert desk.buyer.in_doubt == {payment.sequence}
    assert desk.buyer.account.in_flight_msat == payment.amount_msat
    desk.buyer.on_payment(Failed(payment.sequence, payment.amount_msat, "failed", "came back"), 20)
    assert desk.buyer.in_doubt == set()
    assert desk.buyer.account.in_flight_msat == 0


def test_a_payment_adopted_from_an_earlier_run_is_in_flight_and_its_number_is_not_used_again() -> None:
    desk = Desk()
    desk.buyer.adopt(7, 1_000, 50)
    assert desk.buyer.prepaid_msat == 1_000
    desk.buyer.on_payment(Arrived(7, 1_000, 1_000, None), 0)
    desk.buyer.power_mw = 1_300_000
    payments = desk.later(10, state=SocketState.DELIVERING, charged_msat=0)
    assert all(payment.sequence > 7 for payment in payments)


def test_between_statements_the_credit_is_used_up_by_the_own_meter() -> None:
    desk = Desk()
    desk.later(0)
    desk.all_arrive()
    credited = desk.buyer.account.settled_msat
    assert desk.later(10, state=SocketState.DELIVERING, credited_msat=credited, balance_msat=credited) == []
    assert desk.buyer.hold is Hold.ENOUGH
    # No new statement, but the own meter has seen what all of the credit buys.
    desk.buyer.on_reading(desk.now_ms + 500, 1_000_000, 1_300_000, 48_000)
    assert cost_msat(TARIFF, 1_000_000, 0, True) > 0
    assert desk.buyer.decide(desk.now_ms + 500) != []


def told(energy_uwh: int, charged_msat: int) -> Statement:
    return replace(STATEMENT, sequence=9, energy_uwh=energy_uwh, charged_msat=charged_msat, balance_msat=-charged_msat)


def test_a_statement_cannot_lift_the_charge_that_the_caps_believe_beyond_what_meters_drift_apart() -> None:
    desk = Desk()
    desk.buyer.on_reading(1_000, 1_000_000, 1_300_000, 48_000)
    desk.buyer.on_statement(told(2_000_000, 600), 1_000)
    assert desk.buyer.stop is None, "2 % and 1 Wh are within the tolerance"
    # 1 Wh by the own meter, and 2 % of it.
    assert desk.buyer.charge.low_msat == cost_msat(TARIFF, 1_020_000, 0, True) == 306
    assert desk.buyer.charge.high_msat(1_000) == 600


def test_a_statement_makes_no_room_before_it_is_held_against_an_own_reading() -> None:
    desk = Desk()
    desk.buyer.on_reading(1_000, 1_000_000, 1_300_000, 48_000)
    desk.buyer.on_statement(told(1_000_000, 300), 1_050)
    assert desk.buyer.charge.low_msat == 0
    desk.buyer.on_reading(1_100, 1_000_000, 1_300_000, 48_000)
    assert desk.buyer.charge.low_msat == 300
    desk.buyer.on_statement(replace(told(10**15, 3 * 10**11), sequence=10), 1_150)
    assert desk.buyer.charge.low_msat == 300
    desk.buyer.on_reading(1_200, 1_000_000, 1_300_000, 48_000)
    assert desk.buyer.stop is not None
    assert desk.buyer.stop.distrust
    assert desk.buyer.charge.low_msat == 300


def test_the_drift_of_an_honest_meter_does_not_eat_up_the_prepaid_cap() -> None:
    desk = Desk()
    own_uwh, socket_uwh = 40_000_000_000, 40_400_000_000  # 40 kWh, 1 % apart
    charged_msat = cost_msat(TARIFF, socket_uwh, 0, True)
    desk.buyer.on_reading(1_000, own_uwh, 1_300_000, 48_000)
    desk.buyer.on_statement(told(socket_uwh, charged_msat), 1_000)
    assert desk.buyer.charge.low_msat == charged_msat


def too_small(amount_msat: int, least_msat: int) -> PaymentRefused:
    return PaymentRefused("ab" * 32, amount_msat, "below_min_increment", "too small", least_msat)


def test_a_payment_that_was_too_small_makes_the_next_ones_as_large_as_the_socket_asks_for() -> None:
    desk = Desk(Caps(300, 1_000_000, 1_000_000, 50_000))
    (small, *_) = desk.later(0, min_increment_msat=400)
    assert small.amount_msat <= 300, "the cap comes first, and what is asked for is only a wish so far"
    desk.buyer.on_refused(too_small(small.amount_msat, 250))
    desk.buyer.on_payment(Failed(small.sequence, small.amount_msat, "incorrect", "no", True), desk.now_ms)
    desk.begun.clear()
    (larger, *more) = desk.later(1_000, min_increment_msat=250)
    assert larger.amount_msat >= 250
    assert not more, "what the cap leaves is less than is taken"
    assert desk.buyer.stop is None


def test_a_cable_that_may_pay_no_such_amount_says_so_and_ends() -> None:
    for caps, pace, reason in (
        (Caps(300, 1_000_000, 1_000_000, 50_000), Pace(10, 10_000, 4), "prepaid_limit"),
        (Caps(5_000, 1_000_000, 1_000_000, 50_000), Pace(10, 399, 4), "below_min_increment"),
    ):
        desk = Desk(caps)
        limits = vars(desk.buyer)["_limits"]
        vars(desk.buyer)["_limits"] = replace(limits, pace=pace)
        desk.buyer.on_refused(too_small(300, 400))
        for _ in range(6):
            assert desk.later(500, min_increment_msat=400) == []
        assert desk.buyer.stop is not None
        assert desk.buyer.stop.reason == reason


def test_what_the_socket_asked_for_a_moment_ago_is_still_taken_when_the_cap_allows_no_more() -> None:
    desk = Desk(Caps(300, 1_000_000, 1_000_000, 50_000))
    desk.buyer.on_refused(too_small(5, 10))
    desk.later(1_000, min_increment_msat=10)
    desk.begun.clear()
    desk.tell(min_increment_msat=400)
    assert desk.buyer.account.in_flight_msat <= 300
    desk = Desk(Caps(300, 1_000_000, 1_000_000, 50_000))
    desk.buyer.on_refused(too_small(5, 10))
    (payment, *_) = desk.later(1_000, min_increment_msat=400)
    assert 10 <= payment.amount_msat <= 300


def test_a_word_from_before_the_last_payment_is_no_standstill() -> None:
    """The answer to it is under way in a network that stalls; nothing is given up before that has taken too long."""
    desk = Desk(Caps(100, 1_000_000, 1_000_000, 50_000))
    begun = desk.buyer.decide(desk.now_ms)
    desk.now_ms = 200
    for payment in begun:
        desk.buyer.on_payment(Arrived(payment.sequence, payment.amount_msat, payment.amount_msat, 50), desk.now_ms)
    while desk.now_ms < Lateness(TERMS.statement_interval_ms).silence_ms:
        desk.now_ms += 500
        desk.buyer.on_reading(desk.now_ms, 0, 0, 48_000)
        desk.buyer.decide(desk.now_ms)
        assert desk.buyer.hold is Hold.PREPAID
        assert desk.buyer.stop is None
    desk.now_ms += 500
    while desk.buyer.stop is None:
        desk.now_ms += 500
        desk.buyer.on_reading(desk.now_ms, 0, 0, 48_000)
        desk.buyer.decide(desk.now_ms)
    assert desk.buyer.stop.reason == "prepaid_limit"
