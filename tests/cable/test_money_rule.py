"""Money rule 3 against any socket: never more prepaid and in flight than the cap, whatever it claims.

The deciding part alone, without threads: statements of any values in any order, payments that arrive, fail or stay in
doubt, cuts, and restarts in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cable.test_buyer import STATEMENT, TERMS
from wattline.cable.policy.budget import Caps, PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.delivery import SLACK_MS, UNSEEN_MS
from wattline.cable.policy.events import Arrived, Failed, InDoubt, Payment, PaymentRefused, SocketState, Statement
from wattline.cable.policy.offer import BuyerLimits
from wattline.cable.policy.reconciliation import EnergyTrack, Tolerance
from wattline.cable.policy.rhythm import Pace
from wattline.core.tariff import Tariff, cost_msat, left_ms
from wattline.core.wire.bounds import BOUNDS
from wattline.core.wire.fields import Whole
from wattline.device.meters.reading import MIN_VOLTAGE_MV

TARIFF = Tariff.of(300_000, 36_000, 700)
DEAR_TIME = Tariff.of(300_000, 3_600_000, 700)
"""A satoshi a second."""
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


@dataclass
class Gap:
    """Nobody looked: what can have been delivered by its end."""

    most_ms: int = SLACK_MS
    own_uwh: int = 0
    handed_over: tuple[int, ...] = ()


class Trade:
    """A cable, its own meter, its wallet and a clock. There is voltage all the time."""

    def __init__(self, tariff: Tariff = TARIFF, tolerance: Tolerance = TOLERANCE) -> None:
        self.tariff, self.tolerance = tariff, tolerance
        self.over_uwh = 0
        """By so much the socket's meter is ahead."""
        self.terms = replace(HOSTILE, tariff=tariff)
        self.now_ms = 0
        self.told_ms = 0
        self.live_ms = 0
        """Seen since the last gap."""
        self.read_ms = 0
        self.gap = Gap()
        self.energy_uwh = 0
        self.sent: dict[int, Sent] = {}
        self.begin()

    def begin(self) -> None:
        """The cable starts, for the first time or again, with what its ledger knows."""
        arrived = [item.payment.amount_msat for item in self.sent.values() if item.status == "arrived"]
        self.buyer = Buyer(
            terms=self.terms,
            limits=BuyerLimits(
                Caps(CAP_MSAT, 10**9, 10**9, 50_000), Pace(10, 10_000, 4), self.tolerance, 10**6, MIN_VOLTAGE_MV
            ),
            account=PaymentAccount(sum(arrived), sum(arrived), len(arrived)),
            track=EnergyTrack(0),
            day_sent_msat=lambda account: account.sent_msat,
            next_sequence=max(self.sent, default=0) + 1,
            opened_ms=0,
        )
        for number, item in self.sent.items():
            if item.status == "underway":
                self.buyer.adopt(number, item.payment.amount_msat, item.payment.maxfee_msat)
        if self.sent:
            # What was seen before is lost, not what was paid, nor how old the session is.
            self.nobody_looked(max(self.most_ms, self.now_ms))
            self.read_ms = self.now_ms
        self.read()

    def read(self) -> None:
        passed_ms, self.read_ms = self.now_ms - self.read_ms, self.now_ms
        if passed_ms > UNSEEN_MS and self.buyer.statement is not None:
            self.nobody_looked(self.most_ms + passed_ms)
        else:
            self.live_ms += passed_ms
        self.buyer.on_reading(self.now_ms, self.energy_uwh, 1_300_000, 48_000)

    def nobody_looked(self, most_ms: int) -> None:
        handed_over = tuple(number for number, item in self.sent.items() if item.status != "failed")
        self.gap, self.live_ms = Gap(most_ms, self.most_uwh, handed_over), 0

    @property
    def most_uwh(self) -> int:
        """What the own energy and the tolerance come to, but for the part of that which the cap itself bears."""
        absolute_uwh, price_msat = self.tolerance.absolute_uwh, self.tariff.energy_msat_per_kwh
        borne_uwh = CAP_MSAT // 2 * 10**9 // price_msat if price_msat else absolute_uwh
        return self.energy_uwh + self.tolerance.drift_uwh(self.energy_uwh) + max(0, absolute_uwh - borne_uwh)

    @property
    def most_ms(self) -> int:
        """The longest that a socket which keeps to its credit can have delivered."""
        gap = self.gap
        paid_msat = sum(
            self.sent[number].payment.amount_msat for number in gap.handed_over if self.sent[number].status != "failed"
        )
        paid_for_ms = left_ms(self.tariff, paid_msat, gap.own_uwh, 0, 0)
        unseen_ms = min(gap.most_ms, paid_for_ms) if gap.handed_over else gap.most_ms
        return unseen_ms + self.live_ms + -(-self.live_ms // 50)

    def honest(self) -> Statement:
        """Such a one as keeps the session alive."""
        arrived = sum(item.payment.amount_msat for item in self.sent.values() if item.status == "arrived")
        last = self.buyer.statement
        told_uwh = self.energy_uwh + self.over_uwh
        charged = cost_msat(self.tariff, told_uwh, self.told_ms, told_uwh > 0)
        return replace(
            STATEMENT,
            state=SocketState.DELIVERING,
            sequence=last.sequence + 1 if last is not None else 1,
            energy_uwh=told_uwh,
            delivered_ms=self.told_ms,
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

    @property
    def arrived_msat(self) -> int:
        return sum(item.payment.amount_msat for item in self.sent.values() if item.status == "arrived")

    def resolve_all(self) -> None:
        for number in [number for number, item in self.sent.items() if item.status == "underway"]:
            self.resolve(0, "arrive")
            assert self.sent[number].status in ("arrived", "underway")

    def deliver(self, passed_ms: int, overdraft_ms: int = 0) -> None:
        """As an honest socket does, up to the credit and by ``overdraft_ms`` beyond."""
        credit_ms = left_ms(self.tariff, self.arrived_msat, self.energy_uwh, self.told_ms, 0)
        self.told_ms += min(passed_ms, credit_ms + overdraft_ms)

    def decide(self) -> None:
        payments = self.buyer.decide(self.now_ms)
        for payment in payments:
            self.sent[payment.sequence] = Sent(payment)
        if payments:
            out = sum(item.payment.amount_msat for item in self.sent.values() if item.status != "failed")
            delivered = cost_msat(self.tariff, self.most_uwh, self.most_ms, self.energy_uwh > 0)
            assert out - delivered <= CAP_MSAT


STEPS = st.one_of(
    st.tuples(st.just("claim"), claims()),
    st.tuples(st.just("honest"), st.none()),
    st.tuples(st.just("flow"), st.integers(0, 5_000_000)),
    st.tuples(st.sampled_from(("arrive", "arrive", "fail", "doubt")), st.integers(0, 9)),
    st.tuples(st.just("refuse"), st.integers(0, 10**18)),
    st.tuples(st.just("wait"), st.integers(0, 5_000)),
    st.tuples(st.sampled_from(("down", "asleep")), st.integers(0, 4_000_000)),
    st.tuples(st.just("claim of time"), st.integers(0, 4_000_000)),
    st.tuples(st.sampled_from(("cut", "restart")), st.none()),
)
TARIFFS = st.sampled_from([TARIFF, DEAR_TIME]) | st.builds(
    Tariff.of, st.integers(0, 3_000_000), st.integers(0, 10_000_000), st.integers(0, 1_000)
)
TOLERANCES = st.just(TOLERANCE) | st.builds(Tolerance, st.integers(0, 100_000), st.integers(0, 100_000_000))


def prove(trade: Trade, steps: list[tuple[str, object]]) -> None:
    for kind, value in steps:
        match kind, value:
            case "claim", Statement() as claim:
                trade.buyer.on_statement(claim, trade.now_ms)
            case "honest", _:
                trade.buyer.on_statement(trade.honest(), trade.now_ms)
            case "claim of time", int(claimed_ms):
                trade.told_ms += claimed_ms
                trade.buyer.on_statement(trade.honest(), trade.now_ms)
            case "flow", int(energy_uwh):
                trade.now_ms += 100
                trade.energy_uwh += energy_uwh
                trade.read()
            case "refuse", int(amount_msat):
                trade.buyer.on_refused(PaymentRefused("", amount_msat, "over_credit_cap", "no"))
            case "wait", int(passed_ms):
                trade.now_ms += passed_ms
            case "asleep", int(passed_ms):
                trade.now_ms += passed_ms
                trade.read()
            case "down", int(passed_ms):
                # The socket says at once that it has delivered all the time.
                trade.now_ms += passed_ms
                trade.told_ms += passed_ms
                trade.begin()
                trade.buyer.on_statement(trade.honest(), trade.now_ms)
            case "cut", _:
                trade.buyer.on_cut(trade.now_ms)
            case "restart", _:
                trade.begin()
            case how, int(which):
                trade.resolve(which, how)
        trade.decide()


@settings(deadline=None, max_examples=300)
@given(TARIFFS, TOLERANCES, st.lists(STEPS, max_size=40))
def test_no_socket_gets_more_in_advance_than_the_cap(
    tariff: Tariff, tolerance: Tolerance, steps: list[tuple[str, object]]
) -> None:
    """What a cap cannot bear of the tolerance that its owner grants comes on top, once."""
    prove(Trade(tariff, tolerance), steps)


def test_the_tolerance_as_it_is_shipped_adds_nothing_to_the_cap() -> None:
    assert Trade().most_uwh == 0


flows = st.tuples(st.integers(1_000, 3_000_000), st.integers(0, 200), st.booleans())
"""Own energy, what the socket counts of it in percent, and whether the cable starts anew."""


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([TARIFF, Tariff.of(3_000_000)]), TOLERANCES, st.lists(flows, min_size=10, max_size=60))
def test_a_socket_whose_count_is_within_the_tolerance_has_half_of_the_cap_to_deliver_from(
    tariff: Tariff, tolerance: Tolerance, flows: list[tuple[int, int, bool]]
) -> None:
    """Be that a ratio or an absolute part; so a session does not stand still for what its owner has allowed."""
    trade = Trade(tariff, tolerance)
    trade.buyer.on_statement(trade.honest(), trade.now_ms)
    trade.decide()
    trade.resolve_all()
    for energy_uwh, percent, starts_anew in flows:
        trade.now_ms += 1_000
        trade.energy_uwh += energy_uwh
        allowed_uwh = tolerance.allowed_uwh(trade.energy_uwh)
        over_uwh = trade.over_uwh + energy_uwh * (percent - 100) // 100
        trade.over_uwh = min(max(over_uwh, -min(allowed_uwh, trade.energy_uwh)), allowed_uwh)
        if starts_anew:
            trade.begin()
        trade.read()
        said = trade.honest()
        trade.buyer.on_statement(said, trade.now_ms)
        trade.decide()
        trade.resolve_all()
        assert trade.buyer.stop is None
        assert trade.arrived_msat - said.charged_msat > CAP_MSAT // 2 - 20


@settings(deadline=None, max_examples=30)
@given(TARIFFS, st.lists(st.tuples(st.sampled_from(["down", "asleep"]), st.integers(0, 4_000_000)), max_size=8))
def test_nor_for_delivering_while_the_cable_was_away(tariff: Tariff, gaps: list[tuple[str, int]]) -> None:
    """Again and again it says so; nothing flows, and each time it is paid for a while as it likes."""
    trade = Trade(tariff)
    looks: list[tuple[str, object]] = [("flow", 0), ("honest", None), ("arrive", 0)]
    for gap in gaps:
        prove(trade, looks * 3)
        prove(trade, [gap, ("claim of time", gap[1] if gap[0] == "asleep" else 0)])
    prove(trade, looks * 6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["down", "asleep"]), st.integers(0, 4_000_000)), max_size=8), st.booleans())
