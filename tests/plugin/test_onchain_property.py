"""What holds for payments on the chain, whatever cable, chain and machine do in whatever order.

A history happens to a whole socket without threads; at its end the chain grows quietly until everything is deep in it,
and then the ledger must equal the chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.plugin.fakes import CABLE
from tests.plugin.still_stall import (
    CONFIRMATIONS,
    CREDIT_CAP_SAT,
    EXPOSURE_CAP_SAT,
    FLOOR_SAT,
    StillStall,
    Wallet,
)
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus, VersionRefused, final_value_sat, lost_msat
from wattline.core.bitcoin.chain import Tx
from wattline.core.session.event import OperatorStopped
from wattline.core.session.state import State
from wattline.v1 import charging_pb2 as pb

Act = tuple[Any, ...]

FEE_SAT = 200


@dataclass
class World:
    """One socket, one session, one cable, and what each of them did."""

    stall: StillStall
    session: str
    wallet: Wallet
    accepted: list[Tx] = field(default_factory=list)
    """The versions that the cable was told are taken, the final one too."""
    newest_sat: int = 0
    """Of those that are credited, as the cable was told."""
    rivals: set[str] = field(default_factory=set)
    """Txids that the cable brought among the people."""
    final: str = "good"
    """How the cable answers when it is asked for the final version."""
    payments: int = 0
    chosen: int | None = None

    # What the cable does.

    def grow(self, more_sat: int, number: int | None = None) -> str:
        newest = self.stall.ledger.newest_version(self.session)
        before_sat = newest.value_sat if newest else FLOOR_SAT
        tx = self.wallet.sign(before_sat + more_sat)
        number = number if number is not None else (newest.number if newest else 0) + 1
        return self.hand_over(number, tx)

    def hand_over(self, number: int, tx: Tx, *, is_final: bool = False) -> str:
        code = self.stall.hand_over(self.session, number, tx, is_final=is_final)
        if not code:
            self.accepted.append(tx)
        return code

    def answer(self, session_id: str, message: pb.ChargeResponse) -> None:
        newest = self.stall.ledger.newest_version(self.session)
        assert newest is not None, "a final version of nothing"
        value_sat = message.final_due.value_sat
        assert FLOOR_SAT <= value_sat < newest.value_sat
        match self.final:
            case "good":
                self.hand_over(newest.number + 1, self.wallet.sign(value_sat), is_final=True)
            case "wrong":
                assert self.hand_over(newest.number + 1, self.wallet.sign(value_sat - 1), is_final=True)
            case "unsigned":
                assert self.hand_over(newest.number + 1, self.wallet.sign(value_sat, signed=False), is_final=True)
            case "broadcast":
                tx = self.wallet.sign(value_sat)
                self.hand_over(newest.number + 1, tx, is_final=True)
                self.spread(tx, mined=False)

    def spread(self, tx: Tx, *, mined: bool) -> None:
        """The cable broadcasts it, or has it mined behind everybody's back."""
        if not mined:
            if not self.stall.chain.offer(tx):
                self.rivals.add(tx.txid)
        elif self.stall.chain.fee_sat(tx) is not None:
            self.rivals.add(tx.txid)
            self.stall.chain.mine([tx])

    def rival(self, which: str, mined: bool) -> None:
        match which:
            case "older" if len(self.accepted) > 1:
                self.spread(self.accepted[-2], mined=mined)
            case "first" if self.accepted:
                self.spread(self.accepted[0], mined=mined)
            case "newest" if self.accepted:
                self.spread(self.accepted[-1], mined=mined)
            case "made" if self.wallet.versions:
                self.spread(self.wallet.versions[-1], mined=mined)
            case "double":
                self.spread(self.wallet.double_spend(5 * FEE_SAT), mined=mined)
            case "cheap":
                self.spread(self.wallet.double_spend(FEE_SAT), mined=mined)
            case "partial":
                self.spread(self.wallet.double_spend(5 * FEE_SAT, self.wallet.inputs[-1:]), mined=mined)

    # What happens.

    def happen(self, act: Act) -> None:
        stall, chain = self.stall, self.stall.chain
        match act:
            case ("grow", int(more_sat)):
                self.grow(more_sat)
            case ("smaller",):
                newest = stall.ledger.newest_version(self.session)
                if newest is not None:
                    assert self.hand_over(newest.number + 1, self.wallet.sign(newest.value_sat))
            case ("again",):
                newest = stall.ledger.newest_version(self.session)
                if newest is not None and not chain.away:
                    tx = next(tx for tx in self.wallet.versions if tx.txid == newest.txid)
                    credited_msat = stall.ledger.onchain_credited_msat(self.session)
                    assert self.hand_over(newest.number, tx) == ""
                    assert stall.ledger.onchain_credited_msat(self.session) == credited_msat
            case ("other_inputs",):
                if stall.ledger.newest_version(self.session) is not None:
                    other = self.wallet.sign(FLOOR_SAT + 5000, inputs=[chain.fund(100_000)], change=[])
                    assert self.hand_over(len(self.accepted) + 1, other)
            case ("over_cap",):
                assert self.grow(EXPOSURE_CAP_SAT)
            case ("unasked_final",):
                assert self.hand_over(len(self.accepted) + 1, self.wallet.sign(FLOOR_SAT), is_final=True)
            case ("deliver", int(percent)):
                stall.deliver(max(0, stall.session(self.session).account.balance_msat) * percent // 100)
            case ("keysend", int(amount_msat)):
                self.payments += 1
                stall.pay(self.session, self.payments, amount_msat)
            case ("close",):
                stall.close_session(self.session)
            case ("stop",):
                stall.app.sessions.post(self.session, OperatorStopped())
            case ("final", str(how)):
                self.final = how
            case ("rival", str(which), bool(mined)):
                self.rival(which, mined)
            case ("drop",):
                for txid in [*chain.mempool]:
                    chain.drop(txid)
            case ("mine", bool(full)):
                chain.mine(None if full else [])
                stall.time_s += 600
            case ("reorg", int(depth), bool(full)):
                chain.reorg(depth, None if full else [])
            case ("away", bool(away)):
                chain.away = away
            case ("node", bool(gone)):
                stall.funds.gone = gone
            case ("wait", int(seconds)):
                stall.time_s += seconds
            case ("look",):
                self.look()
            case ("work",):
                stall.still.work()
            case ("retry",):
                stall.app.refunds.retry()
            case ("save",):
                stall.app.sessions.save_changed()
            case ("kill",):
                stall.kill()
            case ("kill_in", int(calls)):
                stall.tripwire.left = calls

    def look(self) -> None:
        """A look that is not disturbed opens the relay and remembers the cable where money is at risk."""
        stall, chain, ledger = self.stall, self.stall.chain, self.stall.ledger
        before = stall.aggregate(self.session)
        newest, final = ledger.newest_version(self.session), ledger.final_version(self.session)
        stall.time_s += 10
        if not stall.look() or newest is None:
            return
        outpoints = [item.outpoint for item in before.inputs]
        spenders = [tx for tx in chain.mempool.values() if tx.outpoints & set(outpoints)]
        spenders += [tx for outpoint in outpoints for tx in chain.spenders(outpoint)]
        spenders = [tx for tx in spenders if tx.txid not in chain.sent]
        if before.status is AggregateStatus.OPEN and any(tx for tx in spenders):
            assert not stall.is_live(self.session)
            agreed = {newest.txid, final.txid if final else ""}
            if any(tx.txid not in agreed for tx in spenders) and not self.is_paid_by(spenders):
                self.check_refused()
        if before.status is AggregateStatus.SENT:
            chosen = ledger.version(self.session, before.chosen_number or 0)
            assert chosen is not None
            rivals = [tx for tx in spenders if tx.paid_to(before.script) < chosen.value_sat]
            if rivals and not all(self.is_paid_by([tx]) for tx in rivals):
                self.check_refused()

    def is_paid_by(self, txs: Sequence[Tx]) -> bool:
        """Whether these pay what the session owes on the chain."""
        value_sat = sum(tx.paid_to(self.wallet.script) for tx in txs)
        session = self.stall.session(self.session)
        owed_msat = session.account.charged_msat - self.stall.ledger.credited_msat(self.session)
        return value_sat > 0 and value_sat * MSAT_PER_SAT >= owed_msat

    def check_refused(self) -> None:
        stall = self.stall
        assert not stall.is_live(self.session)
        assert not any(hardware.closed for hardware in stall.hardware.values())
        assert stall.ledger.refused_cable(CABLE)
        assert all(stall.ledger.refused_input(item.outpoint) for item in stall.aggregate(self.session).inputs)

    # What holds at every moment.

    def check(self) -> None:
        stall = self.stall
        session, aggregate = stall.session(self.session), stall.aggregate(self.session)
        newest = stall.ledger.newest_version(self.session)
        assert stall.hardware["A1"].closed == (session.state is State.DELIVERING)
        if aggregate.chosen_number is not None:
            assert self.chosen in (None, aggregate.chosen_number)
            self.chosen = aggregate.chosen_number
            assert not session.state.is_live, "it could deliver for a payment that grows no more"
        onchain_msat = newest.value_sat * MSAT_PER_SAT if newest else 0
        if stall.app.sessions.is_served(self.session):
            assert session.account.onchain_msat == onchain_msat
        assert session.account.credited_msat == onchain_msat + stall.ledger.credited_msat(self.session)
        assert onchain_msat <= EXPOSURE_CAP_SAT * MSAT_PER_SAT
        assert aggregate.lost_msat <= onchain_msat

    def check_broadcast(self, tx: Tx) -> None:
        """Nothing is sent that was not chosen before."""
        aggregate = self.stall.aggregate(self.session)
        chosen = self.stall.ledger.version(self.session, aggregate.chosen_number or 0)
        assert aggregate.status is AggregateStatus.SENT
        assert chosen is not None
        assert chosen.txid == tx.txid

    def check_refund(self) -> None:
        """Nothing goes back by Lightning while the chain may take it away."""
        aggregate = self.stall.aggregate(self.session)
        if self.stall.ledger.newest_version(self.session) is not None:
            assert not aggregate.status.is_live

    # The end.

    def settle(self) -> None:
        """No more surprises: the cable says that it is done, and the chain grows until all is final."""
        stall = self.stall
        stall.tripwire.left = None
        stall.chain.away = stall.funds.gone = False
        for _ in range(4 * CONFIRMATIONS + 20):
            stall.close_session(self.session)
            stall.work()
            stall.time_s += 60
            assert stall.look(), stall.trouble
            self.check()
            stall.app.refunds.retry()
            if stall.is_over(self.session) and not stall.aggregate(self.session).status.is_live:
                break
            stall.chain.mine()
        assert stall.is_over(self.session)
        assert not stall.ledger.unfinished_aggregates()
        assert not stall.ledger.owed_refunds()
        assert stall.ledger.exposure_sat() == 0

    def check_end(self) -> None:
        stall = self.stall
        session, aggregate = stall.saved(self.session), stall.aggregate(self.session)
        spenders = {tx.txid: tx for outpoint in self.wallet.inputs for tx in stall.chain.spenders(outpoint)}
        onchain_msat = stall.ledger.onchain_credited_msat(self.session)
        agreed_msat = onchain_msat - session.returned_msat
        assert session.account.credited_msat == onchain_msat + stall.ledger.credited_msat(self.session)
        if aggregate.status is AggregateStatus.VOID:
            assert agreed_msat == aggregate.lost_msat == 0
            assert not stall.chain.sent
        else:
            assert spenders
            assert aggregate.mined_txid in spenders
            mined = spenders[aggregate.mined_txid or ""]
            assert aggregate.mined_value_sat == mined.paid_to(aggregate.script)
            # Two inputs may end in two transactions, but not two of ours.
            assert len(set(spenders) - self.rivals) <= 1
            mined_msat = aggregate.mined_value_sat * MSAT_PER_SAT
            if mined.txid in self.rivals:
                assert agreed_msat - aggregate.lost_msat <= mined_msat
                assert aggregate.lost_msat == max(0, agreed_msat - mined_msat)
            else:
                assert (agreed_msat, aggregate.lost_msat) == (mined_msat, 0)
        mined_msat = aggregate.mined_value_sat * MSAT_PER_SAT
        owed_msat = session.account.charged_msat - stall.ledger.credited_msat(self.session)
        is_lost = aggregate.lost_msat > 0 and (mined_msat == 0 or mined_msat < owed_msat)
        assert (aggregate.status is AggregateStatus.LOST) == is_lost
        shown_msat = lost_msat(aggregate.lost_msat, session.account.balance_msat)
        if aggregate.lost_msat and not session.account.refunded_msat - session.returned_msat:
            assert shown_msat == max(0, owed_msat - mined_msat)
        assert shown_msat == 0 or is_lost
        if is_lost:
            self.check_refused()
        assert stall.app.older_copy.noticed_at is None, "no restart is an older copy"
        if not self.rivals:
            assert stall.ledger.refused_cable(CABLE) is None
        by_lightning_msat = sum(amount_msat for _, amount_msat in stall.wallet.sends)
        account = session.account
        refunded_msat = account.refunded_msat - session.returned_msat
        orphans_msat = sum(orphan.amount_msat for orphan in stall.ledger.orphans())
        assert refunded_msat <= by_lightning_msat <= refunded_msat + orphans_msat
        if refunded_msat:
            assert account.balance_msat >= aggregate.lost_msat
        if stall.ledger.refused_cable(CABLE) is not None:
            other = stall.open(2, "A2")
            with pytest.raises(VersionRefused, match="takes nothing"):
                stall.invite(other)


@contextmanager
def world(coins: tuple[int, ...] = (100_000,), min_refund_msat: int = 100) -> Iterator[World]:
    with TemporaryDirectory() as folder, StillStall(Path(folder) / "socket.sqlite3") as stall:
        stall.terms = replace(stall.terms, min_refund_msat=min_refund_msat)
        session = stall.open()
        invitation = stall.invite(session)
        made = World(stall, session, Wallet.of(stall.chain, invitation.script, *coins, fee_sat=FEE_SAT))
        stall.hears = made.answer
        stall.chain.before_broadcast = made.check_broadcast
        stall.wallet.before_send = made.check_refund
        yield made


def run(made: World, history: list[Act]) -> None:
    for act in history:
        made.stall.happen(lambda act=act: made.happen(act))  # type: ignore[misc]
        with made.stall.tripwire.untouched():
            made.check()
    made.settle()
    made.check_end()


grows = st.tuples(st.just("grow"), st.integers(1, CREDIT_CAP_SAT - FLOOR_SAT))
delivers = st.tuples(st.just("deliver"), st.integers(0, 100))
kills = st.just(("kill",)) | st.tuples(st.just("kill_in"), st.integers(0, 60))
ends = st.sampled_from([("close",), ("close",), ("stop",)])
reorgs = st.tuples(st.just("reorg"), st.integers(1, 3), st.booleans())
honest_acts = st.one_of(
    grows,
    delivers,
    kills,
    reorgs,
    st.just(("look",)),
    st.just(("look",)),
    st.just(("work",)),
    st.just(("work",)),
    st.just(("retry",)),
    st.just(("save",)),
    st.tuples(st.just("mine"), st.booleans()),
    st.tuples(st.just("keysend"), st.integers(1, 90_000)),
    st.tuples(st.just("wait"), st.integers(0, 60)),
)
bad_acts = st.one_of(
    st.sampled_from([("smaller",), ("again",), ("other_inputs",), ("over_cap",), ("unasked_final",), ("drop",)]),
    st.tuples(st.just("final"), st.sampled_from(["good", "good", "wrong", "unsigned", "silent", "broadcast"])),
    st.tuples(
        st.just("rival"),
        st.sampled_from(["older", "first", "newest", "made", "double", "cheap", "partial"]),
        st.booleans(),
    ),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("node"), st.booleans()),
    st.tuples(st.just("wait"), st.integers(0, 30_000)),
)
# Most sessions are worth something: without a version and a delivery nothing of this is at stake.
beginnings = st.builds(
    lambda first, percent, rest: [first, ("deliver", percent), *rest],
    grows,
    st.integers(20, 100),
    st.lists(st.one_of(grows, grows, delivers), max_size=5),
)
histories = st.builds(
    lambda beginning, middle, end, rest: [*beginning, *middle, end, *rest],
    beginnings,
    st.lists(st.one_of(honest_acts, bad_acts, ends), max_size=12),
    ends,
    st.lists(st.one_of(honest_acts, bad_acts), max_size=12),
)
honest_histories = st.builds(
    lambda beginning, middle, end, rest: [*beginning, *middle, end, *rest],
    beginnings,
    st.lists(honest_acts, max_size=10),
    ends,
    st.lists(honest_acts, max_size=10),
)

