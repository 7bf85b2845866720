"""The state machine of an aggregate, over any history of events."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.ledger.onchain_samples import aggregate, outpoint, version
from wattline.core.aggregate import AggregateInput, AggregateStatus
from wattline.core.aggregate_step import (
    AggregateClosed,
    AggregateEvent,
    ChildSent,
    CreditLost,
    Held,
    InputsMined,
    InputsUnmined,
    VersionChosen,
    VersionDropped,
    VersionStored,
    Voided,
    check_inputs,
    step,
)
from wattline.core.errors import StopError

INPUTS = (AggregateInput(outpoint(1), 100_000),)
OTHERS = (AggregateInput(outpoint(2), 100_000),)
ENDS = {AggregateStatus.SETTLED, AggregateStatus.LOST, AggregateStatus.VOID}
AFTER = {
    AggregateStatus.OPEN: {AggregateStatus.OPEN, AggregateStatus.SENT, AggregateStatus.VOID},
    AggregateStatus.SENT: {AggregateStatus.SENT, AggregateStatus.SETTLED, AggregateStatus.LOST},
    **{end: {end} for end in ENDS},
}
small = st.integers(1, 6)
stored = st.builds(
    lambda number, value, is_final, inputs: VersionStored(
        version(number, value_sat=1000 * value, is_final=is_final), inputs, 7
    ),
    small,
    small,
    st.booleans(),
    st.sampled_from([INPUTS, OTHERS, ()]),
)
growing = st.integers(1, 6).map(lambda n: VersionStored(version(n, value_sat=1000 * n), INPUTS, 7))
events: st.SearchStrategy[AggregateEvent] = st.one_of(
    *(growing, growing, stored),
    st.builds(VersionDropped, small),
    st.builds(VersionChosen, small, st.just("closed"), st.just(9)),
    st.just(Voided("nothing owed", 9)),
    st.builds(InputsMined, st.sampled_from(["aa" * 32, "bb" * 32]), st.integers(0, 6000), small, st.just("cc" * 32)),
    st.just(InputsUnmined()),
    st.builds(CreditLost, st.integers(0, 5_000_000)),
    st.just(ChildSent("dd" * 32)),
    st.builds(AggregateClosed, st.sampled_from(list(AggregateStatus)), st.just(10), st.booleans()),
)


@dataclass
class Seen:
    """What a history has shown."""

    held: Held = field(default_factory=lambda: Held(aggregate()))

    def take(self, event: AggregateEvent) -> None:
        before = self.held
        try:
            after = step(before, event)
        except StopError:
            return  # and nothing has changed: values are immutable
        assert step(after, event) == after or isinstance(event, VersionDropped), "told again, it changes nothing"
        self.check(before, after, event)
        self.held = after

    def check(self, before: Held, after: Held, event: AggregateEvent) -> None:
        old, new = before.aggregate, after.aggregate
        assert new.status in AFTER[old.status]
        if old.chosen_at is not None:
            assert (new.chosen_number, new.chosen_at, new.choice_reason) == (
                *(old.chosen_number, old.chosen_at, old.choice_reason),
            )
        if after.value_sat < before.value_sat:
            assert isinstance(event, VersionDropped)
            assert old.status is AggregateStatus.OPEN
        if after.value_sat > before.value_sat:
            assert old.status is AggregateStatus.OPEN
            assert before.final is None
            assert after.newest is not None
            assert after.newest.number == (before.newest.number if before.newest else 0) + 1
        if before.newest is not None and after.newest is not None:
            assert new.inputs == old.inputs != ()
        if after.newest is None:
            assert new.inputs == ()
        if after.final is not None:
            assert after.newest is not None
            assert after.final.value_sat < after.newest.value_sat
            assert after.final.number == after.newest.number + 1
        if new.chosen_number is not None:
            assert new.chosen_number in {each.number for each in after.versions}
        if new.status is AggregateStatus.SETTLED and not (isinstance(event, AggregateClosed) and event.is_resolved):
            assert new.mined_txid is not None or old.status is AggregateStatus.SETTLED
        assert all(each.is_whole for each in after.versions)


@given(st.lists(events, max_size=25))
def test_the_value_grows_the_first_choice_stands_and_nothing_leads_back(history: list[AggregateEvent]) -> None:
    seen = Seen()
    for event in history:
        seen.take(event)


def grown(*values: int) -> Held:
    stored = (VersionStored(version(n, value_sat=value), INPUTS, 7) for n, value in enumerate(values, 1))
    return reduce(step, stored, Held(aggregate()))


def test_every_version_spends_the_inputs_of_the_first_one_and_no_others() -> None:
    held = grown(1000, 2000)
    check_inputs(held, frozenset({INPUTS[0].outpoint}))
    for outpoints in ({OTHERS[0].outpoint}, {INPUTS[0].outpoint, OTHERS[0].outpoint}, set()):
        with pytest.raises(StopError) as caught:
            check_inputs(held, frozenset(outpoints))
        assert caught.value.code == "other_inputs"
    check_inputs(Held(aggregate()), frozenset({OTHERS[0].outpoint}))


def test_after_a_drop_the_value_is_that_of_the_version_before() -> None:
    held = grown(1000, 2000)
    assert step(held, VersionDropped(2)).value_sat == 1000
    with pytest.raises(StopError):
        step(step(held, VersionChosen(2, "closed", 9)), VersionDropped(2))
    assert step(grown(1000), VersionDropped(1)) == Held(aggregate())


def test_a_reorg_takes_back_what_was_mined_and_what_was_lost_of_it() -> None:
    sent = step(grown(1000, 2000), VersionChosen(2, "closed", 9))
    lost = step(step(sent, InputsMined("aa" * 32, 500, 8, "cc" * 32)), CreditLost(1_500_000))
    assert step(lost, InputsMined("aa" * 32, 500, 9, "dd" * 32)).aggregate.lost_msat == 1_500_000
    assert step(lost, InputsMined("bb" * 32, 2000, 9, "dd" * 32)).aggregate.lost_msat == 0
    assert step(lost, InputsUnmined()) == sent
