"""Leases and what becomes of relays, with relays and a clock in the test's hand."""

from __future__ import annotations

import pytest

from wattline.device.controller.contacts import LONGEST_LEASE_MS, OPENING_MARGIN_MS, PATROL_MS, RETRY_MS, Contacts
from wattline.device.relays.gpio import GpioRelaySettings
from wattline.device.relays.opening import RelaySettings
from wattline.device.relays.relay import RelayError


class FakeRelay:
    def __init__(self) -> None:
        self.closed = True  # as somebody may have left it
        self.stuck = False
        self.silent = False
        self.foreign = False

    def set_closed(self, closed: bool) -> None:
        if self.foreign:
            raise RelayError("relay_wrong_chip", "another chip")
        if self.silent:
            raise RelayError("relay_bus_error", "silent")
        if not self.stuck:
            self.closed = closed
        if self.closed != closed:
            raise RelayError("relay_stuck", "stuck")

    def is_closed(self) -> bool:
        if self.silent:
            raise RelayError("relay_bus_error", "silent")
        return self.closed

    def close(self) -> None:
        pass


class Bench:
    """Two outlets, A and B."""

    def __init__(self) -> None:
        self.ms = 10_000
        self.relays = {0: FakeRelay(), 1: FakeRelay()}
        self.missing = False
        lines: dict[str, RelaySettings] = {
            name: GpioRelaySettings(driver="gpio", chip="/dev/gpiochip0", line=line)
            for line, name in enumerate(("A", "B"))
        }
        self.contacts = Contacts(lines, self.open_relay, lambda: self.ms)

    def open_relay(self, settings: RelaySettings) -> FakeRelay:
        assert isinstance(settings, GpioRelaySettings)
        if self.missing:
            raise RelayError("relay_no_line", "no such line")
        return self.relays[settings.line]

    def started(self) -> Bench:
        self.contacts.open_all()
        return self

    def hold(self, outlet_id: str = "A", lease_ms: int = 500, holder: object = "client", late_ms: int = 0) -> None:
        self.contacts.hold(outlet_id, holder, self.ms - late_ms, lease_ms)

    def pass_ms(self, ms: int) -> None:
        self.ms += ms
        self.contacts.tend()


def code_of(bench: Bench, **arguments: object) -> str:
    with pytest.raises(RelayError) as caught:
        bench.hold(**arguments)  # type: ignore[arg-type]
    return caught.value.code


def test_at_the_start_every_relay_is_opened_first() -> None:
    bench = Bench().started()
    assert [relay.closed for relay in bench.relays.values()] == [False, False]
    assert bench.contacts.all_open


def test_a_relay_opens_before_its_lease_ends() -> None:
    bench = Bench().started()
    bench.hold(lease_ms=500)
    bench.pass_ms(500 - OPENING_MARGIN_MS - 1)
    assert bench.relays[0].closed
    assert bench.contacts.next_ms() == bench.ms + 1
    bench.pass_ms(1)
    assert not bench.relays[0].closed


def test_the_next_hold_renews_the_lease() -> None:
    bench = Bench().started()
    for _ in range(10):
        bench.hold(lease_ms=500)
        bench.pass_ms(300)
        assert bench.relays[0].closed
    bench.pass_ms(200)
    assert not bench.relays[0].closed


def test_a_shorter_lease_takes_the_place_of_a_longer_one() -> None:
    bench = Bench().started()
    bench.hold(lease_ms=1000)
    bench.hold(lease_ms=100)
    bench.pass_ms(100)
    assert not bench.relays[0].closed


def test_time_that_a_request_spent_on_its_way_is_not_given_on_top() -> None:
    bench = Bench().started()
    bench.hold(lease_ms=500, late_ms=400)
    bench.pass_ms(100)
    assert not bench.relays[0].closed


def test_a_lease_that_ran_out_on_its_way_closes_nothing() -> None:
    bench = Bench().started()
    assert code_of(bench, lease_ms=500, late_ms=500) == "lease_over"
    assert not bench.relays[0].closed


