"""A budget of a day on machines whose clock was not set, was set wrongly, and that start anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.core.ledger.onchain_samples import cable_aggregate
from tests.core.ledger.samples import intent
from wattline.core.clock import DAY_S, Moment
from wattline.core.lastday import DAY_MS, LastDay, last_day
from wattline.core.ledger.ledger import Ledger, open_ledger

NOON_S = 1_796_000_000
UNSET = "unset"
"""The clock begins in 1970 at each boot."""
SLACK_MS = 2_000
"""Wall clocks are read in whole seconds."""


@dataclass
class Machine:
    """Its boots, as they are, and what its ledger notes of them."""

    true_ms: int = NOON_S * 1000
    boot: int = 0
    boot_ms: int = 20_000
    error: int | str = 0
    """Seconds by which the wall clock is ahead, or UNSET."""
    noted: dict[str, Moment] = field(default_factory=dict)
    paid: list[tuple[int, Moment]] = field(default_factory=list)
    was_wrong: bool = False
    was_unset: bool = False

    @property
    def now(self) -> Moment:
        wall_s = self.boot_ms // 1000 if isinstance(self.error, str) else self.true_ms // 1000 + self.error
        self.was_wrong = self.was_wrong or self.error not in (0, UNSET)
        self.was_unset = self.was_unset or self.error == UNSET
        return Moment(wall_s, f"boot {self.boot}", self.boot_ms)

    def pass_s(self, seconds: int) -> None:
        self.true_ms += seconds * 1000
        self.boot_ms += seconds * 1000

    def note(self) -> Moment:
        moment = self.now
        self.noted[moment.boot_id] = moment
        return moment

    def pay(self) -> None:
        self.paid.append((self.true_ms, self.note()))

    def reboot(self, off_s: int, error: int | str) -> None:
        self.true_ms += off_s * 1000
        self.boot, self.boot_ms, self.error = self.boot + 1, 20_000, error

    def running_ms(self, made: Moment) -> int:
        """For so long, provably, the machine has been running since."""
        if made.boot_id == self.now.boot_id:
            return self.boot_ms - made.boot_ms
        later = list(self.noted.values())[list(self.noted).index(made.boot_id) + 1 :]
        later_ms = sum(each.boot_ms for each in later if each.boot_id != self.now.boot_id)
        return self.noted[made.boot_id].boot_ms - made.boot_ms + later_ms + self.boot_ms


errors = st.sampled_from([0, 0, UNSET, -3600, 3600, -400 * DAY_S, 9 * 365 * DAY_S])
spans = st.sampled_from([1, 60, 3600, 20 * 3600, DAY_S - 1, DAY_S, 30 * DAY_S])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), spans, st.just(0)),
        st.tuples(st.just("set"), st.just(0), errors),
        st.tuples(st.just("reboot"), spans, errors),
        st.tuples(st.just("note"), st.just(0), st.just(0)),
        st.tuples(st.just("pay"), st.just(0), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(steps)
@example([("set", 0, UNSET), ("pay", 0, 0), ("set", 0, 0), ("note", 0, 0), ("pass", 60, 0)])
@example([("pay", 0, 0), ("reboot", 30 * DAY_S, UNSET), ("pass", 60, 0), ("set", 0, 0), ("pass", 60, 0)])
@example([("pay", 0, 0), ("note", 0, 0), ("reboot", 3600, UNSET), ("pay", 0, 0), ("reboot", 60, 0)])
def test_never_less_counts_than_is_of_the_last_day_and_nothing_for_longer_than_a_day_of_running(
    story: list[tuple[str, int, int | str]],
) -> None:
    machine = Machine()
    for what, seconds, error in story:
        match what:
            case "pass":
                machine.pass_s(seconds)
            case "set":
                machine.error = error
            case "reboot":
                machine.reboot(seconds, error)
            case "note":
                machine.note()
            case "pay":
                machine.pay()
        now = machine.now
        day = last_day(list(machine.noted.values()), now)
        for true_ms, made in machine.paid:
            age_ms = machine.true_ms - true_ms
            if made.boot_id == now.boot_id:
                assert day.has(made) is (age_ms < DAY_MS)
                continue
            if machine.running_ms(made) >= DAY_MS:
                assert not day.has(made)
            if not machine.was_wrong and age_ms < DAY_MS - SLACK_MS:
                assert day.has(made)
            if not machine.was_wrong and not machine.was_unset and age_ms > DAY_MS + SLACK_MS:
                assert not day.has(made)


moments = st.builds(
    Moment, st.sampled_from([100, NOON_S - DAY_S, NOON_S]), st.sampled_from(["", "a", "b", "c"]), st.integers(0, 9)
)


@settings(max_examples=25, deadline=None)
@given(made=st.lists(moments, min_size=1, max_size=6), now=moments)
def test_the_ledger_counts_what_is_of_the_last_day_in_both_ways_of_paying(made: list[Moment], now: Moment) -> None:
    with TemporaryDirectory() as folder, open_ledger(Path(folder) / "cable.sqlite3") as ledger:
        for number, moment in enumerate(made, 1):
            write(ledger, number, moment)
        boots = list({each.boot_id: each for each in made if each.boot_id}.values())
        newest = [
            max((each for each in made if each.boot_id == boot.boot_id), key=lambda m: m.boot_ms) for boot in boots
        ]
        day = last_day(newest, now)
        count = sum(day.has(moment) for moment in made)
        assert ledger.outgoing.sent_msat(day_before=now) == 1050 * count
        assert ledger.cable_aggregates.sent_msat(day_before=now) == 1_154_000 * count
        assert ledger.outgoing.day_begins_s(now) == day.begins_s


def write(ledger: Ledger, number: int, made: Moment) -> None:
    ledger.outgoing.add(
        intent(number, created_at=made.wall_s, created_boot_id=made.boot_id, created_boot_ms=made.boot_ms)
    )
    ledger.cable_aggregates.save(cable_aggregate(number, signed_sat=1000).signed_now(made))


def test_a_payment_before_the_clock_was_set_counts_for_the_next_process_too(tmp_path: Path) -> None:
    paid, saved = Moment(100, "a", 50_000), Moment(NOON_S, "a", 110_000)
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        write(ledger, 1, paid)
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        assert ledger.outgoing.sent_msat(day_before=saved) == 1050
        assert ledger.outgoing.sent_msat(day_before=Moment(NOON_S + DAY_S, "a", 50_000 + DAY_MS)) == 0


def test_a_boot_in_1970_counts_what_was_paid_on_the_last_day_of_running_and_not_all_that_ever_was(
    tmp_path: Path,
) -> None:
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        for number, days in enumerate((300, 200, 100, 30), 1):
            write(ledger, number, Moment(NOON_S - days * DAY_S, f"{days}", 30 * DAY_MS))
        assert ledger.outgoing.sent_msat(day_before=Moment(100, "now", 20_000)) == 1050
        assert ledger.outgoing.sent_msat(day_before=Moment(NOON_S, "now", 50_000)) == 0


def test_records_without_a_boot_count_by_their_date() -> None:
    day = last_day([], Moment(NOON_S, "a", 2 * DAY_MS))
    assert day == LastDay({"a": DAY_MS}, NOON_S - DAY_S, counts_undated=False)
    assert day.has(Moment(NOON_S - DAY_S))
    assert not day.has(Moment(NOON_S - DAY_S - 1))
    assert not day.has(Moment(100))
    assert last_day([], Moment(NOON_S, "a", 60_000)).has(Moment(100))
