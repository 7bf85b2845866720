"""What the socket could take is bounded, whatever it says and whatever dies: the deciding part and the payments,
without threads, over histories of refusals, losses, cuts, crashes and lies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cable.fake_funds import RULES, FakeFunds, KeptAggregates, address_of, script_of
from tests.cable.fakes import SOCKET_NODE, FakeLightning
from tests.cable.test_buyer import SESSION, STATEMENT, TERMS
from wattline.cable.link.stream import SocketStream
from wattline.cable.pay.onchain import OnchainPayments
from wattline.cable.pay.versions import AggregateMaker
from wattline.cable.policy.budget import Caps, PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import (
    Arrived,
    DoubtsChecked,
    Failed,
    InDoubt,
    OnchainEvent,
    OnchainFailed,
    OnchainInvitation,
    OnchainReady,
    PaymentEvent,
    RefusedVersion,
    SocketState,
    VersionAccepted,
    WantedVersion,
)
from wattline.cable.policy.offer import BuyerLimits
from wattline.cable.policy.onchain import Scope
from wattline.cable.policy.reconciliation import EnergyTrack, Tolerance
from wattline.cable.policy.rhythm import Pace
from wattline.cable.settings import CableOnchainSettings
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.clock import Moment
from wattline.core.increments import ToldIncrements
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.meters.reading import MIN_VOLTAGE_MV

TARIFF = Tariff.of(900_000_000)
ONCHAIN = CableOnchainSettings(max_prepaid_sat=400, max_increment_sat=300).limits
MAX_SESSION_SAT = 12_000
TOLERANCE = Tolerance(20_000, 10_000)
TERMS_HERE = replace(TERMS, tariff=TARIFF, rated_power_mw=10_000_000)
"""Rated so high that more is wanted in advance than any cap allows: the caps bind all the time."""


class Inline(Executor):
    """Does at once what a worker would do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Fate:
    """What becomes of the next version on its way."""

    kind: str = "accept"