LOST_BEFORE_THE_REFUND: list[Act] = [
    ("grow", 1),
    ("deliver", 20),
    ("grow", 2),
    ("rival", "older", True),
    ("look",),
    *[("mine", True), ("look",)] * (CONFIRMATIONS + 1),
    ("close",),
]
"""The loss is final on the chain before the settlement has come to the refund."""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example((100_000,), LOST_BEFORE_THE_REFUND)
@given(st.sampled_from([(100_000,), (60_000, 60_000)]), histories)
def test_in_the_end_the_ledger_equals_the_chain(coins: tuple[int, ...], history: list[Act]) -> None:
    with world(coins) as made:
        run(made, history)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([(100_000,), (60_000, 60_000)]), histories)
def test_the_same_of_longer_trying(coins: tuple[int, ...], history: list[Act]) -> None:
    with world(coins) as made:
        run(made, history)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(honest_histories, st.sampled_from([100, 20_000, 10_000_000]))
def test_an_honest_cable_pays_exactly_what_it_owes_and_is_never_refused(
    history: list[Act], min_refund_msat: int
) -> None:
    with world(min_refund_msat=min_refund_msat) as made:
        run(made, history)
        stall = made.stall
        session, aggregate = stall.saved(made.session), stall.aggregate(made.session)
        newest = stall.ledger.newest_version(made.session)
        if newest is None:
            assert aggregate.status is AggregateStatus.VOID
            return
        keysend_msat = stall.ledger.credited_msat(made.session)
        owed_sat = final_value_sat(session.account.charged_msat, keysend_msat, FLOOR_SAT)
        assert aggregate.mined_value_sat == min(owed_sat, newest.value_sat)
        assert aggregate.lost_msat == 0
        assert stall.ledger.refused_cable(CABLE) is None
