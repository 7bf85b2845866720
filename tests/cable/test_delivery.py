"""What the own meter refutes, and that no stalled network makes a liar of an honest socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from wattline.cable.policy.budget import Caps, PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.delivery import LATE_MS, SLACK_MS
from wattline.cable.policy.events import Arrived, OnchainTerms, SocketState, Statement
from wattline.cable.policy.offer import BuyerLimits, SessionTerms
from wattline.cable.policy.reconciliation import EnergyTrack, Lateness, Tolerance
from wattline.cable.policy.rhythm import RESERVE_MS, Latency, Pace
from wattline.cable.settings import CableOnchainSettings
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.meters.reading import MIN_VOLTAGE_MV

SESSION = "00000000000000000000000001"
TARIFF = Tariff.of(300_000, 3_600_000)  # 1 sat/s
RATED_MW = 1_400_000
LOOK_MS = 100


def buyer_of(interval_ms: int, max_prepaid_msat: int = 5_000) -> Buyer:
    return Buyer(
        terms=SessionTerms(SESSION, "02" + "51" * 32, "A1", TARIFF, RATED_MW, 0, interval_ms, 10, 1),
        limits=BuyerLimits(
            Caps(max_prepaid_msat, 10**9, 10**9, 50_000),
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


def statement(sequence: int, energy_uwh: int, delivered_ms: int, state: SocketState) -> Statement:
    charged = cost_msat(TARIFF, energy_uwh, delivered_ms, True)
    return Statement(
        SESSION, sequence, state, True, energy_uwh, delivered_ms, 0, 0, 0, charged, charged, 0, 0, 0, 1, 10, ""
    )


class Network:
    """Holds statements back while it stalls; loses none and changes no order."""

    def __init__(self, stalls_ms: list[tuple[int, int]]) -> None:
        self._stalls_ms = stalls_ms
        self._held: list[tuple[int, Statement]] = []
        self._free_ms = 0

    def put(self, now_ms: int, said: Statement) -> None:
        arrives_ms = max(now_ms, self._free_ms)
        for begin_ms, duration_ms in self._stalls_ms:
            if begin_ms <= arrives_ms < begin_ms + duration_ms:
                arrives_ms = begin_ms + duration_ms
        self._free_ms = arrives_ms
        self._held.append((arrives_ms, said))

    def is_stalled(self, now_ms: int) -> bool:
        return any(begin_ms <= now_ms <= begin_ms + duration_ms for begin_ms, duration_ms in self._stalls_ms)

    def take(self, now_ms: int) -> Iterator[Statement]:
        while self._held and self._held[0][0] <= now_ms:
            yield self._held.pop(0)[1]


@settings(max_examples=40, deadline=None)
@given(
    interval_ms=st.sampled_from([500, 1_000, 5_000, 20_000]),
    loads_mw=st.lists(st.sampled_from([0, 3_000, 40_000, 700_000, RATED_MW]), min_size=1, max_size=12),
    switching=st.lists(st.booleans(), min_size=1, max_size=9),
    data=st.data(),
)
def test_no_network_that_stalls_makes_a_liar_of_an_honest_socket(
    interval_ms: int, loads_mw: list[int], switching: list[bool], data: st.DataObject
) -> None:
    """However the load changes and the relay switches, and as long as the cable bears the silence."""
    longest_ms = min(Lateness(interval_ms).silence_ms, 40_000)
    stalls, end_ms = [], 0
    for calm_ms, stall_ms in data.draw(
        st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, longest_ms)), max_size=3), "calm and stall"
    ):
        stalls.append((end_ms + interval_ms + calm_ms, stall_ms))
        end_ms = sum(stalls[-1])
    buyer, network = buyer_of(interval_ms), Network(stalls)
    energy_mw_ms = delivered_ms = sequence = 0
    look_ms, sent_ms, was_on = 500, -interval_ms, False
    for now_ms in range(0, end_ms + 10_000, look_ms):
        on = switching[now_ms // 7_000 % len(switching)]
        load_mw = loads_mw[now_ms // 4_000 % len(loads_mw)]
        if was_on:
            delivered_ms += look_ms
            energy_mw_ms += load_mw * look_ms
        buyer.on_reading(now_ms, energy_mw_ms // 3600, load_mw if on else 0, 48_000 if was_on else 0)
        if on is not was_on or now_ms - sent_ms >= interval_ms:
            sent_ms, sequence = now_ms, sequence + 1
            state = SocketState.DELIVERING if on else SocketState.PAUSED
            network.put(now_ms, statement(sequence, energy_mw_ms // 3600, delivered_ms, state))
        for said in network.take(now_ms):
            buyer.on_statement(said, now_ms)
        was_on = on
        if buyer.stop is not None and interval_ms + LATE_MS > SLACK_MS:
            # Words so rare are not late yet when the dark is judged. Nobody is accused of it.
            assert network.is_stalled(now_ms)
            assert not was_on
            assert (buyer.stop.reason, buyer.stop.distrust) == ("no_voltage", False)
            return
        assert buyer.stop is None, (now_ms, buyer.stop)


@pytest.mark.parametrize("interval_ms", [100, 1_000, 5_000, 60_000])
@pytest.mark.parametrize("counts_time", [True, False])
def test_delivery_without_voltage_ends_and_costs_no_more_than_is_stated(interval_ms: int, counts_time: bool) -> None:
    """A blown fuse, a dead contact, or a socket that cheats, which need not even count."""
    buyer, now_ms, sequence = buyer_of(interval_ms), 0, 0
    while buyer.stop is None:
        buyer.on_reading(now_ms, 0, 0, 20)
        if now_ms % interval_ms == 0:
            sequence += 1
            buyer.on_statement(statement(sequence, 0, now_ms * counts_time, SocketState.DELIVERING), now_ms)
        now_ms += LOOK_MS
        assert now_ms < 60_000
    assert buyer.stop.reason == "no_voltage"
    assert buyer.stop.at_once
    assert not buyer.stop.distrust, "what is due may still be settled exactly"
    assert now_ms <= SLACK_MS + 3 * LOOK_MS
    assert buyer.charge.low_msat <= cost_msat(TARIFF, 1_000_000, SLACK_MS, True)


@settings(max_examples=60, deadline=None)
@given(
    interval_ms=st.sampled_from([100, 1_000, 5_000, 60_000]),
    onchain=st.booleans(),
    story=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=6),
    counts_dark=st.booleans(),
)
@example(interval_ms=60_000, onchain=False, story=[], counts_dark=True)
@example(interval_ms=60_000, onchain=True, story=[(True, 40)], counts_dark=True)
def test_nothing_is_paid_for_time_without_voltage_however_seldom_the_socket_speaks(
    interval_ms: int, onchain: bool, story: list[tuple[bool, int]], counts_dark: bool
) -> None:
    """Both ways of paying: by what was paid at the end, less what one horizon wants in advance, for the time that there
    was voltage, and SLACK_MS of each dark."""
    buyer, now_ms, sequence, counted_ms, live_ms, darks = buyer_of(interval_ms, 500_000), 0, 0, 0, 0, 0
    if onchain:
        terms = OnchainTerms(floor_sat=1, most_sat=10**9, credit_cap_sat=10**6, fee_sat=156)
        buyer.go_onchain(terms, CableOnchainSettings(max_prepaid_sat=500, max_increment_sat=200).limits)
    buyer.on_reading(now_ms, 0, 0, 48_000)
    lit_before = True
    for lit, looks in [*story, (False, 40)]:
        darks += lit_before and not lit
        for _ in range(looks):
            now_ms += LOOK_MS
            live_ms += LOOK_MS if lit or lit_before else 0
            counted_ms += LOOK_MS if lit or counts_dark else 0
            lit_before = lit
            buyer.on_reading(now_ms, 0, 0, 48_000 if lit else 0)
            if sequence == 0 or now_ms % interval_ms == 0:
                sequence += 1
                said = statement(sequence, 0, counted_ms, SocketState.DELIVERING)
                credited = buyer.account.settled_msat
                said = replace(said, credited_msat=credited, balance_msat=credited - said.charged_msat)
                buyer.on_statement(said, now_ms)
            for payment in buyer.decide(now_ms):
                sent_msat = payment.amount_msat
                buyer.on_payment(Arrived(payment.sequence, sent_msat, sent_msat, 50), now_ms)
    assert buyer.stop is not None
    assert buyer.stop.reason == "no_voltage"
    horizon_ms = (Latency.FIRST_MS + interval_ms) * 150 // 100
    most_ms = live_ms + darks * (SLACK_MS + LOOK_MS) + horizon_ms + 2_500
    assert buyer.account.handed_over_msat <= cost_msat(TARIFF, RATED_MW * RESERVE_MS // 3600, most_ms, True) + 1_000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5_000)), min_size=1, max_size=80))
@example([(False, 500)] * 20)
def test_no_claim_of_time_counts_beyond_the_time_that_there_was_voltage(story: list[tuple[bool, int]]) -> None:
    """Whatever a socket says of its time, what the cable believes of it is bounded by its own meter."""
    buyer, now_ms, live_ms, switchings, lit_before, claimed_ms = buyer_of(1_000), 0, 0, 0, False, 0
    for sequence, (lit, more_ms) in enumerate(story, 1):
        now_ms += 500
        live_ms += 500 if lit or lit_before else 0
        switchings += lit and not lit_before
        claimed_ms += more_ms
        buyer.on_reading(now_ms, 0, 0, 24_000 if lit else 0)
        buyer.on_statement(statement(sequence, 0, claimed_ms, SocketState.DELIVERING), now_ms)
        begun_ms = story[0][1]
        most_ms = begun_ms + live_ms * 51 // 50 + SLACK_MS + 250 * switchings
        # The tolerance of energy is 1 Wh here.
        assert buyer.charge.low_msat <= cost_msat(TARIFF, 1_000_000, most_ms, True)
        # Nor is more written down, for whoever judges the end when this run is dead.
        written_ms = buyer.charge.most_delivered_ms(now_ms)
        assert written_ms is not None
        assert written_ms <= most_ms
        lit_before = lit


def test_a_count_that_grows_while_no_current_arrives_ends_before_the_tolerance_is_used_up() -> None:
    buyer, now_ms, power_mw = buyer_of(1_000), 0, 100_000
    while buyer.stop is None:
        buyer.on_reading(now_ms, 0, 0, 48_000)
        if now_ms % 1_000 == 0:
            said = statement(now_ms // 1_000 + 1, power_mw * now_ms // 3600, now_ms, SocketState.DELIVERING)
            buyer.on_statement(said, now_ms)
        now_ms += LOOK_MS
    assert buyer.stop.reason == "no_current"
    assert now_ms < 6_000


def test_the_offset_of_the_sockets_meter_is_no_reason_to_end() -> None:
    buyer = buyer_of(1_000)
    for now_ms in range(0, 60_000, 1_000):
        buyer.on_reading(now_ms, 0, 0, 48_000)
        buyer.on_statement(
            statement(now_ms // 1_000 + 1, 25_000 * now_ms // 3600, now_ms, SocketState.DELIVERING), now_ms
        )
    assert buyer.stop is None


@pytest.mark.parametrize("interval_ms", [100, 60_000])
def test_the_service_stops_paying_for_time_without_voltage(bench: Bench, interval_ms: int) -> None:
    bench.socket.statement_interval_ms = interval_ms
    bench.limits["max_prepaid_msat"] = 100_000
    bench.socket.tariff = Tariff.of(0, 3_600_000)
    bench.limits["max_time_price_msat_per_hour"] = 3_600_000
    bench.meter.voltage_mv = 0
    bench.world.cable_factor = 0
    bench.world.set_power(0)
    summary = bench.run()
    assert summary.stop_reason == "no_voltage", summary
    assert "voltage" in summary.message
    assert not summary.is_good
    assert bench.socket.session.cable_reason == "no_voltage"
    assert summary.charged_msat <= SLACK_MS + 2_000
