"""Whatever a death or a refused write leaves in the socket's ledger, it is ended rightly: tried at every write of a
whole session, before it and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.plugin.fakes import CABLE
from tests.plugin.still_stall import CONFIRMATIONS, Killed
from tests.plugin.test_onchain_property import Act, World, world
from wattline.core.aggregate import AggregateStatus
from wattline.core.errors import WattlineError
from wattline.core.ledger.database import LedgerBusy, LedgerError
from wattline.v1 import charging_pb2 as pb

ENDS: list[Act] = [("close",), ("work",), ("work",), ("work",), ("look",)]
ON_CHAIN: list[Act] = [
    ("grow", 500),
    ("deliver", 90),
    ("save",),
    ("grow", 700),
    ("deliver", 60),
    ("keysend", 5_000),
    ("look",),
    *ENDS,
    *[("mine", True), ("look",)] * (CONFIRMATIONS + 1),
    ("retry",),
]

KEYSEND: list[Act] = [
    ("keysend", 60_000),
    ("deliver", 50),
    ("save",),
    ("keysend", 20_000),
    *ENDS,
    ("late", 7_000),
    ("retry",),
]
"""With what arrives when the session is over."""
SESSIONS = pytest.mark.parametrize(
    "history", [pytest.param(ON_CHAIN, id="on-chain", marks=pytest.mark.long), pytest.param(KEYSEND, id="keysend")]
)
READS = {
    "aggregate", "booked", "credited", "credited_msat", "current_tariff", "cursor", "events", "exposure_sat",
    "final_version", "increments", "input_in_use", "intent", "last_event", "last_receipt_number", "live_sessions",
    "newest_version", "note", "of", "onchain_credited_msat", "orphans", "owed_refunds", "pending", "receipt",
    "refused_cable", "refused_input", "session", "sessions", "tariff_history", "tip", "unfinished_aggregates", "unit",
    "version", "version_value_sat", "without_receipt",
}  # fmt: skip
CHAIN = {
    "block", "block_hash", "broadcast", "bump", "floor", "income", "mempool_spenders", "mempool_tx", "new_address",
    "outputs", "send", "sent_since", "unspent", "write_note",
}  # fmt: skip
CHANGES = {"broadcast", "bump", "send", "write_note"}
MOST = 200
Border = Callable[[str, bool], bool]


def before_write(call: str, is_after: bool) -> bool:
    """What outlives the process is changed: a death leaves no other states than those between two of these."""
    return not is_after and call not in READS and (call not in CHAIN or call in CHANGES)


def before_ledger_write(call: str, is_after: bool) -> bool:
    return not is_after and call not in READS | CHAIN


def after_ledger_write(call: str, is_after: bool) -> bool:
    """The connection was lost in the commit: it is written all the same."""
    return is_after and call not in READS | CHAIN


@dataclass
class Trial:
    """One session, with one thing that goes wrong at the n-th write."""

    made: World

    def happen(self, act: Act) -> None:
        stall = self.made.stall
        try:
            if act[0] == "late":
                if not stall.journal.rows[1:]:
                    stall.journal.add(self.made.session, 2, act[1])
                stall.app.journal.read_to_end()
            else:
                self.made.happen(act)
        except Killed:
            stall.boot()
        except WattlineError:
            pass  # whoever asked is told, or asks again

    def run(self, history: list[Act], after: int) -> bool:
        """Whether so many writes were made at all."""
        stall = self.made.stall
        stall.tripwire.left = after
        for act in history:
            self.happen(act)
        is_reached = stall.tripwire.left is None
        stall.tripwire.left = None
        self.made.happen(("close",))
        stall.work()
        if ("late", 7_000) in history:
            self.happen(("late", 7_000))
        for _ in range(2):
            stall.time_s += 60  # what the node was never told of is given up
            stall.app.refunds.retry()
        self.made.settle()
        return is_reached

    def check(self) -> None:
        made, stall, ledger = self.made, self.made.stall, self.made.stall.ledger
        record = ledger.session(made.session)
        assert record is not None
        session, account = record.session, record.session.account
        assert ledger.refused_cable(CABLE) is None
        received_msat = sum(row.amount_received_msat for row in stall.journal.rows)
        orphans_msat = sum(row.amount_msat for row in ledger.payments(made.session) if row.kind == "orphan")
        assert ledger.credited_msat(made.session) + orphans_msat == received_msat
        assert account.credited_msat == ledger.credited_msat(made.session) + ledger.onchain_credited_msat(made.session)
        sent_msat = sum(amount_msat for _, amount_msat in stall.wallet.sends)
        assert account.refunded_msat - session.returned_msat + orphans_msat == sent_msat
        assert len(stall.wallet.sends) <= 1 + (orphans_msat > 0)
        assert not ledger.outgoing.pending()
        assert not ledger.owed_refunds()
        assert not ledger.live_sessions()
        assert not ledger.unfinished_aggregates()
        assert all(outlet.view.session is None and not outlet.view.waiting for outlet in stall.app.outlets.values())
        receipt = pb.Receipt.FromString(stall.app.receipts.newest(record).receipt)
        assert receipt.credited_msat == account.credited_msat
        assert receipt.charged_msat == account.charged_msat
        assert receipt.refunded_msat == account.refunded_msat
        if ledger.newest_version(made.session) is not None:
            aggregate = stall.aggregate(made.session)
            assert aggregate.lost_msat == 0
            if aggregate.status is not AggregateStatus.VOID:
                mined_msat = aggregate.mined_value_sat * 1000
                assert account.credited_msat - session.returned_msat - ledger.credited_msat(made.session) == mined_msat
        assert not stall.hardware["A1"].closed


def at_every_write(history: list[Act], is_border: Border, fault: Callable[[], BaseException]) -> None:
    for number in range(MOST):
        with world() as made:
            made.stall.tripwire.counts, made.stall.tripwire.fault = is_border, fault
            trial = Trial(made)
            try:
                is_reached = trial.run(history, number)
                trial.check()
            except BaseException as error:
                error.add_note(f"at write {number}")
                raise
        if not is_reached:
            assert number > 5
            return
    raise AssertionError("the session never ends")


def disk_full() -> BaseException:
    return LedgerError("ledger_full", "the disk is full")


def connection_lost() -> BaseException:
    return LedgerBusy("ledger_busy", "the connection was lost")


@SESSIONS
def test_killed_at_any_write_the_next_start_ends_the_session_rightly(history: list[Act]) -> None:
    at_every_write(history, before_write, Killed)


@pytest.mark.parametrize(
    "history", [pytest.param(ON_CHAIN, marks=pytest.mark.long), KEYSEND], ids=["on-chain", "keysend"]
)
@pytest.mark.parametrize(
    ("is_border", "fault"),
    [(before_ledger_write, disk_full), (after_ledger_write, connection_lost)],
    ids=["disk full", "lost in the commit"],
)
def test_a_write_that_fails_is_made_up_for_by_the_same_process(
    history: list[Act], is_border: Border, fault: Callable[[], BaseException]
) -> None:
    at_every_write(history, is_border, fault)
