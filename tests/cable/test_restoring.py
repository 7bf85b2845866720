from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wattline.cable.restoring import place_energy
from wattline.core.clock import Moment, WallWatch
from wattline.core.ledger.cable import CableSession
from wattline.core.tariff import Tariff, cost_msat
from wattline.device.meters.reading import Reading

TARIFF = Tariff.of(300_000)


def down(energy_uwh: int, now: Moment) -> CableSession:
    """A session whose cable went down when its meter had counted so much."""
    session = CableSession(
        token="ab" * 32,
        address="x:1",
        node_id="02" + "51" * 32,
        outlet_id="A1",
        tariff=TARIFF,
        rated_power_mw=10**9,
        created_at=1,
        session_id="0" * 26,
        opened_at=1,
        energy_uwh=energy_uwh,
    )
    return session.saved_now(now)


@given(st.integers(0, 10**10), st.integers(0, 10**15), st.integers(0, 10**7))
def test_a_meter_that_lost_its_count_believes_no_more_of_a_socket_than_was_paid_for(
    own_uwh: int, claimed_uwh: int, prepaid_msat: int
) -> None:
    now = WallWatch().now()
    paid_msat = cost_msat(TARIFF, own_uwh, 0, True) + prepaid_msat
    reading = Reading(0, 0, 0, 0, 0)  # it starts anew
    placed, gap_uwh = place_energy(down(own_uwh + 1, now), reading, claimed_uwh, paid_msat, now)
    assert cost_msat(TARIFF, placed.extra_uwh, 0, True) <= paid_msat + 1
    assert placed.extra_uwh == own_uwh + 1 + gap_uwh
