"""A cable's ledger that was put back to an older copy, whose node has paid since."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cable.conftest import Bench
from tests.cable.fakes import SESSION_IDS, SOCKET_NODE, wait_for
from wattline.cable.opening import PaymentUnknown, recollect
from wattline.cable.pay.keysend import PURPOSE
from wattline.core.clock import Moment
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.lightning.node import SendStatus, SentPayment
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.record import format_record
from wattline.core.tariff import Tariff

NOW = 1_700_000_000
DAY = 86_400


def test_a_session_goes_on_from_what_left_the_wallet_though_the_ledger_is_an_older_copy(bench: Bench) -> None:
    bench.start()
    bench.until(payments=2)
    copy = bench.copy_of_ledger()
    bench.until(payments=len(bench.socket.orders) + 4)
    bench.crash()
    wait_for(lambda: len(bench.node.results) == len(bench.node.sends))
    before_msat = sum(amount_msat for _, amount_msat, _ in bench.node.sends)
    bench.put_back(copy)
    bench.start()
    count = len(bench.socket.orders)
    bench.until(payments=count + 2)
    summary = bench.finish()
    assert summary.is_good, summary
    assert any("older copy" in line for line in bench.listener.lines), bench.listener.lines
    assert summary.paid_msat == bench.socket.session.credited > before_msat
    labels = [label for _, _, label in bench.node.sends]
    assert len(set(labels)) == len(labels), "one increment was paid twice"
    assert bench.ledger.outgoing.sent_msat() == sum(amount_msat for _, amount_msat, _ in bench.node.sends)


@dataclass(frozen=True)
class Sent:
    """One payment of the node."""

    session_id: str
    sequence: int
    status: SendStatus
    at: int
    amount_msat: int
    fee_msat: int

    @property
    def preimage(self) -> str:
        return hashlib.sha256(f"{self.session_id} {self.sequence} {self.at}".encode()).hexdigest()

    @property
    def payment_hash(self) -> str:
        return hashlib.sha256(bytes.fromhex(self.preimage)).hexdigest()

    @property
    def label(self) -> str:
        return format_record(self.session_id, self.sequence)

    @property
    def row(self) -> LabelledPayment:
        sent_msat = self.amount_msat + self.fee_msat
        preimage = self.preimage if self.status is SendStatus.COMPLETE else None
        sent = SentPayment(self.payment_hash, self.status, self.amount_msat, sent_msat, preimage)
        return LabelledPayment(self.label, SOCKET_NODE, self.at, sent)


@dataclass
class Record:
    """The node's."""

    sent: list[Sent] = field(default_factory=list)

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        return [each.row for each in self.sent if each.at >= created_at]


def remember(ledger: Ledger, session_id: str) -> CableSession:
    session = CableSession(
        token=hashlib.sha256(session_id.encode()).hexdigest(),
        address="127.0.0.1:1",
        node_id=SOCKET_NODE,
        outlet_id="A1",
        tariff=Tariff.of(300_000),
        rated_power_mw=1000,
        created_at=NOW - 3600,
        session_id=session_id,
    )
    ledger.cable_sessions.save(session)
    return session


def write(ledger: Ledger, sent: Sent) -> None:
    ledger.outgoing.add(
        Intent(
            payment_hash=sent.payment_hash,
            preimage=sent.preimage,
            purpose=PURPOSE,
            session_id=sent.session_id,
            sequence=sent.sequence,
            destination=SOCKET_NODE,
            amount_msat=sent.amount_msat,
            maxfee_msat=sent.fee_msat,
            record=sent.label,
            label=sent.label,
            created_at=sent.at,
        )
    )
    if sent.status is SendStatus.COMPLETE:
        ledger.outgoing.complete(sent.payment_hash, sent.amount_msat + sent.fee_msat, sent.at)
    elif sent.status is SendStatus.FAILED:
        ledger.outgoing.fail(sent.payment_hash, "came back", sent.at)


