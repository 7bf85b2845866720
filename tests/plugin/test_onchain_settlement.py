"""The end of a session that is paid on the chain: which version is broadcast, what goes back, what the receipt and the
operator's view say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyln.client import RpcException

from tests.plugin.fake_chain import psbt_of
from tests.plugin.fakes import CABLE, Stall, node_id, wait_until
from tests.plugin.still_stall import (
    CONFIRMATIONS,
    FLOOR_SAT,
    Killed,
    StillStall,
    Wallet,
    onchain_settings,
)
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus
from wattline.core.bitcoin.chain import Tx
from wattline.core.lightning.node import sign, signed_text
from wattline.core.session.event import CableLost, Tick
from wattline.core.session.state import RefundStatus, State, StopReason
from wattline.plugin.report import Report
from wattline.plugin.rpc import add_methods
from wattline.plugin.streams import Refused, Stream
from wattline.v1 import charging_pb2 as pb

VALUE_SAT = 3000
LOSSES = [("older", 500, 100), ("older", 500, 2_200_000), ("double", VALUE_SAT + 500, 100)]
"""What the cable has mined instead, what that lacks, and below what no refund is sent: of 2 500 000 msat that were not
used, 2 000 000 are left after the first loss."""


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        yield stall


@pytest.fixture
def session(stall: StillStall) -> str:
    return stall.open()


@pytest.fixture
def wallet(stall: StillStall, session: str) -> Wallet:
    """Of a cable that has handed over VALUE_SAT and used nothing yet."""
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    assert stall.hand_over(session, 1, wallet.sign(VALUE_SAT)) == ""
    return wallet


class Signing:
    """A cable that answers FinalDue."""

    def __init__(self, stall: StillStall, wallet: Wallet, answer: Callable[[Wallet, int], Tx | None]) -> None:
        self.asked: list[pb.FinalDue] = []
        self.codes: list[str] = []
        self._stall, self._wallet, self._answer = stall, wallet, answer
        stall.hears = self.hear

    def hear(self, session: str, message: pb.ChargeResponse) -> None:
        self.asked.append(message.final_due)
        tx = self._answer(self._wallet, message.final_due.value_sat)
        if tx is not None:
            self.codes.append(self._stall.hand_over(session, 2, tx, is_final=True))


def honest(stall: StillStall, wallet: Wallet) -> Signing:
    return Signing(stall, wallet, lambda wallet, due_sat: wallet.sign(due_sat))


def silent(stall: StillStall, wallet: Wallet) -> Signing:
    return Signing(stall, wallet, lambda wallet, due_sat: None)


def receipt(stall: StillStall, session: str) -> pb.Receipt:
    saved = stall.ledger.receipt(session)
    assert saved is not None
    return pb.Receipt.FromString(saved.content)


# The final version.


def test_the_cable_is_asked_for_exactly_what_it_owes_and_that_is_mined(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    cable = honest(stall, wallet)
    stall.deliver(1_234_567)
    stall.finish(session)
    (due,) = cable.asked
    assert (due.value_sat, due.charged_msat, due.keysend_msat) == (1235, 1_234_567, 0)
    assert cable.codes == [""]
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.choice_reason) == (AggregateStatus.SETTLED, "final")
    assert (aggregate.mined_value_sat, aggregate.mined_txid) == (1235, wallet.versions[1].txid)
    assert stall.saved(session).returned_msat == (VALUE_SAT - 1235) * MSAT_PER_SAT
    assert stall.saved(session).refund_status is RefundStatus.KEPT, "less than a sat is left"
    assert not stall.wallet.sends
    said = receipt(stall, session)
    assert (said.onchain_txid, said.onchain_value_sat) == (wallet.versions[1].txid, 1235)
    assert (said.onchain_credited_msat, said.returned_msat) == (3_000_000, 1_765_000)


@pytest.mark.parametrize(("delivered_msat", "taken_sat"), [(2_995_000, 2995), (1_500_000, 1500), (0, 0)])
def test_what_need_never_be_taken_is_given_back_however_little_a_refund_is_worth(
    stall: StillStall, delivered_msat: int, taken_sat: int
) -> None:
    stall.terms = replace(stall.terms, min_refund_msat=5_000_000)
    session = stall.open()
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    assert stall.hand_over(session, 1, wallet.sign(VALUE_SAT)) == ""
    honest(stall, wallet)
    if delivered_msat:
        stall.deliver(delivered_msat)
    stall.finish(session)
    aggregate, saved = stall.aggregate(session), stall.saved(session)
    assert aggregate.mined_value_sat == taken_sat
    assert (saved.returned_msat, saved.account.balance_msat) == ((VALUE_SAT - taken_sat) * MSAT_PER_SAT, 0)
    assert aggregate.status is (AggregateStatus.SETTLED if taken_sat else AggregateStatus.VOID)
    assert not stall.wallet.sends


def test_what_is_owed_below_the_floor_is_asked_for_as_the_floor(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    cable = honest(stall, wallet)
    stall.deliver(5000)
    stall.finish(session)
    assert [due.value_sat for due in cable.asked] == [FLOOR_SAT]
    assert stall.aggregate(session).mined_value_sat == FLOOR_SAT
    unused_msat = (FLOOR_SAT - 5) * MSAT_PER_SAT
    assert [amount_msat for _, amount_msat in stall.wallet.sends] == [unused_msat]
    assert stall.saved(session).account.balance_msat == 0


def test_when_nothing_was_used_nothing_is_broadcast_and_all_of_it_is_given_back(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    cable = honest(stall, wallet)
    stall.finish(session)
    assert not cable.asked
    assert not stall.chain.sent
    assert stall.aggregate(session).status is AggregateStatus.VOID
    assert stall.saved(session).account.balance_msat == 0
    assert receipt(stall, session).onchain_txid == ""
    assert not stall.wallet.sends


def test_when_everything_was_used_nobody_is_asked_and_the_newest_is_mined(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    cable = honest(stall, wallet)
    stall.deliver(VALUE_SAT * MSAT_PER_SAT - 300)
    stall.finish(session)
    assert not cable.asked
    assert stall.aggregate(session).mined_value_sat == VALUE_SAT
    assert stall.saved(session).returned_msat == 0


def test_a_session_without_a_version_ends_without_a_transaction(stall: StillStall, session: str) -> None:
    stall.invite(session)
    stall.finish(session)
    assert stall.aggregate(session).status is AggregateStatus.VOID
    assert not stall.chain.sent


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (lambda wallet, due_sat: None, []),
        (lambda wallet, due_sat: wallet.sign(due_sat - 1), ["wrong_output"]),
        (lambda wallet, due_sat: wallet.sign(due_sat + 1), ["wrong_output"]),
        (lambda wallet, due_sat: wallet.sign(due_sat, signed=False), ["not_signed"]),
        (lambda wallet, due_sat: wallet.sign(due_sat, valid=False), ["not_signed"]),
        (lambda wallet, due_sat: wallet.sign(due_sat, locktime=9), ["bad_locktime"]),
    ],
)
def test_without_the_right_final_version_the_newest_is_mined_and_the_rest_goes_back_by_lightning(
    stall: StillStall, session: str, wallet: Wallet, answer: Callable[[Wallet, int], Tx | None], codes: list[str]
) -> None:
    cable = Signing(stall, wallet, answer)
    stall.deliver(1_200_000)
    stall.close_session(session)
    stall.work()
    stall.look()
    assert set(cable.codes) == set(codes)
    assert (stall.saved(session).state, stall.saved(session).refund_status) == (State.CLOSED, RefundStatus.OWED)
    stall.mine(CONFIRMATIONS - 1)
    stall.app.refunds.retry()
    assert not stall.wallet.sends, "nothing goes back before the chain has paid for it"
    stall.mine()
    stall.app.refunds.retry()
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.mined_value_sat) == (AggregateStatus.SETTLED, VALUE_SAT)
    assert stall.wallet.sends == [(CABLE, 1_800_000)]
    assert stall.saved(session).refund_status is RefundStatus.SENT


def test_after_the_decision_no_final_version_is_taken(stall: StillStall, session: str, wallet: Wallet) -> None:
    silent(stall, wallet)
    stall.deliver(1_000_000)
    stall.close_session(session)
    stall.work()
    assert stall.hand_over(session, 2, wallet.sign(1000), is_final=True) == "session_closed"
    assert stall.ledger.final_version(session) is None


def test_the_final_version_told_again_is_accepted_again(stall: StillStall, session: str, wallet: Wallet) -> None:
    honest(stall, wallet)
    stall.deliver(1_000_000)
    stall.close_session(session)
    stall.work()
    assert stall.hand_over(session, 2, wallet.versions[1], is_final=True) == ""


def test_a_cable_that_was_lost_is_not_waited_for(stall: StillStall, session: str, wallet: Wallet) -> None:
    object.__setattr__(stall.settings, "final_timeout_s", 3600)
    cable = silent(stall, wallet)
    stall.deliver(1_500_000)
    stall.app.sessions.post(session, CableLost())
    stall.app.sessions.save_changed()
    live = stall.session(session)
    stall.app.outlets["A1"].view = _lost_long_ago(stall.app.outlets["A1"].view, live.terms.cable_lost_s)
    stall.app.sessions.post(session, Tick())
    assert stall.session(session).stop_reason is StopReason.CABLE_LOST
    stall.work()
    assert stall.is_over(session)
    assert len(cable.asked) == 1
    assert stall.aggregate(session).choice_reason == StopReason.CABLE_LOST


def _lost_long_ago(view: Any, cable_lost_s: int) -> Any:
    since_ms = view.session.cable_lost_since_ms - cable_lost_s * 1000
    return replace(view, session=replace(view.session, cable_lost_since_ms=since_ms))


def test_keysend_pays_first_and_the_chain_the_rest(stall: StillStall, session: str, wallet: Wallet) -> None:
    cable = honest(stall, wallet)
    assert stall.pay(session, 1, 90_000)
    stall.deliver(1_500_000)
    stall.finish(session)
    (due,) = cable.asked
    assert (due.value_sat, due.keysend_msat) == (1410, 90_000)
    assert stall.aggregate(session).mined_value_sat == 1410
    assert stall.saved(session).account.credited_msat == 3_090_000


def test_what_keysend_paid_too_much_goes_back_by_lightning_at_once_when_the_chain_owes_nothing(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    honest(stall, wallet)
    assert stall.pay(session, 1, 90_000)
    stall.deliver(50_000)
    stall.close_session(session)
    stall.work()
    assert stall.aggregate(session).status is AggregateStatus.VOID
    assert stall.wallet.sends == [(CABLE, 40_000)]
    assert stall.saved(session).account.balance_msat == 0


def test_a_loss_is_taken_out_of_what_goes_back_by_lightning(stall: StillStall, session: str, wallet: Wallet) -> None:
    silent(stall, wallet)
    assert stall.hand_over(session, 2, wallet.sign(VALUE_SAT + 500)) == ""
    stall.deliver(1_000_000)
    stall.close_session(session)
    stall.work()
    stall.chain.mine([wallet.versions[0]])
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).lost_msat == 500_000
    stall.app.refunds.retry()
    assert stall.wallet.sends == [(CABLE, 2_000_000)]
    saved = stall.saved(session)
    assert saved.account.balance_msat == 500_000, "which is what was lost"


@pytest.mark.parametrize("is_decided_first", [False, True])
@pytest.mark.parametrize(("spent", "lost_sat", "min_refund_msat"), LOSSES)
def test_a_loss_is_taken_out_of_the_refund_whether_it_is_final_before_that_is_decided_or_after(
    stall: StillStall, spent: str, lost_sat: int, min_refund_msat: int, is_decided_first: bool
) -> None:
    """Before, as when the node is away, or the machine off, for an hour after the fraud was seen."""
    stall.terms = replace(stall.terms, min_refund_msat=min_refund_msat)
    session = stall.open()
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    for number, value_sat in enumerate((VALUE_SAT, VALUE_SAT + 500), start=1):
        assert stall.hand_over(session, number, wallet.sign(value_sat)) == ""
    stall.deliver(1_000_000)
    stall.chain.mine([wallet.versions[0] if spent == "older" else wallet.double_spend(1000)])
    stall.look()
    if is_decided_first:
        stall.work()
    stall.mine(CONFIRMATIONS)
    is_paid = spent == "older"
    assert stall.aggregate(session).status is (AggregateStatus.SETTLED if is_paid else AggregateStatus.LOST)
    assert stall.aggregate(session).lost_msat == lost_sat * MSAT_PER_SAT
    assert not stall.wallet.sends
    stall.work()
    stall.app.refunds.retry()
    unused_msat = (VALUE_SAT + 500) * MSAT_PER_SAT - 1_000_000
    left_msat = unused_msat - lost_sat * MSAT_PER_SAT
    if left_msat < min_refund_msat:
        left_msat = 0
    assert stall.wallet.sends == ([(CABLE, left_msat)] if left_msat else [])
    saved = stall.saved(session)
    assert saved.refund_status is (RefundStatus.SENT if left_msat else RefundStatus.KEPT)
    assert saved.account.balance_msat == unused_msat - left_msat


def test_what_was_given_back_is_not_seized(stall: StillStall, session: str, wallet: Wallet) -> None:
    """A look at the chain that began before nothing was found to be owed."""
    stall.ledger.void(session, "nothing is owed", 1)
    assert stall.watch.decision.seize(session, StopReason.DOUBLE_SPENT) is None
    assert stall.aggregate(session).status is AggregateStatus.VOID


def test_a_loss_counts_also_when_nothing_is_taken_on_the_chain_any_more(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    silent(stall, wallet)
    stall.deliver(1_000_000)
    stall.close_session(session)
    stall.work()
    assert stall.app.refunds.waits_for_chain(session)
    stall.chain.mine([wallet.double_spend(1000)])
    stall.mine(CONFIRMATIONS)
    assert not stall.app.refunds.waits_for_chain(session)
    assert not stall.app.refunds.waits_for_chain("no such session")
    stall.settings = onchain_settings(enabled=False)
    stall.boot()
    stall.app.refunds.retry()
    assert stall.wallet.sends == []


# Restarts.


@pytest.mark.parametrize("calls", range(0, 90, 3))
def test_a_kill_anywhere_in_the_end_changes_nothing_about_it(
    stall: StillStall, session: str, wallet: Wallet, calls: int
) -> None:
    honest(stall, wallet)
    stall.deliver(1_500_000)
    stall.app.sessions.save_changed()
    stall.close_session(session)
    stall.tripwire.left = calls
    try:
        stall.work()
    except Killed:
        stall.boot()
    stall.tripwire.left = None
    stall.finish(session)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.choice_reason, aggregate.mined_value_sat) == (
        AggregateStatus.SETTLED,
        "final",
        1500,
    )
    assert stall.saved(session).account.balance_msat == 0


def test_a_session_that_closed_before_the_choice_was_written_is_concluded(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.deliver(VALUE_SAT * MSAT_PER_SAT)
    stall.close_session(session)
    stall.still.work()
    assert stall.session(session).state is State.CLOSED
    stall.app.sessions.save_changed()
    assert stall.aggregate(session).status is AggregateStatus.OPEN
    stall.kill()
    assert stall.saved(session).state is State.CLOSED
    stall.chain.away = True
    assert not stall.look()
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.chosen_number) == (AggregateStatus.SENT, 1), "that needs no bitcoind"
    stall.chain.away = False
    stall.look()
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).status is AggregateStatus.SETTLED


def test_a_double_spend_seen_while_the_final_version_is_awaited_takes_the_newest(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    def cheat(wallet: Wallet, due_sat: int) -> Tx | None:
        stall.chain.offer(wallet.double_spend(1000))
        stall.look()
        return wallet.sign(due_sat)

    cable = Signing(stall, wallet, cheat)
    stall.deliver(1_500_000)
    stall.finish(session)
    assert cable.codes == ["input_spent"]
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.chosen_number) == (AggregateStatus.LOST, 1)
    assert aggregate.lost_msat == VALUE_SAT * MSAT_PER_SAT
    assert stall.saved(session).returned_msat == 0
    assert not stall.wallet.sends


def test_a_double_spend_after_the_final_version_was_taken_costs_what_was_agreed_and_no_more(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    honest(stall, wallet)
    stall.deliver(1_500_000)
    stall.close_session(session)
    stall.work()
    stall.chain.mine([wallet.double_spend(1000)])
    stall.look()
    stall.mine(CONFIRMATIONS)
    assert stall.aggregate(session).lost_msat == 1_500_000
    assert stall.ledger.refused_cable(CABLE) == StopReason.DOUBLE_SPENT


def test_an_honest_cable_that_broadcasts_the_final_version_itself_is_no_cheat(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    def eager(wallet: Wallet, due_sat: int) -> Tx | None:
        tx = wallet.sign(due_sat)
        assert stall.hand_over(session, 2, tx, is_final=True) == ""
        stall.chain.offer(tx)
        stall.look()
        return None

    Signing(stall, wallet, eager)
    stall.deliver(1_500_000)
    stall.finish(session)
    aggregate = stall.aggregate(session)
    assert (aggregate.status, aggregate.choice_reason, aggregate.lost_msat) == (AggregateStatus.SETTLED, "final", 0)
    assert stall.ledger.refused_cable(CABLE) is None


# What the operator sees.


def report(stall: StillStall) -> Report:
    return stall.app.report


def test_the_operator_sees_the_aggregate_from_its_first_version_to_its_confirmations(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    (seen,) = report(stall).sessions(session, 1)
    onchain = seen["onchain"]
    assert (onchain["status"], onchain["increments"], onchain["exposure_sat"]) == ("open", 1, VALUE_SAT)
    assert (onchain["txid"], onchain["confirmations"]) == (wallet.versions[0].txid, 0)
    assert (seen["onchain_credited_msat"], seen["lost_msat"]) == (VALUE_SAT * MSAT_PER_SAT, 0)
    honest(stall, wallet)
    stall.deliver(1_500_000)
    stall.close_session(session)
    stall.work()
    stall.look()
    stall.mine(2)
    (seen,) = report(stall).sessions(session, 1)
    onchain = seen["onchain"]
    assert (onchain["status"], onchain["choice_reason"], onchain["confirmations"]) == ("sent", "final", 2)
    assert (onchain["txid"], onchain["value_sat"], onchain["fee_sat"], onchain["vsize"]) == (
        wallet.versions[1].txid,
        1500,
        200,
        154,
    )
    assert (onchain["mined_value_sat"], onchain["exposure_sat"]) == (1500, 0)
    assert seen["returned_msat"] == 1_500_000
    status = report(stall).status()["onchain"]
    assert (status["enabled"], status["trouble"], status["unfinished"], status["exposure_sat"]) == (True, None, 1, 0)
    assert status["blockheight"] == stall.chain.blocks[-1].height


def test_a_session_without_an_aggregate_shows_none(stall: StillStall, session: str) -> None:
    (seen,) = report(stall).sessions(session, 1)
    assert "onchain" not in seen


def test_losses_stand_in_the_totals(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.chain.mine([wallet.double_spend(1000)])
    stall.look()
    stall.work()
    stall.mine(CONFIRMATIONS)
    totals = report(stall).totals(0, 2**40)
    assert totals["onchain_credited_msat"] == totals["missing_msat"] == VALUE_SAT * MSAT_PER_SAT
    assert totals["lost_msat"] == 0, "nothing was delivered for it"


def test_what_is_called_lost_was_delivered_and_not_paid_for(stall: StillStall) -> None:
    """9,000 sat credited, 1,001 sat charged, 2,000 sat came: 7,000 sat did not come, and nothing is lost."""
    object.__setattr__(stall.settings, "credit_cap_sat", 9000)
    for number, (came_sat, lost_sat) in enumerate([(2000, 0), (1000, 1)], start=1):
        session = stall.open(number, f"A{number}", node_id(number + 10))
        wallet = Wallet.of(stall.chain, stall.invite(session, node_id(number + 10)).script)
        assert stall.hand_over(session, 1, wallet.sign(came_sat)) == ""
        assert stall.hand_over(session, 2, wallet.sign(9000)) == ""
        stall.look()
        stall.deliver(1_001_000, f"A{number}")
        stall.chain.mine([wallet.versions[0]])
        stall.look()
        stall.work()
        stall.mine(CONFIRMATIONS)
        (shown,) = report(stall).sessions(session, 1)
        assert (shown["charged_msat"], shown["onchain"]["mined_value_sat"]) == (1_001_000, came_sat)
        assert (shown["missing_msat"], shown["lost_msat"]) == ((9000 - came_sat) * 1000, lost_sat * 1000)
        assert shown["onchain"]["status"] == ("lost" if lost_sat else "settled")
        assert (stall.ledger.refused_cable(node_id(number + 10)) is not None) is bool(lost_sat)
    totals = report(stall).totals(0, 2**40)
    assert (totals["missing_msat"], totals["lost_msat"]) == (15_000_000, 1_000)


class Methods:
    """lightningd's side of the RPC methods."""

    def __init__(self, report: Report) -> None:
        self.app, self.report = self, report
        self.methods: dict[str, Callable[..., None]] = {}
        add_methods(self, self)  # type: ignore[arg-type]

    def add_method(self, name: str, method: Callable[..., None], **_: object) -> None:
        self.methods[name] = method

    def call(self, name: str, **arguments: object) -> Any:
        answers: list[Any] = []

        class Request:
            set_result = staticmethod(answers.append)
            set_exception = staticmethod(answers.append)

        self.methods[name](Request(), **arguments)
        wait_until(lambda: bool(answers))
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]


