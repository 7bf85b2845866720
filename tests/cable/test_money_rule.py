"""Money rule 3 against any socket: never more prepaid and in flight than the cap, whatever it claims.

The deciding part alone, without threads: statements of any values in any order, payments that arrive, fail or stay in
doubt, cuts, and restarts in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cable.test_buyer import STATEMENT, TERMS
from wattline.cable.account import Account
from wattline.cable.budget import Caps
from wattline.cable.buyer import Buyer, Payment
from wattline.cable.energy import EnergyTrack
from wattline.cable.messages import PaymentRefused, SocketState, Statement
from wattline.cable.purse import Arrived, Failed, InDoubt
from wattline.cable.reconciliation import Tolerance
from wattline.cable.rhythm import Pace
from wattline.tariff import Tariff, cost_msat
from wattline.wire.bounds import BOUNDS
from wattline.wire.kinds import Whole

TARIFF = Tariff.of(300_000, 36_000, 700)
CAP_MSAT = 5_000
TOLERANCE = Tolerance(20_000, 1_000_000)
HOSTILE = replace(TERMS, tariff=TARIFF, rated_power_mw=10**9, credit_cap_msat=0, statement_interval_ms=60_000)
"""All that makes a cable pay more at once."""
NUMBERS = {name: kind for name, kind in BOUNDS["Statement"].items() if isinstance(kind, Whole) and name != "state"}


def claims() -> st.SearchStrategy[Statement]:
    """Statements off any wire: within the ranges, without any sense, and near what would be believed."""
    wild = {name: st.just(0) | st.integers(kind.lowest, kind.highest) for name, kind in NUMBERS.items()}
    near = {
        "energy_uwh": st.integers(0, 40_000_000),
        "delivered_ms": st.integers(0, 100_000),
        "credited_msat": st.integers(0, 20_000),
        "charged_msat": st.integers(0, 20_000),
        "sequence": st.integers(0, 100),
    }
    state = st.sampled_from(SocketState)
    anything = st.builds(lambda state, **values: replace(STATEMENT, state=state, **values), state, **wild)
    likely = st.builds(lambda state, **values: replace(STATEMENT, state=state, **values), state, **near)
    return (likely | anything).flatmap(
        lambda claim: st.sampled_from((claim, replace(claim, balance_msat=claim.credited_msat - claim.charged_msat)))
    )


@dataclass
class Sent:
    payment: Payment
    status: str = "underway"


class Trade:
    """A cable, its own meter, its wallet and a clock."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.energy_uwh = 0
        self.sent: dict[int, Sent] = {}
        self.begin()

    def begin(self) -> None:
        """The cable starts, for the first time or again, with what its ledger knows."""
        arrived = [item.payment.amount_msat for item in self.sent.values() if item.status == "arrived"]
        self.buyer = Buyer(
            terms=HOSTILE,
            caps=Caps(CAP_MSAT, 10**9, 10**9, 50_000),
            pace=Pace(10, 10_000, 4),
            tolerance=TOLERANCE,
            max_failures_in_a_row=10**6,
            account=Account(sum(arrived), sum(arrived), len(arrived)),
            track=EnergyTrack(0),
            day_sent_msat=lambda account: account.sent_msat,
            next_sequence=max(self.sent, default=0) + 1,
            opened_ms=0,
        )
        for number, item in self.sent.items():
            if item.status == "underway":
                self.buyer.adopt(number, item.payment.amount_msat, item.payment.maxfee_msat)
        self.buyer.on_reading(self.now_ms, self.energy_uwh, 1_300_000, 48_000)

    def honest(self) -> Statement:
        """Such a one as keeps the session alive."""
        arrived = sum(item.payment.amount_msat for item in self.sent.values() if item.status == "arrived")
        last = self.buyer.statement
        charged = cost_msat(TARIFF, self.energy_uwh, 0, self.energy_uwh > 0)
        return replace(
            STATEMENT,
            state=SocketState.DELIVERING,
            sequence=last.sequence + 1 if last is not None else 1,
            energy_uwh=self.energy_uwh,
            credited_msat=arrived,
            charged_msat=charged,
            balance_msat=arrived - charged,
        )

    def resolve(self, which: int, how: str) -> None:
        underway = [number for number, item in self.sent.items() if item.status == "underway"]
        if not underway:
            return
        number = underway[which % len(underway)]
        amount_msat = self.sent[number].payment.amount_msat
        match how:
            case "arrive":
                self.sent[number].status = "arrived"
                self.buyer.on_payment(Arrived(number, amount_msat, amount_msat, 50), self.now_ms)
            case "fail":
                self.sent[number].status = "failed"
                self.buyer.on_payment(Failed(number, amount_msat, "unknown", "no", True), self.now_ms)
            case _:
                self.buyer.on_payment(InDoubt(number, amount_msat, "?"), self.now_ms)

    def decide(self) -> None:
        payments = self.buyer.decide(self.now_ms)
        for payment in payments:
            self.sent[payment.sequence] = Sent(payment)
        if payments:
            out = sum(item.payment.amount_msat for item in self.sent.values() if item.status != "failed")
            own_uwh = self.energy_uwh + TOLERANCE.drift_uwh(self.energy_uwh)
            delivered = cost_msat(TARIFF, own_uwh, self.now_ms, self.energy_uwh > 0)
            assert out - delivered <= CAP_MSAT


STEPS = st.one_of(
    st.tuples(st.just("claim"), claims()),
    st.tuples(st.just("honest"), st.none()),
    st.tuples(st.just("flow"), st.integers(0, 5_000_000)),
    st.tuples(st.sampled_from(("arrive", "arrive", "fail", "doubt")), st.integers(0, 9)),
    st.tuples(st.just("refuse"), st.integers(0, 10**18)),
    st.tuples(st.just("wait"), st.integers(0, 5_000)),
    st.tuples(st.sampled_from(("cut", "restart")), st.none()),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_no_socket_gets_more_in_advance_than_the_cap(steps: list[tuple[str, object]]) -> None:
    trade = Trade()
    for kind, value in steps:
        match kind, value:
            case "claim", Statement() as claim:
                trade.buyer.on_statement(claim, trade.now_ms)
            case "honest", _:
                trade.buyer.on_statement(trade.honest(), trade.now_ms)
            case "flow", int(energy_uwh):
                trade.now_ms += 100
                trade.energy_uwh += energy_uwh
                trade.buyer.on_reading(trade.now_ms, trade.energy_uwh, 1_300_000, 48_000)
            case "refuse", int(amount_msat):
                trade.buyer.on_refused(PaymentRefused("", amount_msat, "over_credit_cap", "no"))
            case "wait", int(passed_ms):
                trade.now_ms += passed_ms
            case "cut", _:
                trade.buyer.on_cut(trade.now_ms)
            case "restart", _:
                trade.begin()
            case how, int(which):
                trade.resolve(which, how)
        trade.decide()


def test_a_trade_goes_on_as_long_as_the_socket_is_honest() -> None:
    """So that the property above is about something."""
    trade = Trade()
    for _ in range(100):
        trade.now_ms += 1_000
        trade.energy_uwh += 300_000
        trade.buyer.on_reading(trade.now_ms, trade.energy_uwh, 1_080_000, 48_000)
        trade.buyer.on_statement(trade.honest(), trade.now_ms)
        trade.decide()
        for number in [number for number, item in trade.sent.items() if item.status == "underway"]:
            trade.resolve(0, "arrive")
            assert trade.sent[number].status in ("arrived", "underway")
    assert trade.buyer.stop is None
    assert sum(item.payment.amount_msat for item in trade.sent.values()) > 2 * CAP_MSAT