def test_a_socket_that_ran_on_up_to_its_credit_is_believed(gaps: list[tuple[str, int]], is_unseen: bool) -> None:
    """However often; and a session goes on after each."""
    trade = Trade(DEAR_TIME)
    for kind, passed_ms in [*gaps, ("asleep", 0)]:
        paid_before = trade.arrived_msat
        for _ in range(30):
            trade.now_ms += 200
            trade.energy_uwh += 60_000
            trade.deliver(200)
            trade.read()
            trade.buyer.on_statement(trade.honest(), trade.now_ms)
            trade.decide()
            trade.resolve_all()
        assert trade.buyer.stop is None
        assert trade.arrived_msat > paid_before
        trade.now_ms += passed_ms
        trade.deliver(passed_ms, overdraft_ms=200 if is_unseen else 0)
        if kind == "down":
            trade.begin()
        else:
            trade.read()
        trade.buyer.on_statement(trade.honest(), trade.now_ms)
        trade.decide()
        trade.resolve_all()
        assert trade.buyer.stop is None


def test_a_trade_goes_on_as_long_as_the_socket_is_honest() -> None:
    """So that the property above is about something."""
    trade = Trade()
    for _ in range(100):
        trade.now_ms += 1_000
        trade.energy_uwh += 300_000
        trade.buyer.on_reading(trade.now_ms, trade.energy_uwh, 1_080_000, 48_000)
        trade.buyer.on_statement(trade.honest(), trade.now_ms)
        trade.decide()
        trade.resolve_all()
    assert trade.buyer.stop is None
    assert trade.arrived_msat > 2 * CAP_MSAT