def test_the_operator_sees_who_is_refused_and_may_forgive(stall: StillStall, session: str, wallet: Wallet) -> None:
    methods = Methods(report(stall))
    assert methods.call("wattline-refused") == {"refused": []}
    stall.chain.offer(wallet.double_spend(1000))
    stall.look()
    (refused,) = methods.call("wattline-refused")["refused"]
    assert refused == {
        "cable_node_id": CABLE,
        "reason": "double_spent",
        "session_id": session,
        "at": stall.time_s,
    }
    assert report(stall).status()["onchain"]["refused_cables"] == 1
    assert methods.call("wattline-refused", forgive=CABLE) == {"refused": []}
    assert stall.invite(stall.open(2, "A2")).address
    with pytest.raises(RpcException, match="not refused"):
        methods.call("wattline-refused", forgive=CABLE)


# Through the reception, with threads.


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Stall]:
    with Stall(tmp_path, takes_onchain=True) as stall:
        yield stall


def signed_open(stall: Stall, token: bytes = bytes(32)) -> pb.Open:
    request = stall.request(token, method=pb.METHOD_ONCHAIN)
    content = request.SerializeToString(deterministic=True)
    request.signature = f"{CABLE} says {signed_text('open', content)}"
    return request


def heard(stream: Stream, what: str) -> Any:
    """The next message of that kind."""
    return next(getattr(message, what) for message in stream if message.HasField(what))  # type: ignore[arg-type]


