"""What a session is asked for, and what it is held to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wattline.core.increments import RATE_WINDOW_S, WINDOW_S, Crowd, ToldIncrements

BASE_MSAT, PER_S, CAP_MSAT = 10, 30, 100_000
SHARE = int(PER_S * RATE_WINDOW_S)
"""Of all sessions together."""

Told = list[tuple[float, int]]
told = st.lists(st.tuples(st.integers(0, 90).map(float), st.integers(1, 9)), max_size=40)
"""Seconds that have passed since the last one, and what is told then."""


def tell(steps: Told) -> tuple[ToldIncrements, list[tuple[float, int]]]:
    increments, log, at_s = ToldIncrements(), [], 0.0
    for passed_s, msat in steps:
        at_s += passed_s
        increments.tell(msat, at_s)
        log.append((at_s, msat))
    return increments, log


@given(told, st.integers(0, 200).map(float))
def test_who_pays_what_he_was_told_within_the_last_minute_is_never_refused(steps: Told, later_s: float) -> None:
    increments, log = tell(steps)
    now_s = (log[-1][0] if log else 0.0) + later_s
    least_msat = increments.least_msat(now_s)
    for at_s, msat in log:
        if at_s >= now_s - WINDOW_S:
            assert msat >= least_msat
    if log:
        assert log[-1][1] >= least_msat, "what was told last holds for as long as nothing else is"


@given(told, st.integers(0, 200).map(float))
def test_less_than_all_that_was_in_force_within_the_last_minute_is_refused(steps: Told, later_s: float) -> None:
    increments, log = tell(steps)
    now_s = (log[-1][0] if log else 0.0) + later_s
    until = [*(at_s for at_s, _ in log[1:]), float("inf")][: len(log)]
    in_force = [msat for (_, msat), end_s in zip(log, until, strict=True) if end_s >= now_s - WINDOW_S]
    assert increments.least_msat(now_s) == min(in_force, default=0)


def crowd(counts: dict[str, int]) -> Crowd:
    crowd = Crowd(BASE_MSAT, PER_S)
    for session_id, count in counts.items():
        for _ in range(count):
            crowd.arrived(session_id, 0.0)
    return crowd


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3 * SHARE), min_size=1, max_size=6),
    st.integers(1, SHARE),
)
def test_who_keeps_within_his_share_is_asked_for_no_more_whatever_others_send(others: dict[str, int], own: int) -> None:
    own = min(own, SHARE // (len(others) + 1))
    asked = crowd(others | {"own": own})
    assert asked.wish_msat("own", 0.0, CAP_MSAT) == BASE_MSAT
    assert asked.wish_msat(None, 0.0, CAP_MSAT) == BASE_MSAT


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3 * SHARE), max_size=6), st.integers(1, 200_000))
def test_what_is_asked_for_fits_into_the_credit_cap_several_times(counts: dict[str, int], cap_msat: int) -> None:
    for session_id in counts:
        wish_msat = crowd(counts).wish_msat(session_id, 0.0, cap_msat)
        assert BASE_MSAT <= wish_msat <= max(BASE_MSAT, cap_msat // 4)


def test_who_sends_more_than_his_share_is_asked_for_as_much_more_and_for_the_base_again_when_he_does_not() -> None:
    asked = crowd({"flood": 100 * int(RATE_WINDOW_S), "honest": 2 * int(RATE_WINDOW_S)})
    assert asked.wish_msat("flood", 0.0, CAP_MSAT) == 7 * BASE_MSAT
    assert asked.wish_msat("honest", 0.0, CAP_MSAT) == BASE_MSAT
    assert asked.wish_msat("flood", RATE_WINDOW_S + 1, CAP_MSAT) == BASE_MSAT
    everybody = crowd({str(number): 2 * int(RATE_WINDOW_S) for number in range(30)})
    assert everybody.wish_msat("7", 0.0, CAP_MSAT) == 2 * BASE_MSAT, "60 a second are twice as many as are liked"
