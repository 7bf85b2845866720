"""Nobody gets the same money back twice, whatever happens to the ledger: older copies are put back, and newer ones
after them, processes die, lightningd deletes what it has sent and what it was paid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.plugin.still_stall import StillStall, Tripwire
from wattline.core.errors import UsageError
from wattline.core.lightning.node import NodeUnavailable, SendStatus
from wattline.core.record import parse_record
from wattline.core.session.state import State
from wattline.plugin.resolving import Resolving

Act = tuple[Any, ...]
DAY_S = 86_400


class Photographer(Tripwire):
    """Also takes a copy of the ledger at one of the borders that are crossed."""

    def __init__(self, made: World) -> None:
        super().__init__()
        self._made = made
        self.until_copy: int | None = None
        """So many borders are still crossed before that."""

    def cross(self, call: str, *, is_after: bool) -> None:
        if self.until_copy == 0:
            self.until_copy = None
            self._made.take_copy()
        elif self.until_copy is not None:
            self.until_copy -= 1
        super().cross(call, is_after=is_after)


@dataclass
class World:
    """A socket from whose outlets nothing flows: whatever is paid for a session is to go back, once."""

    stall: StillStall
    sessions: list[str] = field(default_factory=list)
    copies: list[bytes] = field(default_factory=list)
    was_put_back: bool = False
    has_refused: bool = False
    """The node has refused a note."""
    paid: Counter[str] = field(default_factory=Counter)
    """msat, by session."""
    allowed: Counter[str] = field(default_factory=Counter)
    """What the operator has said may go back whatever the node has sent, msat, by session."""
    said: Counter[str] = field(default_factory=Counter)
    """How often he did."""
    payments: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    """Of all that was ever handed to the node, by payment_hash."""
    sent: dict[str, int] = field(default_factory=dict)
    """What has arrived or may yet arrive, msat, by payment_hash, whatever lightningd still knows of it."""

    def take_copy(self) -> None:
        self.copies.append(self.stall.copy_of_ledger())

    def put_back(self, number: int, *, keeps_newer: bool) -> None:
        """``keeps_newer``: what is replaced can be put back later."""
        if not self.copies:
            return
        copy = self.copies[number % len(self.copies)]
        if keeps_newer:
            self.take_copy()
        self.stall.time_s += 10
        self.was_put_back = True
        self.stall.put_back(copy)

    def look_at_node(self) -> None:
        """What the node has sent by now."""
        wallet = self.stall.wallet
        for row in wallet.labelled():
            self.labels[row.sent.payment_hash] = row.label
            amount_msat = row.sent.amount_msat
            assert amount_msat is not None
            self.sent[row.sent.payment_hash] = 0 if row.sent.status is SendStatus.FAILED else amount_msat

    def happen(self, act: Act) -> None:
        stall, wallet = self.stall, self.stall.wallet
        match act:
            case ("open", str(outlet_id)):
                if stall.app.outlets[outlet_id].view.session is None:
                    stall.time_s += 1
                    number = len(self.sessions) + 1
                    self.sessions.append("")  # a number is never used again
                    self.sessions[number - 1] = stall.open(number, outlet_id)
            case ("pay", int(which), int(amount_msat)):
                if session := self._session(which):
                    self.payments += 1
                    received = len(stall.journal.rows)
                    try:
                        stall.pay(session, self.payments, amount_msat)
                    finally:
                        self._count(received)
            case ("late", int(which), int(amount_msat)):
                if session := self._session(which):  # the plugin was away, and lightningd took it
                    self.payments += 1
                    received = len(stall.journal.rows)
                    stall.journal.add(session, self.payments, amount_msat)
                    self._count(received)
            case ("read",):
                stall.app.journal.read_to_end()
            case ("close", int(which)):
                if session := self._session(which):
                    stall.close_session(session)
            case ("work",):
                stall.work()
            case ("retry",):
                stall.time_s += 60
                stall.app.refunds.retry()
            case ("unsigned",):
                stall.signer.gone = True
                try:
                    stall.work()
                finally:
                    stall.signer.gone = False
            case ("unnoted",):
                stall.notes.gone = True
                try:
                    stall.work()
                finally:
                    stall.notes.gone = False
            case ("ask", int(which), bool(is_noted)):
                if session := self._session(which):
                    self.ask(session, is_noted=is_noted)
            case ("refuses", bool(refuses)):
                stall.notes.refuses = refuses
                self.has_refused |= refuses
            case ("save",):
                stall.app.sessions.save_changed()
            case ("blocked", bool(blocked)):
                wallet.blocked = blocked
            case ("fee", int(fee_msat)):
                wallet.fee_msat = fee_msat
            case ("ending", str(ending)):
                wallet.ending = SendStatus(ending)
            case ("autoclean",):
                if wallet.forgets_after_s is not None:
                    stall.time_s += 2 * DAY_S
                    self.look_at_node()
                    wallet.autoclean()
                    del stall.journal.rows[:-1]
            case ("copy",):
                self.take_copy()
            case ("copy_in", int(calls)):
                assert isinstance(stall.tripwire, Photographer)
                stall.tripwire.until_copy = calls
            case ("put_back", int(number), bool(keeps_newer)):
                self.put_back(number, keeps_newer=keeps_newer)
            case ("resolve", int(which), str(outcome)):
                if session := self._session(which):
                    self.resolve(session, outcome)
            case ("kill",):
                stall.kill()
            case ("kill_in", int(calls)):
                stall.tripwire.left = calls

    def ask(self, session: str, *, is_noted: bool) -> None:
        """The cable asks for its receipt; when it is not ``is_noted``, while lightningd notes nothing."""
        stall = self.stall
        record = stall.ledger.session(session)
        if record is None or record.session.state is not State.CLOSED:
            return
        stall.notes.gone = not is_noted
        try:
            stall.app.receipts.newest(record)
        except NodeUnavailable:
            assert not is_noted
        else:
            noted = int((stall.notes.notes.get("ledger") or "0").partition(":")[0])
            assert self.has_refused or not record.session.was_paid or noted >= stall.ledger.last_receipt_number()
        finally:
            stall.notes.gone = False

    def _session(self, which: int) -> str:
        return self.sessions[which % len(self.sessions)] if self.sessions else ""

    def _count(self, received: int) -> None:
        for row in self.stall.journal.rows[received:]:
            session_id = parse_record(row.description.removeprefix("keysend: ")).session_id
            self.paid[session_id] += row.amount_received_msat

    def resolve(self, session: str, outcome: str) -> bool:
        stall = self.stall
        if outcome == "refund":
            self.allowed[session] += self.paid[session]
            self.said[session] += 1
        resolving = Resolving(
            stall.ledger,
            stall.app.older_copy,
            stall.app.onchain,
            stall.app.refunds.settle,
            stall.app.clock,
            stall.app.refunds._payer,
            stall.app.refunds.hurry,
        )
        try:
            resolving.resolve(session, outcome, "looked")
        except UsageError:
            if outcome == "refund":
                self.allowed[session] -= self.paid[session]
                self.said[session] -= 1
            return False
        return True

    def check(self) -> None:
        self.look_at_node()
        back: Counter[str] = Counter()
        for payment_hash, amount_msat in self.sent.items():
            back[parse_record(self.labels[payment_hash]).session_id] += amount_msat
        arrived = Counter(self.labels[payment_hash] for payment_hash, amount_msat in self.sent.items() if amount_msat)
        for label, times in arrived.items():
            assert times <= 1 + self.said[parse_record(label).session_id], f"{label} was paid {times} times"
        for session, amount_msat in back.items():
            assert amount_msat <= self.paid[session] + self.allowed[session], f"{session} got money back twice"
        if not self.was_put_back:
            assert self.stall.app.older_copy.noticed_at is None
            assert not self.stall.app.older_copy.held()


@contextmanager
def world(*, forgets: bool) -> Iterator[World]:
    with TemporaryDirectory() as folder, StillStall(Path(folder) / "socket.sqlite3") as stall:
        made = World(stall)
        stall.tripwire = Photographer(made)
        stall.wallet.before_send = lambda: stall.tripwire.cross("send", is_after=False)
        stall.wallet.forgets_after_s = DAY_S if forgets else None
        stall.boot()
        yield made


def run(made: World, history: list[Act]) -> None:
    stall = made.stall
    for act in history:
        stall.happen(lambda act=act: made.happen(act))  # type: ignore[misc]
        with stall.tripwire.untouched():
            made.check()
    stall.tripwire.left = None
    stall.wallet.blocked, stall.wallet.ending, stall.wallet.fee_msat = False, SendStatus.COMPLETE, 0
    if stall.notes.refuses:
        stall.notes.refuses = False
        stall.kill()  # what could not be read at a start is read at the next one
    for record in stall.ledger.live_sessions():
        stall.close_session(record.session.session_id)
    for _ in range(3):
        stall.work()
        stall.time_s += 60
        stall.app.journal.read_to_end()
        stall.app.refunds.retry()
        made.check()
    for session in {*stall.app.older_copy.held()}:
        assert made.resolve(session, "keep")
    if stall.wallet.forgets_after_s is None:  # else a payment in doubt may be so for ever
        stall.app.refunds.retry()
        assert not stall.ledger.owed_refunds()
        assert not stall.ledger.orphans_to_return()
    assert not stall.app.older_copy.held()


acts = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["A1", "A2"])),
    st.tuples(st.just("pay"), st.integers(0, 3), st.integers(50, 60_000)),
    st.tuples(st.just("late"), st.integers(0, 3), st.integers(50, 60_000)),
    st.tuples(st.just("close"), st.integers(0, 3)),
    st.sampled_from([("read",), ("work",), ("work",), ("retry",), ("retry",), ("save",), ("unsigned",), ("unnoted",)]),
    st.sampled_from([("copy",), ("copy",), ("kill",), ("autoclean",), ("autoclean",)]),
    st.tuples(st.just("copy_in"), st.integers(0, 40)),
    st.tuples(st.just("kill_in"), st.integers(0, 40)),
    st.tuples(st.just("put_back"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("put_back"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("resolve"), st.integers(0, 3), st.sampled_from(["refund", "keep"])),
    st.tuples(st.just("ask"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("refuses"), st.booleans()),
    st.tuples(st.just("blocked"), st.booleans()),
    st.tuples(st.just("fee"), st.sampled_from([0, 0, 7, 400])),
    st.tuples(st.just("ending"), st.sampled_from(["complete", "complete", "pending", "failed"])),
)
beginning: list[Act] = [("open", "A1"), ("pay", 0, 20_000), ("open", "A2"), ("pay", 1, 30_000)]
GONE: list[Act] = [("autoclean",), ("put_back", 0, True), ("read",), ("work",), ("retry",), ("retry",)]
ORPHAN: list[Act] = [("close", 0), ("work",), ("late", 0, 4_000), ("read",)]
ASKED: list[Act] = [("open", "A1"), ("pay", 0, 50), ("close", 0), ("unnoted",), ("ask", 0, False), ("ask", 0, True)]
"""What is paid is less than any refund, so only the receipt is to be noted."""
NO_RECEIPT: list[Act] = [*beginning, ("save",), ("copy",), ("close", 0), ("unsigned",), *GONE]
HELD_ORPHAN: list[Act] = [*beginning, *ORPHAN, ("copy",), ("retry",), ("close", 1), ("work",), *GONE]
LATER_ORPHAN: list[Act] = [*beginning, *ORPHAN[:2], ("copy",), *ORPHAN[2:], ("retry",), *GONE]
NEWER_PUT_BACK: list[Act] = [
    *beginning,
    ("save",),
    ("copy",),
    ("blocked", True),
    ("close", 0),
    ("work",),
    ("put_back", 0, True),  # the older one is tried
    ("work",),
    ("blocked", False),
    ("resolve", 0, "refund"),
    ("retry",),
    ("autoclean",),
    ("put_back", 1, True),  # the newer one, in which the refund is owed
    ("retry",),
    ("put_back", 0, True),  # the older one once more
    ("work",),
    ("retry",),
]


histories = st.lists(acts, min_size=5, max_size=30).map(lambda history: [*beginning, *history])


@settings(max_examples=15)
@example(True, ASKED)
@example(True, NO_RECEIPT)
@example(True, HELD_ORPHAN)
@example(True, LATER_ORPHAN)
@example(True, NEWER_PUT_BACK)
@given(st.booleans(), histories)
def test_nobody_gets_the_same_money_back_twice(forgets: bool, history: list[Act]) -> None:
    with world(forgets=forgets) as made:
        run(made, history)


@pytest.mark.long
@pytest.mark.timeout(600)
@settings(max_examples=300)
@given(st.booleans(), histories)
def test_nobody_gets_the_same_money_back_twice_in_many_histories(forgets: bool, history: list[Act]) -> None:
    with world(forgets=forgets) as made:
        run(made, history)