class Trade:
    """A cable that may die and a socket that may do anything, joined by hand."""

    def __init__(self, tolerance: Tolerance = TOLERANCE) -> None:
        self.tolerance = tolerance
        self.memory, self.funds, self.fate = KeptAggregates(), FakeFunds(), Fate()
        self.energy_uwh = 0
        self.now_ms = 0
        self.lie_msat = 0
        self.held: list[tuple[int, int]] = []
        """Number and value that the socket has credited."""
        self.seen_sat = 0
        """The largest value that it ever saw."""
        self.least_msat = 10
        """The smallest increment that it asks for."""
        self.asked = ToldIncrements()
        self.too_small: list[tuple[int, int]] = []
        """What it has refused for being a smaller one, with what it was held to."""
        self.signed: list[tuple[int, int]] = []
        """Number and value of all that was signed."""
        self.keysend_msat = 0
        self.is_cut = False
        self.begin()

    # The stream.

    def onchain_request(self, signature: str) -> bool:
        assert signature
        return not self.is_cut

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool:
        tx = unsigned_tx(psbt)
        value_sat = tx.outputs[0].value_sat
        row = self.memory.rows[SESSION]
        assert row.signed_sat >= value_sat, "it is on record before it is handed over"
        self.check_caps(value_sat)
        self.signed.append((number, value_sat))
        if self.is_cut:
            return False
        if self.fate.kind == "lost":
            return True
        self.seen_sat = max(self.seen_sat, value_sat)
        if (number, value_sat) not in self.held:
            if self.fate.kind == "refuse" or number != len(self.held) + 1:
                code = "policy" if self.fate.kind == "refuse" else "bad_version"
                self.payments.on_answer(RefusedVersion(number, code, "no"))
                return True
            increment_msat, least_msat = (value_sat - self.value_sat) * 1000, self.asked.least_msat(self.now_ms / 1000)
            if self.held and not is_final and increment_msat < least_msat:
                self.too_small.append((increment_msat, least_msat))
                self.payments.on_answer(RefusedVersion(number, "below_min_increment", "no"))
                return True
            self.held.append((number, value_sat))
        if self.fate.kind != "answer_lost":
            self.payments.on_answer(VersionAccepted(number, value_sat, is_final))
        return True

    @property
    def value_sat(self) -> int:
        """Of what it holds."""
        return self.held[-1][1] if self.held else 0

    # The cable.

    def begin(self) -> None:
        maker = AggregateMaker(
            self.funds,
            self.memory,
            FakeLightning(lambda *_: None),
            ONCHAIN,
            SESSION,
            SOCKET_NODE,
            lambda: Moment(1_000),
        )
        self.payments = OnchainPayments(maker, cast(SocketStream, self), self.on_event, 0.0, Inline())
        account = PaymentAccount(self.keysend_msat, self.keysend_msat, 1 if self.keysend_msat else 0)
        self.buyer = Buyer(
            terms=TERMS_HERE,
            limits=BuyerLimits(
                Caps(1_000_000, MAX_SESSION_SAT * 1000, MAX_SESSION_SAT * 1000, 50_000),
                Pace(10, 10_000, 4),
                self.tolerance,
                10**6,
                MIN_VOLTAGE_MV,
            ),
            account=account,
            track=EnergyTrack(0),
            day_sent_msat=lambda account: account.sent_msat,
            next_sequence=1,
            opened_ms=0,
        )
        self.tell()
        known = self.memory.of(SESSION)
        if known is not None:
            account.miner_fee_msat = known.fee_sat * 1000
            account.onchain_signed(known.signed_sat)
            account.onchain_stands(known.accepted_sat, 0)
        self.buyer.wait_for_onchain()
        self.invite()

    def invite(self) -> None:
        self.say_that_it_holds(*(self.held[-1] if self.held else (0, 0)))

    def say_that_it_holds(self, number: int, value_sat: int) -> None:
        scope = Scope(TARIFF, TERMS_HERE.rated_power_mw, MAX_SESSION_SAT * 1000)
        self.payments.on_invitation(
            OnchainInvitation(address_of("socket"), script_of("socket"), RULES, number, value_sat), scope
        )

    def on_event(self, event: PaymentEvent | OnchainEvent) -> None:
        match event:
            case OnchainReady():
                if not self.buyer.account.in_flight_by("onchain")[0]:
                    self.buyer.account.onchain_stands(event.accepted_sat, self.now_ms)
                self.buyer.account.onchain_signed(event.signed_sat)
                self.buyer.go_onchain(event.terms, ONCHAIN)
            case OnchainFailed(code=code) if code != "payer_broken":
                self.buyer.end(event.code, event.message, distrust=True)
            case Arrived() | Failed() | InDoubt() | DoubtsChecked():
                self.buyer.on_payment(event, self.now_ms)
            case _:
                raise AssertionError(event)

    def tell(self) -> None:
        self.now_ms += 10
        self.payments.tick()
        self.buyer.on_reading(self.now_ms, self.energy_uwh, 1_300_000, 48_000)
        charged = max(0, self.charge_msat() + self.lie_msat)
        statement = replace(
            STATEMENT,
            sequence=(self.buyer.statement.sequence if self.buyer.statement else 0) + 1,
            state=SocketState.DELIVERING,
            charged_msat=charged,
            energy_uwh=self.energy_uwh,
            min_increment_msat=self.least_msat,
        )
        self.asked.tell(self.least_msat, self.now_ms / 1000)
        vars(self.buyer)["_asked"].tell(self.least_msat, self.now_ms)
        # Believed without being held against anything: a liar is to be bounded even while it is not found out.
        self.buyer.charge.statement = statement
        vars(self.buyer.charge)["_believed"] = statement.claim

    def charge_msat(self, energy_uwh: int | None = None) -> int:
        return cost_msat(TARIFF, self.energy_uwh if energy_uwh is None else energy_uwh, 0, True)

    def check_caps(self, value_sat: int) -> None:
        """By what the cable itself knows to have flowed, with what two honest meters are apart, but for the part of it
        that the cap itself bears."""
        cap_msat = (RULES.floor_sat + ONCHAIN.max_prepaid_sat) * 1000
        beyond_uwh = max(0, self.tolerance.absolute_uwh - cap_msat // 2 * 10**9 // TARIFF.energy_msat_per_kwh)
        most_msat = self.charge_msat(self.energy_uwh + self.tolerance.drift_uwh(self.energy_uwh) + beyond_uwh)
        owed_msat = max(0, most_msat - self.keysend_msat)
        assert value_sat * 1000 <= owed_msat + cap_msat
        assert value_sat + self.memory.rows[SESSION].fee_sat + -(-self.keysend_msat // 1000) <= MAX_SESSION_SAT

    # What a history is made of.

    def step(self, kind: str, amount: int) -> None:
        match kind:
            case "deliver":
                self.energy_uwh += amount * 20
            case "lie":
                self.lie_msat = (amount - 5_000) * 100
            case "crash":
                self.begin()
            case "crash_unknown":
                # It dies between signing and the answer.
                self.fate.kind = "answer_lost"
                self.pay()
                self.begin()
            case "cut":
                self.is_cut = not self.is_cut
            case "ask":
                self.invite()
            case "ask for more":
                self.least_msat = amount * 15
            case "resolve":
                self.payments.resolve([], resend=True)
            case "claim" | "credit_another" | "refuse_it" if self.signed:
                number, value_sat = self.signed[-1 - amount % min(3, len(self.signed))]
                match kind:
                    case "claim":
                        self.say_that_it_holds(number, value_sat)
                    case "credit_another":
                        self.payments.on_answer(VersionAccepted(self.signed[-1][0], value_sat, False))
                    case "refuse_it":
                        self.payments.on_answer(RefusedVersion(number, "policy", "no"))
            case "claim" | "credit_another" | "refuse_it":
                pass
            case "claim_and_refuse":
                for each in ("lost", "claim", "refuse_it"):
                    self.step(each, 0)
            case _:
                self.fate.kind = kind
                self.pay()
        self.tell()

    def pay(self) -> None:
        self.now_ms += 6_000
        self.tell()
        for payment in self.buyer.decide(self.now_ms):
            assert payment.amount_msat % 1000 == 0
            assert payment.version is not None
            self.payments.pay(payment.sequence, payment.amount_msat, payment.version)


KINDS = [
    *("accept", "accept", "accept", "refuse", "lost", "answer_lost", "deliver", "deliver", "deliver"),
    *("lie", "crash", "crash_unknown", "cut", "ask", "resolve", "ask for more"),
]
LIES = ["claim", "claim", "refuse_it", "credit_another", "lost", "claim_and_refuse", "claim_and_refuse"]
"""Of what the socket holds: an invitation that names any of the versions, an answer that is about another one."""
histories = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10_000)), max_size=40)
lying_histories = st.lists(st.tuples(st.sampled_from(KINDS + LIES), st.integers(0, 10_000)), max_size=40)