@pytest.mark.parametrize("lease_ms", [LONGEST_LEASE_MS + 1, 0, -1])
def test_a_lease_of_an_impossible_length_is_refused(lease_ms: int) -> None:
    bench = Bench().started()
    assert code_of(bench, lease_ms=lease_ms) == "lease_too_long"
    assert not bench.relays[0].closed


def test_a_request_from_the_future_is_refused() -> None:
    bench = Bench().started()
    assert code_of(bench, late_ms=-1000) == "bad_request"
    assert not bench.relays[0].closed


def test_an_outlet_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    bench = Bench().started()
    with pytest.raises(RelayError, match="'C'; there are A, B") as caught:
        bench.hold("C")
    assert caught.value.code == "unknown_outlet"


def test_when_a_holder_goes_its_relays_open_and_no_others() -> None:
    bench = Bench().started()
    bench.hold("A", holder="one")
    bench.hold("B", holder="two")
    bench.contacts.release("one")
    assert [relay.closed for relay in bench.relays.values()] == [False, True]


def test_a_relay_that_cannot_be_opened_is_tried_again_for_ever_and_reported() -> None:
    bench = Bench().started()
    bench.hold()
    bench.relays[0].stuck = True
    with pytest.raises(RelayError, match="cannot be opened: stuck") as caught:
        bench.contacts.open("A")
    assert caught.value.code == "relay_stuck"
    for _ in range(50):
        bench.pass_ms(RETRY_MS)
        state = bench.contacts.states()[0]
        assert (state.closed, state.confirmed, state.fault) == (True, False, "stuck")
        assert not bench.contacts.all_open
        assert code_of(bench) == "relay_stuck"
    bench.relays[0].stuck = False
    bench.pass_ms(RETRY_MS)
    assert not bench.relays[0].closed
    assert bench.contacts.all_open
    bench.hold()
    assert bench.relays[0].closed


def test_a_lease_that_ends_on_a_silent_bus_is_opened_as_soon_as_the_bus_is_back() -> None:
    bench = Bench().started()
    bench.hold(lease_ms=500)
    bench.relays[0].silent = True
    bench.pass_ms(500)
    bench.pass_ms(10_000)
    assert bench.relays[0].closed
    bench.relays[0].silent = False
    bench.pass_ms(RETRY_MS)
    assert not bench.relays[0].closed


def test_a_relay_that_cannot_be_closed_is_opened_again() -> None:
    bench = Bench().started()
    bench.relays[0].stuck = True
    assert code_of(bench) == "relay_stuck"
    state = bench.contacts.states()[0]
    assert (state.closed, state.confirmed, state.lease_ends_ms) == (False, True, None)


def test_a_chip_that_is_missing_at_the_start_is_looked_for_again() -> None:
    bench = Bench()
    bench.missing = True
    bench.started()
    assert code_of(bench) == "relay_stuck"
    assert bench.contacts.states()[0].fault == "no such line"
    bench.missing = False
    bench.pass_ms(RETRY_MS)
    assert bench.contacts.all_open
    bench.hold()


def test_a_relay_on_another_chip_than_configured_is_refused_and_keeps_nobody_waiting() -> None:
    bench = Bench()
    bench.relays[0].foreign = True
    bench.started()
    assert code_of(bench) == "relay_wrong_chip"
    assert not bench.contacts.all_open
    assert bench.contacts.all_done
    bench.hold("B")
    assert not bench.contacts.all_done
    bench.relays[0].foreign = False
    bench.pass_ms(RETRY_MS)
    bench.hold()
    assert bench.relays[0].closed


def test_a_relay_that_closes_by_itself_is_opened_on_the_next_round() -> None:
    bench = Bench().started()
    bench.relays[1].closed = True
    bench.pass_ms(PATROL_MS)
    assert not bench.relays[1].closed


def test_a_state_says_what_is_known() -> None:
    bench = Bench().started()
    bench.ms += 7
    bench.hold(lease_ms=500)
    state = bench.contacts.states()[0]
    assert (state.outlet_id, state.closed, state.confirmed, state.at_ms, state.lease_ends_ms, state.fault) == (
        "A",
        True,
        True,
        bench.ms,
        bench.ms + 500,
        "",
    )