def invited(stall: Stall) -> tuple[str, Stream, Wallet]:
    stream = stall.app.requests.open(signed_open(stall))
    session = heard(stream, "opened").session_id
    aggregate = stall.ask_for_address(session)
    assert heard(stream, "onchain_invitation").script == aggregate.script
    return session, stream, Wallet.of(stall.chain, aggregate.script)


def test_the_offer_names_the_method_and_its_rules(shop: Stall) -> None:
    offer = pb.Offer.FromString(shop.app.requests.offer(bytes(16)).offer)
    assert list(offer.methods) == [pb.METHOD_KEYSEND, pb.METHOD_ONCHAIN]
    assert (offer.onchain.floor_sat, offer.onchain.exposure_cap_sat) == (546, 10_000)


def test_an_open_that_pays_on_the_chain_must_be_signed(shop: Stall) -> None:
    with pytest.raises(Refused) as refused:
        shop.app.requests.open(shop.request(method=pb.METHOD_ONCHAIN))
    assert refused.value.code == "not_allowed"


def test_a_cable_hands_over_is_credited_and_pays_exactly_what_it_owes(shop: Stall) -> None:
    session, stream, wallet = invited(shop)
    first = wallet.sign(1000)
    shop.hand_over(session, 1, first)
    accepted = heard(stream, "version_accepted")
    assert (accepted.number, accepted.value_sat) == (1, 1000)
    shop.hand_over(session, 2, wallet.sign(900))
    refused = heard(stream, "version_refused")
    assert (refused.number, refused.code) == (2, "value_not_larger")
    wait_until(lambda: shop.session.state is State.DELIVERING)
    shop.hardware.energy_uwh += 2_500_000_000  # 2.5 kWh at 300 sat each
    wait_until(lambda: shop.session.account.charged_msat == 750_000)
    shop.app.requests.close(session, "done")
    due = heard(stream, "final_due")
    assert due.value_sat == 750
    final = wallet.sign(due.value_sat)
    with ThreadPoolExecutor(1) as pool:
        version = pb.AggregateVersion(number=2, psbt=psbt_of(final), is_final=True)
        pool.submit(shop.app.requests.aggregate_version, session, version).result(5)
        signed = heard(stream, "receipt")
    said = pb.Receipt.FromString(signed.receipt)
    assert (said.onchain_txid, said.onchain_value_sat, said.balance_msat) == (final.txid, 750, 0)
    assert signed.signature == sign(shop.signer, "receipt", signed.receipt)
    wait_until(lambda: final.txid in shop.chain.mempool)
    shop.chain.mine()
    wait_until(lambda: not shop.ledger.unfinished_aggregates())
    aggregate = shop.ledger.aggregate(session)
    assert aggregate is not None
    assert (aggregate.status, aggregate.mined_value_sat) == (AggregateStatus.SETTLED, 750)


def test_a_double_spend_opens_the_relay_within_moments_and_closes_the_door(shop: Stall) -> None:
    session, stream, wallet = invited(shop)
    shop.hand_over(session, 1, wallet.sign(1000))
    wait_until(lambda: shop.hardware.closed)
    shop.chain.offer(wallet.double_spend(1000))
    wait_until(lambda: not shop.hardware.closed)
    said = pb.Receipt.FromString(heard(stream, "receipt").receipt)
    assert said.stop_reason == "double_spent"
    wait_until(lambda: shop.is_over(session))
    with pytest.raises(Refused) as refused:
        shop.app.requests.open(signed_open(shop, b"2" * 32))
    assert refused.value.code == "cable_refused"


def test_a_socket_without_the_method_says_so(tmp_path: Path) -> None:
    with Stall(tmp_path) as shop:
        stream = shop.app.requests.open(shop.request())
        session = heard(stream, "opened").session_id
        shop.app.requests.onchain_request(session, pb.OnchainRequest(signature="any"))
        assert heard(stream, "version_refused").code == "onchain_unavailable"
        shop.app.requests.aggregate_version(session, pb.AggregateVersion(number=1))
        assert heard(stream, "version_refused").code == "onchain_unavailable"