@settings(deadline=None, max_examples=150)
@given(lying_histories, st.integers(0, 900_000), st.sampled_from([10_000, 1_000_000, 4_000_000]))
def test_no_history_hands_more_over_than_the_charge_the_floor_and_the_prepaid_cap(
    history: list[tuple[str, int]], keysend_msat: int, absolute_uwh: int
) -> None:
    trade = Trade(Tolerance(20_000, absolute_uwh))
    trade.keysend_msat = keysend_msat
    trade.begin()
    for kind, amount in history:
        trade.step(kind, amount)
        # Checked at every version by check_caps; and the ledger is never behind what the socket has seen.
        assert trade.memory.rows[SESSION].signed_sat >= trade.seen_sat


def test_a_socket_that_says_that_it_holds_a_version_and_then_refuses_it_gets_no_larger_one_for_it() -> None:
    trade = Trade()
    for _ in range(12):
        trade.step("claim_and_refuse", 0)
    assert trade.signed[0][1] >= RULES.floor_sat
    assert trade.memory.rows[SESSION].signed_sat <= RULES.floor_sat + ONCHAIN.max_prepaid_sat


def test_an_invitation_that_names_the_version_under_way_is_its_answer() -> None:
    trade = Trade()
    trade.step("lost", 0)
    trade.step("claim", 0)
    value_sat = trade.signed[-1][1]
    assert trade.buyer.account.in_flight == 0
    assert trade.buyer.account.onchain_settled_msat == value_sat * 1000
    assert trade.memory.rows[SESSION].accepted_sat == value_sat
    trade.step("refuse_it", 0)
    assert trade.memory.rows[SESSION].accepted_sat == value_sat