amounts = st.lists(
    st.tuples(
        st.sampled_from([SendStatus.COMPLETE, SendStatus.COMPLETE, SendStatus.FAILED]),
        st.integers(1, 10_000),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(amounts, amounts, st.integers(0, 12))
def test_whenever_the_copy_was_made_sums_and_numbers_are_those_of_the_node(
    first: list[tuple[SendStatus, int, int]], later: list[tuple[SendStatus, int, int]], known: int
) -> None:
    old, new = SESSION_IDS[:2]
    record = Record(
        [Sent(old, number, *each[:1], NOW + number, *each[1:]) for number, each in enumerate(first, 1)]
        + [Sent(new, number, *each[:1], NOW + 100 + number, *each[1:]) for number, each in enumerate(later, 1)]
    )
    known = min(known, len(first))
    with TemporaryDirectory() as folder, open_ledger(Path(folder) / "cable.sqlite3") as ledger:
        session = remember(ledger, old)
        for sent in record.sent[:known]:
            write(ledger, sent)
        paid = [sent for sent in record.sent if sent.status is SendStatus.COMPLETE]
        missing = [sent for sent in record.sent[known:] if sent.status is SendStatus.COMPLETE]
        is_noticed = any(sent.session_id == old for sent in missing)
        count = recollect(record.sent_since, ledger, session, NOW - DAY)
        assert count == (len(missing) if is_noticed else 0)
        expected = [sent for sent in paid if is_noticed or sent.session_id == old]
        assert ledger.outgoing.sent_msat(day_before=Moment(NOW)) == sum(
            each.amount_msat + each.fee_msat for each in expected
        )
        of_old = [sent.sequence for sent in paid if sent.session_id == old]
        recorded = {intent.sequence for intent in ledger.outgoing.of_session(Purpose.INCREMENT, old)}
        assert recorded >= set(of_old)
        assert not ledger.outgoing.pending()
        assert recollect(record.sent_since, ledger, session, NOW - DAY) == 0


def test_what_another_cable_pays_from_the_same_node_is_not_this_ones(tmp_path: Path) -> None:
    own, other = SESSION_IDS[:2]
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        session = remember(ledger, own)
        write(ledger, Sent(own, 1, SendStatus.COMPLETE, NOW, 1000, 0))
        refund = Sent(own, 0, SendStatus.COMPLETE, NOW + 1, 1000, 0)
        record = Record([refund, Sent(other, 1, SendStatus.COMPLETE, NOW + 1, 1000, 0)])
        assert recollect(record.sent_since, ledger, session, NOW - DAY) == 0
        assert ledger.outgoing.sent_msat() == 1000


def test_nothing_is_paid_while_a_payment_that_the_ledger_does_not_know_is_under_way(tmp_path: Path) -> None:
    own = SESSION_IDS[0]
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        session = remember(ledger, own)
        rows = [Sent(own, 1, SendStatus.PENDING, NOW, 1000, 0), Sent(own, 2, SendStatus.COMPLETE, NOW, 2000, 0)]
        with pytest.raises(PaymentUnknown):
            recollect(Record(rows).sent_since, ledger, session, NOW - DAY)
        assert ledger.outgoing.sent_msat() == 2000
        rows[0] = Sent(own, 1, SendStatus.COMPLETE, NOW, 1000, 0)
        assert recollect(Record(rows).sent_since, ledger, session, NOW - DAY) == 1
        assert ledger.outgoing.sent_msat() == 3000


def test_one_increment_has_one_payment_also_where_the_copy_had_another_one_in_doubt(tmp_path: Path) -> None:
    own = SESSION_IDS[0]
    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        session = remember(ledger, own)
        doubt = Sent(own, 1, SendStatus.PENDING, NOW - 5, 1000, 0)
        write(ledger, doubt)
        record = Record([Sent(own, 1, SendStatus.COMPLETE, NOW, 1000, 0)])
        with pytest.raises(PaymentUnknown):
            recollect(record.sent_since, ledger, session, NOW - DAY)
        ledger.outgoing.fail(doubt.payment_hash, "the node never heard of it", NOW)
        assert recollect(record.sent_since, ledger, session, NOW - DAY) == 1


def test_a_cable_that_has_bought_nothing_asks_nothing(tmp_path: Path) -> None:
    class Deaf(Record):
        def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
            raise AssertionError("asked")

    with open_ledger(tmp_path / "cable.sqlite3") as ledger:
        assert recollect(Deaf().sent_since, ledger, None, int(time.time()) - DAY) == 0
