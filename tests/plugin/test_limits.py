"""What strangers may ask for, and that nobody's flood is another's trouble. Virtual time."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.session.samples import TERMS
from wattline.core.ids import encode_session_id
from wattline.core.session.occupancy import Occupancy
from wattline.core.session.session import opened
from wattline.core.session.state import Method
from wattline.plugin.limits import (
    BURST_SHARE,
    MAX_LINES,
    NEW_CLAIMS_PART,
    Buckets,
    CountedLog,
    Limits,
    UnpaidOpens,
    address_of,
)
from wattline.plugin.settings import LimitSettings

RULES = LimitSettings()
HONEST = "192.0.2.1"


@given(st.lists(st.integers(0, 5_000), max_size=200), st.integers(2, 600))
def test_no_more_than_the_rate_and_one_burst_is_ever_taken(steps_ms: list[int], per_minute: int) -> None:
    now = [0.0]
    buckets = Buckets(per_minute, lambda: now[0])
    taken = 0
    for step_ms in steps_ms:
        now[0] += step_ms / 1000
        wait_s = buckets.take("a")
        taken += not wait_s
        assert taken <= max(1, per_minute * 2 / 3) + now[0] * per_minute / 60 + 1e-6
        if wait_s:
            now[0] += wait_s + 1e-6
            assert buckets.take("a") == 0, "after the time that was said"
            taken += 1


@given(st.lists(st.text(max_size=3), max_size=300))
def test_the_tables_stay_small_and_one_key_is_not_held_to_what_others_took(keys: list[str]) -> None:
    buckets = Buckets(60, lambda: 0.0, max_keys=10)
    for key in keys:
        buckets.take("other " + key)
        assert len(buckets) <= 10
    assert buckets.take("own") == 0


def test_all_or_nothing_is_taken_of_several_keys_and_what_was_paid_for_comes_back() -> None:
    buckets = Buckets(3, lambda: 0.0)
    assert buckets.take("address", "one") == 0
    assert buckets.take("address", "two") == 0
    assert buckets.take("address", "three") > 0
    assert buckets.take("three") == 0, "nothing of it was taken in vain"
    buckets.give_back("address")
    assert buckets.take("address", "four") == 0


def test_a_name_that_is_only_claimed_uses_up_nobodys_budget() -> None:
    limits = Limits(RULES, lambda: 0.0)
    while not limits.open("198.51.100.7", "victim", claims_to_be=True):
        pass
    assert limits.open(HONEST, "victim", claims_to_be=True) == 0
    assert limits.proven(HONEST, "victim") == 0


def test_who_has_paid_before_may_open_whatever_strangers_do_behind_the_same_address() -> None:
    limits = Limits(RULES, lambda: 0.0)
    limits.paid(HONEST, "payer")
    for number in range(1000):
        limits.open(HONEST, f"stranger {number}", claims_to_be=True)
    assert limits.open(HONEST, "stranger", claims_to_be=True) > 0
    assert limits.open(HONEST, "payer", claims_to_be=True) == 0
    assert limits.proven(HONEST, "payer") == 0


@given(st.lists(st.integers(0, 30), min_size=300, max_size=400))
def test_signatures_that_claim_to_be_of_payers_are_looked_at_within_the_address_s_budget_and_keep_none_of_them_out(
    claimed: list[int],
) -> None:
    limits = Limits(RULES, lambda: 0.0)
    for number in range(31):
        limits.paid("", f"payer {number}")
    limits.paid("", "customer")
    assert limits.open(HONEST, "customer", claims_to_be=True) == 0
    assert limits.proven(HONEST, "customer") == 0
    looked_at = sum(not limits.open(HONEST, f"payer {number}", claims_to_be=True) for number in claimed)
    assert looked_at <= RULES.opens_per_minute * (1 + 1 / NEW_CLAIMS_PART) * BURST_SHARE + 1
    assert limits.open(HONEST, "customer", claims_to_be=True) == 0
    assert limits.open("203.0.113.9", "payer 1", claims_to_be=True) == 0, "elsewhere it is nobody's loss"


def test_a_campsite_behind_one_address_that_pays_is_never_kept_waiting() -> None:
    now = [0.0]
    limits = Limits(RULES, lambda: now[0])
    for number in range(2000):
        now[0] += 0.05
        assert limits.open(HONEST, f"cable {number}", claims_to_be=False) == 0
        limits.paid(HONEST, f"cable {number}")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 100), st.integers(1, RULES.unpaid_sessions - 1), st.integers(0, 100), st.booleans())
def test_an_honest_open_that_pays_within_two_seconds_gets_a_free_outlet_under_any_flood_of_opens(
    per_s: int, addresses: int, begins_at: int, signs: bool
) -> None:
    now, number = [0.0], 0
    limits, unpaid, outlet = Limits(RULES, lambda: now[0]), UnpaidOpens(RULES.unpaid_sessions), Occupancy()

    def come(address: str, node_id: str) -> str | None:
        nonlocal number, outlet
        if limits.open(address, node_id, claims_to_be=signs):
            return None
        number += 1
        session = opened(encode_session_id(number.to_bytes(16, "big")), "A1", Method.KEYSEND, TERMS, 0)
        outlet = outlet.joined(session)
        unpaid.add(session.session_id, address)
        if surplus := unpaid.surplus():
            outlet = outlet.without(surplus[0])
            unpaid.keep(each.session_id for each in outlet.waiting)
        assert len(outlet.waiting) <= RULES.unpaid_sessions
        return session.session_id

    def flood(ticks: int) -> None:
        for tick in range(ticks):
            now[0] += 1 / per_s
            come(f"198.51.100.{tick % addresses}", f"new {number} {tick}")

    flood(begins_at)
    own = come(HONEST, "honest")
    assert own is not None
    flood(2 * per_s)
    assert outlet.may_pay(own, lambda _: False)
    taken, _ = outlet.taken(own)
    assert taken.paying is not None
    assert taken.paying.session_id == own


def test_of_lines_that_others_bring_about_one_a_minute_is_written_with_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    lines = CountedLog(lambda: now[0])
    for _ in range(50_000):
        now[0] += 0.002
        lines.info("a", "refused: %s", "b" * 50)
    assert [record.getMessage() for record in caplog.records] == [
        "refused: " + "b" * 50,
        f"refused: {'b' * 50} (and 29999 more of this kind since the last such line)",
    ]
    caplog.clear()
    for number in range(5000):
        lines.info(f"kind {number}", "another")
    assert len(caplog.records) <= MAX_LINES + 1


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", "fe80::/64"),
        ("unix:/tmp/x", "unix:/tmp/x"),
        ("", ":"),
    ],
)
def test_peers_are_counted_by_address_and_those_of_one_ipv6_network_together(peer: str, address: str) -> None:
    assert address_of(peer) == address


@given(st.text(max_size=200))
def test_whatever_a_peer_is_called_it_is_counted_under_something_short(peer: str) -> None:
    assert len(address_of(peer)) <= 64