def test_an_invitation_that_names_another_version_waits_for_the_answer_to_the_one_under_way() -> None:
    trade = Trade()
    trade.step("accept", 0)
    trade.step("deliver", 5_000)
    trade.step("lost", 0)
    (_, first_sat), (number, second_sat) = trade.signed
    trade.step("ask", 0)
    assert trade.buyer.account.in_flight == 1
    trade.payments.on_answer(VersionAccepted(number, second_sat, False))
    assert trade.buyer.stop is None
    assert trade.memory.rows[SESSION].accepted_sat == second_sat > first_sat


@pytest.mark.parametrize("wanted", [WantedVersion(800, 799), WantedVersion(900, 10_000), WantedVersion(700, 10_000)])
def test_nothing_is_signed_above_the_caps_nor_on_top_of_another_version_than_the_socket_holds(
    wanted: WantedVersion,
) -> None:
    trade = Trade()
    trade.payments.pay(1, 700_000, WantedVersion(700, 700))
    assert trade.funds.signed == [700]
    trade.payments.pay(2, 100_000, wanted)
    assert trade.funds.signed == [700]
    trade.payments.pay(3, 100_000, WantedVersion(800, 800))
    assert trade.funds.signed == [700, 800]


@settings(deadline=None, max_examples=100)
@given(histories)
def test_after_any_history_no_version_was_too_small_and_cable_and_answering_socket_agree_again(
    history: list[tuple[str, int]],
) -> None:
    trade = Trade()
    for kind, amount in history:
        trade.step(kind, amount)
    assert trade.too_small == []
    trade.is_cut, trade.lie_msat, trade.fate.kind = False, 0, "accept"
    trade.tell()
    trade.payments.resolve([], resend=True)
    trade.invite()
    assert trade.buyer.account.in_flight == 0
    value_sat = trade.held[-1][1] if trade.held else 0
    assert trade.buyer.account.onchain_settled_msat == value_sat * 1000
    assert trade.memory.rows[SESSION].accepted_sat == value_sat


def test_the_first_version_pays_the_floor_at_least_and_all_pay_whole_sats() -> None:
    trade = Trade()
    trade.step("accept", 0)
    assert trade.held[0][1] >= RULES.floor_sat
    for _ in range(5):
        trade.step("deliver", 5_000)
        trade.step("accept", 0)
    values = [value for _, value in trade.held]
    assert len(values) > 3
    assert values == sorted(set(values))


def test_after_a_refusal_for_being_too_small_what_is_asked_for_now_is_waited_for() -> None:
    trade = Trade()
    for _ in range(4):
        trade.step("accept", 0)
    before_sat = trade.value_sat
    trade.least_msat, trade.asked = 150_000, ToldIncrements()  # its times are lost: it holds the cable to it at once
    trade.step("deliver", 5_000)
    trade.step("accept", 0)
    assert trade.too_small == [(90_000, 150_000)]
    for amount, grown_sat in ((2_500, 0), (2_500, 180)):
        trade.step("deliver", amount)
        trade.step("accept", 0)
        assert trade.value_sat - before_sat == grown_sat
    assert len(trade.too_small) == 1
    assert trade.buyer.stop is None
