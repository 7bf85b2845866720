"""The desk where versions are handed over: what is refused and why, and that credit is stored before it counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.plugin.fake_chain import COIN_SCRIPT, script_of
from tests.plugin.fakes import CABLE, node_id
from tests.plugin.still_stall import (
    CREDIT_CAP_SAT,
    EXPOSURE_CAP_SAT,
    FLOOR_SAT,
    Killed,
    StillStall,
    Wallet,
    onchain_settings,
)
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus, Version, VersionRefused
from wattline.core.bitcoin import address
from wattline.core.bitcoin.chain import Outpoint, Tx, TxOutput
from wattline.core.bitcoin.psbt import MOST_PSBT_BYTES, finalized_psbt
from wattline.core.errors import RetryError
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.node import NodeUnavailable
from wattline.core.session.state import State
from wattline.v1 import charging_pb2 as pb

OTHER_CABLE = node_id(5)


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[StillStall]:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        yield stall


@pytest.fixture
def session(stall: StillStall) -> str:
    return stall.open()


@pytest.fixture
def wallet(stall: StillStall, session: str) -> Wallet:
    return Wallet.of(stall.chain, stall.invite(session).script)


def credited_sat(stall: StillStall, session: str) -> int:
    """What the live session counts; the ledger must say the same."""
    credited_msat = stall.session(session).account.credited_msat
    assert stall.saved(session).account.credited_msat == credited_msat
    return credited_msat // MSAT_PER_SAT


def check_two_at_once(stall: StillStall) -> None:
    """bitcoind gives its verdict on a transaction only when it has been asked for two of them."""
    verdict = stall.chain.verdict
    both = threading.Barrier(2, timeout=5)

    def at_once(raw: str) -> object:
        both.wait()
        return verdict(raw)

    stall.chain.verdict = at_once  # type: ignore[method-assign,assignment]


# The invitation.


def test_a_session_gets_one_address_and_the_rules_however_often_it_asks(stall: StillStall, session: str) -> None:
    first, second = stall.invite(session), stall.invite(session)
    assert first == second
    assert stall.funds.addresses == [first.address]
    assert first.script == address.script_of(first.address, "regtest")
    assert (first.rules.floor_sat, first.rules.exposure_cap_sat) == (FLOOR_SAT, EXPOSURE_CAP_SAT)
    assert (first.newest_number, first.newest_value_sat) == (0, 0)


def test_a_resumed_cable_is_told_which_version_the_socket_holds(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.hand_over(session, 1, wallet.sign(1500))
    stall.kill()
    again = stall.invite(session)
    assert (again.newest_number, again.newest_value_sat) == (1, 1500)


def test_a_session_keeps_the_rules_that_it_was_invited_under(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.settings = onchain_settings(floor_sat=3000)
    stall.kill()
    assert stall.invite(session).rules.floor_sat == FLOOR_SAT
    assert stall.hand_over(session, 1, wallet.sign(FLOOR_SAT)) == ""


@pytest.mark.parametrize("signature", ["", f"{OTHER_CABLE} says so"])
def test_nobody_but_the_sessions_cable_is_invited(stall: StillStall, session: str, signature: str) -> None:
    with pytest.raises(VersionRefused, match="not signed") as refused:
        stall.watch.intake.invite(session, signature)
    assert refused.value.code == "not_invited"
    assert stall.ledger.aggregate(session) is None


def test_an_unknown_session_is_not_invited(stall: StillStall) -> None:
    with pytest.raises(VersionRefused, match="not signed"):
        stall.invite("7" + "Z" * 25)


def test_a_session_that_is_ending_is_not_invited(stall: StillStall, session: str) -> None:
    stall.close_session(session)
    with pytest.raises(VersionRefused) as refused:
        stall.invite(session)
    assert refused.value.code == "session_closed"


def test_nobody_is_invited_while_the_chain_cannot_be_watched(stall: StillStall, session: str) -> None:
    stall.watch.intake.trouble = "bitcoind_unavailable: connection refused"
    with pytest.raises(VersionRefused) as refused:
        stall.invite(session)
    assert refused.value.code == "onchain_unavailable"


def test_no_version_earns_credit_while_the_chain_cannot_be_watched(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    assert stall.hand_over(session, 1, wallet.sign(1500)) == ""
    stall.watch.intake.trouble = "bitcoind_unavailable: still catches up with the chain"
    assert stall.hand_over(session, 2, wallet.sign(1600)) == "onchain_unavailable"
    assert credited_sat(stall, session) == 1500
    assert stall.hand_over(session, 1, wallet.versions[0]) == "", "what it holds it may say again"
    stall.watch.intake.trouble = ""
    assert stall.hand_over(session, 2, wallet.versions[1]) == ""
    assert credited_sat(stall, session) == 1600


def test_no_version_earns_credit_from_a_bitcoind_that_is_behind(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    assert stall.hand_over(session, 1, wallet.sign(1500)) == ""
    lost = stall.chain.blocks.pop()
    assert stall.hand_over(session, 2, wallet.sign(1600)) == "onchain_unavailable"
    assert credited_sat(stall, session) == 1500
    stall.chain.blocks.append(lost)
    assert stall.hand_over(session, 2, wallet.versions[1]) == ""


def test_a_close_waits_for_no_version_whose_check_hangs(stall: StillStall, session: str, wallet: Wallet) -> None:
    assert stall.hand_over(session, 1, wallet.sign(1500)) == ""
    verdict = stall.chain.verdict
    under_way, may_answer = threading.Event(), threading.Event()

    def hangs(raw: str) -> object:
        found = verdict(raw)
        under_way.set()
        assert may_answer.wait(10)
        return found

    stall.chain.verdict = hangs  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(1) as pool:
        handed_over = pool.submit(stall.hand_over, session, 2, wallet.sign(1600))
        assert under_way.wait(5)
        stall.close_session(session)
        stall.work()
        assert stall.saved(session).state is State.CLOSED
        may_answer.set()
        assert handed_over.result(5) == "session_closed"
    newest = stall.ledger.newest_version(session)
    assert newest is not None
    assert newest.number == 1


def test_of_two_versions_handed_over_at_once_one_is_taken(stall: StillStall, session: str, wallet: Wallet) -> None:
    check_two_at_once(stall)
    with ThreadPoolExecutor(2) as pool:
        handed_over = [pool.submit(stall.hand_over, session, 1, wallet.sign(value)) for value in (1500, 1600)]
        assert sorted(each.result(5) for each in handed_over) == ["", "bad_version"]
    newest = stall.ledger.newest_version(session)
    assert newest is not None
    assert credited_sat(stall, session) == newest.value_sat


def test_of_two_sessions_that_promise_one_input_at_once_one_gets_credit(stall: StillStall, session: str) -> None:
    other = stall.open(2, "A2", OTHER_CABLE)
    first = Wallet.of(stall.chain, stall.invite(session).script)
    second = Wallet(stall.chain, first.inputs, stall.invite(other, OTHER_CABLE).script)
    check_two_at_once(stall)
    with ThreadPoolExecutor(2) as pool:
        promised = [
            pool.submit(stall.hand_over, session, 1, first.sign(1500)),
            pool.submit(stall.hand_over, other, 1, second.sign(1500)),
        ]
        assert sorted(each.result(5) for each in promised) == ["", "input_refused"]
    assert credited_sat(stall, session) + credited_sat(stall, other) == 1500


def test_without_the_node_there_is_no_address_and_nothing_is_written(stall: StillStall, session: str) -> None:
    stall.funds.gone = True
    with pytest.raises(NodeUnavailable):
        stall.invite(session)
    assert stall.ledger.aggregate(session) is None


# What is refused.

Broken = Callable[[StillStall, Wallet], Tx]


def unconfirmed(stall: StillStall, wallet: Wallet) -> Tx:
    return wallet.sign(2000, inputs=[stall.chain.fund(100_000, depth=0)])


def spent_in_a_block(stall: StillStall, wallet: Wallet) -> Tx:
    stall.chain.mine([wallet.double_spend(500)])
    return wallet.sign(2000)


def spent_in_the_mempool(stall: StillStall, wallet: Wallet) -> Tx:
    stall.chain.offer(wallet.double_spend(160))
    return wallet.sign(2000)


FIRST: dict[str, tuple[str, Broken]] = {
    "pays a stranger": ("wrong_output", lambda s, w: w.sign(2000, script=script_of("bcrt1pother"))),
    "pays twice": ("wrong_output", lambda s, w: w.sign(2000, change=[(w.script, 97_800)])),
    "has a third output": (
        "wrong_output",
        lambda s, w: w.sign(2000, change=[("51", 90_000), ("52", 7800)]),
    ),
    "has a dust change": ("dust_output", lambda s, w: w.sign(2000, change=[("51", 100)], fee_sat=97_900)),
    "is below the floor": ("dust_output", lambda s, w: w.sign(FLOOR_SAT - 1)),
    "pays too low a fee": ("fee_too_low", lambda s, w: w.sign(2000, fee_sat=150)),
    "pays an absurd fee": ("fee_too_high", lambda s, w: w.sign(2000, fee_sat=90_000)),
    "pays out more than it has": (
        "fee_too_low",
        lambda s, w: w.sign(2000, change=[("51", 200_000)]),
    ),
    "has a locktime": ("bad_locktime", lambda s, w: w.sign(2000, locktime=500)),
    "has a relative lock time": ("bad_sequence", lambda s, w: w.sign(2000, sequence=10)),
    "has version 3": ("bad_version", lambda s, w: w.sign(2000, version=3)),
    "lacks a signature": ("not_signed", lambda s, w: w.sign(2000, signed=False)),
    "has a wrong signature": ("not_signed", lambda s, w: w.sign(2000, valid=False)),
    "spends what is not confirmed": ("input_spent", unconfirmed),
    "spends what is spent": ("input_spent", spent_in_a_block),
    "spends what is being spent": ("input_spent", spent_in_the_mempool),
    "spends what never was": ("input_spent", lambda s, w: w.sign(2000, inputs=[Outpoint("ab" * 32, 0)])),
    "has too many inputs": (
        "other_inputs",
        lambda s, w: w.sign(2000, inputs=[s.chain.fund(2000) for _ in range(6)], change=[]),
    ),
    "is over the credit cap": ("credit_cap", lambda s, w: w.sign(CREDIT_CAP_SAT + 1)),
    "is over the exposure cap": ("exposure_cap", lambda s, w: w.sign(EXPOSURE_CAP_SAT + 1)),
}


@pytest.mark.parametrize("what", FIRST)
def test_a_first_version_is_refused_that(stall: StillStall, session: str, wallet: Wallet, what: str) -> None:
    code, make = FIRST[what]
    assert stall.hand_over(session, 1, make(stall, wallet)) == code
    assert stall.ledger.newest_version(session) is None
    assert credited_sat(stall, session) == 0
    assert not stall.chain.sent


NEXT: dict[str, tuple[str, int, Broken]] = {
    "pays no more": ("value_not_larger", 2, lambda s, w: w.sign(2000, fee_sat=300)),
    "pays less": ("value_not_larger", 2, lambda s, w: w.sign(1500)),
    "spends another output": ("other_inputs", 2, lambda s, w: w.sign(2500, inputs=[s.chain.fund(100_000)])),
    "spends one more": ("other_inputs", 2, lambda s, w: w.sign(2500, inputs=[*w.inputs, s.chain.fund(9000)])),
    "jumps a number": ("bad_version", 3, lambda s, w: w.sign(2500)),
    "has an old number": ("bad_version", 1, lambda s, w: w.sign(2500)),
    "has no number": ("bad_version", 0, lambda s, w: w.sign(2500)),
    "has a number that no ledger holds": ("bad_version", 2**40, lambda s, w: w.sign(2500)),
    "is over the credit cap": ("credit_cap", 2, lambda s, w: w.sign(CREDIT_CAP_SAT + 1)),
    "is over the exposure cap": ("exposure_cap", 2, lambda s, w: w.sign(EXPOSURE_CAP_SAT + 1)),
}


@pytest.mark.parametrize("what", NEXT)
def test_a_later_version_is_refused_that(stall: StillStall, session: str, wallet: Wallet, what: str) -> None:
    code, number, make = NEXT[what]
    assert stall.hand_over(session, 1, wallet.sign(2000)) == ""
    assert stall.hand_over(session, number, make(stall, wallet)) == code
    newest = stall.ledger.newest_version(session)
    assert newest is not None
    assert (newest.number, credited_sat(stall, session)) == (1, 2000)


def test_a_version_may_not_leave_an_input_out(stall: StillStall, session: str) -> None:
    wallet = Wallet.of(stall.chain, stall.invite(session).script, 50_000, 50_000)
    assert stall.hand_over(session, 1, wallet.sign(2000)) == ""
    fewer = Wallet(stall.chain, wallet.inputs[:1], wallet.script)
    assert stall.hand_over(session, 2, fewer.sign(2500)) == "other_inputs"


def test_inputs_need_the_confirmations_that_the_operator_asks_for(tmp_path: Path) -> None:
    with StillStall(tmp_path / "socket.sqlite3", onchain_settings(input_confirmations=3)) as stall:
        session = stall.open()
        script = stall.invite(session).script
        wallet = Wallet(stall.chain, [stall.chain.fund(100_000, depth=2)], script)
        assert stall.hand_over(session, 1, wallet.sign(2000)) == "input_unconfirmed"
        stall.chain.mine()
        assert stall.hand_over(session, 1, wallet.sign(2000)) == ""


def test_a_version_without_an_invitation_is_refused(stall: StillStall, session: str) -> None:
    wallet = Wallet.of(stall.chain, "5120" + "ab" * 32)
    assert stall.hand_over(session, 1, wallet.sign(2000)) == "not_invited"


@pytest.mark.parametrize("psbt", [b"", b"no psbt", b"\xff" * (MOST_PSBT_BYTES + 1)])
def test_what_is_no_psbt_is_refused(stall: StillStall, session: str, wallet: Wallet, psbt: bytes) -> None:
    with pytest.raises(VersionRefused) as refused:
        stall.watch.intake.hand_over(session, pb.AggregateVersion(number=1, psbt=psbt))
    assert refused.value.code == "not_signed"


def test_without_bitcoind_a_version_is_refused_and_taken_later(stall: StillStall, session: str, wallet: Wallet) -> None:
    tx = wallet.sign(2000)
    stall.chain.away = True
    assert stall.hand_over(session, 1, tx) == "onchain_unavailable"
    assert credited_sat(stall, session) == 0
    stall.chain.away = False
    assert stall.hand_over(session, 1, tx) == ""


def test_a_session_that_is_ending_takes_no_version(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.hand_over(session, 1, wallet.sign(2000))
    stall.close_session(session)
    assert stall.hand_over(session, 2, wallet.sign(2500)) == "session_closed"
    assert credited_sat(stall, session) == 2000


def test_a_desk_whose_books_are_being_closed_takes_no_version(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.watch.intake.close(session)
    assert stall.hand_over(session, 1, wallet.sign(2000)) == "session_closed"


def test_a_final_version_that_nobody_asked_for_is_refused(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.hand_over(session, 1, wallet.sign(2000))
    assert stall.hand_over(session, 2, wallet.sign(1500), is_final=True) == "session_closed"
    assert stall.ledger.final_version(session) is None


def test_an_input_that_pays_another_session_is_refused(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.hand_over(session, 1, wallet.sign(2000))
    other = stall.open(2, "A2", OTHER_CABLE)
    script = stall.invite(other, OTHER_CABLE).script
    again = Wallet(stall.chain, wallet.inputs, script)
    assert stall.hand_over(other, 1, again.sign(2000)) == "input_refused"


def test_the_inputs_of_a_fraud_are_refused_from_whomever(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.ledger.refuse_cable(OTHER_CABLE, wallet.inputs, session, "double_spent", 5)
    assert stall.hand_over(session, 1, wallet.sign(2000)) == "input_refused"


def test_a_cable_that_is_refused_adds_nothing_to_its_other_sessions(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    stall.hand_over(session, 1, wallet.sign(2000))
    stall.ledger.refuse_cable(CABLE, [], session, "double_spent", 5)
    assert stall.hand_over(session, 2, wallet.sign(2500)) == "not_invited"
    assert credited_sat(stall, session) == 2000
    with pytest.raises(VersionRefused, match="double_spent"):
        stall.invite(stall.open(2, "A2"))


# Caps.


def test_unused_credit_makes_room_as_it_is_used(stall: StillStall, session: str, wallet: Wallet) -> None:
    assert stall.hand_over(session, 1, wallet.sign(CREDIT_CAP_SAT)) == ""
    assert stall.hand_over(session, 2, wallet.sign(CREDIT_CAP_SAT + 500)) == "credit_cap"
    stall.deliver(500 * MSAT_PER_SAT)
    assert stall.hand_over(session, 2, wallet.sign(CREDIT_CAP_SAT + 500)) == ""


def test_a_version_that_grows_by_less_than_its_session_was_told_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with StillStall(tmp_path / "socket.sqlite3", min_increment_msat=20_000) as stall:
        session = stall.open()
        wallet = Wallet.of(stall.chain, stall.invite(session).script)
        assert stall.hand_over(session, 1, wallet.sign(FLOOR_SAT)) == "", "the first one is taken as it is"
        for value_sat in range(FLOOR_SAT + 1, FLOOR_SAT + 20):
            assert stall.hand_over(session, 2, wallet.sign(value_sat)) == "below_min_increment"
        assert (stall.ledger.increments(session), credited_sat(stall, session)) == (1, FLOOR_SAT)
        assert stall.hand_over(session, 2, wallet.sign(FLOOR_SAT + 20)) == ""
        assert credited_sat(stall, session) == FLOOR_SAT + 20


@pytest.mark.parametrize(
    "caps",
    [{"credit_cap_sat": 1015}, {"exposure_cap_sat": 1015}, {"exposure_cap_sat": 1015, "total_exposure_cap_sat": 1015}],
    ids=lambda caps: next(reversed(caps)),
)
def test_the_step_that_leaves_nothing_of_a_cap_may_be_smaller_than_was_told(
    tmp_path: Path, caps: dict[str, int]
) -> None:
    with StillStall(tmp_path / "socket.sqlite3", onchain_settings(**caps), min_increment_msat=20_000) as stall:
        session = stall.open()
        wallet = Wallet.of(stall.chain, stall.invite(session).script)
        assert stall.hand_over(session, 1, wallet.sign(1000)) == ""
        assert stall.hand_over(session, 2, wallet.sign(1014)) == "below_min_increment"
        assert stall.hand_over(session, 2, wallet.sign(1015)) == ""


def test_a_final_version_pays_less_whatever_was_told(tmp_path: Path) -> None:
    with StillStall(tmp_path / "socket.sqlite3", min_increment_msat=20_000) as stall:
        session = stall.open()
        wallet = Wallet.of(stall.chain, stall.invite(session).script)
        assert stall.hand_over(session, 1, wallet.sign(1500)) == ""
        stall.deliver(1495 * MSAT_PER_SAT)
        codes: list[str] = []

        def hear(_: str, message: pb.ChargeResponse) -> None:
            if not codes:
                codes.append(stall.hand_over(session, 2, wallet.sign(message.final_due.value_sat), is_final=True))

        stall.hears = hear
        stall.close_session(session)
        stall.work()
        assert (codes, stall.aggregate(session).chosen_number) == ([""], 2)


def test_a_session_that_owes_nothing_leaves_one_version_however_many_it_made(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    for number in range(1, 31):
        assert stall.hand_over(session, number, wallet.sign(FLOOR_SAT + number)) == ""
    stall.close_session(session)
    stall.work()
    assert (stall.aggregate(session).status, stall.ledger.increments(session)) == (AggregateStatus.VOID, 1)
    assert stall.saved(session).account.credited_msat == (FLOOR_SAT + 30) * MSAT_PER_SAT


def test_what_is_mined_for_one_session_makes_room_for_another(tmp_path: Path) -> None:
    settings = onchain_settings(exposure_cap_sat=3000, total_exposure_cap_sat=3000)
    with StillStall(tmp_path / "socket.sqlite3", settings) as stall:
        first, second = stall.open(1, "A1"), stall.open(2, "A2", OTHER_CABLE)
        one = Wallet.of(stall.chain, stall.invite(first).script)
        two = Wallet.of(stall.chain, stall.invite(second, OTHER_CABLE).script)
        assert stall.hand_over(first, 1, one.sign(2000)) == ""
        assert stall.hand_over(second, 1, two.sign(1001)) == "exposure_cap"
        assert stall.hand_over(second, 1, two.sign(1000)) == ""
        assert stall.ledger.exposure_sat() == 3000
        stall.deliver(2000 * MSAT_PER_SAT)
        stall.close_session(first)
        stall.work()
        stall.look()
        assert stall.hand_over(second, 2, two.sign(1001)) == "exposure_cap", "it is broadcast, but not mined"
        stall.mine()
        assert stall.hand_over(second, 2, two.sign(1001)) == ""


def test_two_sessions_at_once_do_not_both_take_the_room_that_is_left(tmp_path: Path) -> None:
    settings = onchain_settings(exposure_cap_sat=3000, total_exposure_cap_sat=3000)
    with StillStall(tmp_path / "socket.sqlite3", settings) as stall:
        first, second = stall.open(1, "A1"), stall.open(2, "A2", OTHER_CABLE)
        one = Wallet.of(stall.chain, stall.invite(first).script)
        two = Wallet.of(stall.chain, stall.invite(second, OTHER_CABLE).script)
        versions = [one.sign(2000), two.sign(2000)]
        meeting = threading.Barrier(2, timeout=10)
        verdict = stall.chain.verdict

        def both_are_checked(raw: str) -> object:
            meeting.wait()
            return verdict(raw)

        stall.chain.verdict = both_are_checked  # type: ignore[method-assign,assignment]
        codes: list[str] = []
        threads = [
            threading.Thread(target=lambda s=s, tx=tx: codes.append(stall.hand_over(s, 1, tx)))
            for s, tx in zip([first, second], versions, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert sorted(codes) == ["", "exposure_cap"]
        assert stall.ledger.exposure_sat() == 2000


# Stored, then credited, once.


def test_the_same_version_again_is_accepted_and_credited_once(stall: StillStall, session: str, wallet: Wallet) -> None:
    tx = wallet.sign(2000)
    assert [stall.hand_over(session, 1, tx) for _ in range(3)] == ["", "", ""]
    assert (credited_sat(stall, session), stall.session(session).account.payments) == (2000, 1)
    stall.kill()
    assert stall.hand_over(session, 1, tx) == ""
    assert credited_sat(stall, session) == 2000


def test_an_older_version_again_is_accepted_and_changes_nothing(
    stall: StillStall, session: str, wallet: Wallet
) -> None:
    first = wallet.sign(1500)
    stall.hand_over(session, 1, first)
    stall.hand_over(session, 2, wallet.sign(2000))
    assert stall.hand_over(session, 1, first) == ""
    assert credited_sat(stall, session) == 2000


def test_what_the_ledger_cannot_store_is_not_credited(
    stall: StillStall, session: str, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        assert stall.session(session).account.credited_msat == 0
        raise LedgerError("ledger_full", "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "store_version", full)
        assert stall.hand_over(session, 1, wallet.sign(2000)) == "onchain_unavailable"
    assert credited_sat(stall, session) == 0
    assert stall.hand_over(session, 1, wallet.sign(2000)) == ""


def test_a_store_whose_outcome_was_in_doubt_is_credited_when_told_again(
    stall: StillStall, session: str, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Ledger.store_version

    def stored_but_lost(ledger: Ledger, version: Version, *rest: object) -> bool:
        store(ledger, version, *rest)  # type: ignore[arg-type]
        raise RetryError("ledger_busy", "the connection was lost in the commit")

    tx = wallet.sign(2000)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "store_version", stored_but_lost)
        with pytest.raises(RetryError):
            stall.hand_over(session, 1, tx)
    assert stall.session(session).account.credited_msat == 0
    assert stall.hand_over(session, 1, tx) == ""
    assert credited_sat(stall, session) == 2000


def test_a_store_whose_outcome_was_in_doubt_is_credited_at_the_close(
    stall: StillStall, session: str, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Ledger.store_version

    def stored_but_lost(ledger: Ledger, version: Version, *rest: object) -> bool:
        store(ledger, version, *rest)  # type: ignore[arg-type]
        raise RetryError("ledger_busy", "the connection was lost in the commit")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "store_version", stored_but_lost)
        with pytest.raises(RetryError):
            stall.hand_over(session, 1, wallet.sign(2000))
    stall.close_session(session)
    stall.work()
    assert credited_sat(stall, session) == 2000
    assert stall.aggregate(session).status is AggregateStatus.VOID, "nothing was delivered, nothing is owed"


@pytest.mark.parametrize("calls", range(44))
def test_a_kill_at_any_call_credits_once_or_not_at_all(
    stall: StillStall, session: str, wallet: Wallet, calls: int
) -> None:
    stall.hand_over(session, 1, wallet.sign(1500))
    tx = wallet.sign(2000)
    stall.tripwire.left = calls
    try:
        code = stall.hand_over(session, 2, tx)
    except Killed:
        stall.boot()
    else:
        stall.tripwire.left = None
        assert code == ""
    assert credited_sat(stall, session) in (1500, 2000)
    assert stall.hand_over(session, 2, tx) == ""
    assert (credited_sat(stall, session), stall.session(session).account.payments) == (2000, 2)


def test_credit_from_the_chain_closes_the_relay(stall: StillStall, session: str, wallet: Wallet) -> None:
    stall.deliver(0)
    assert stall.session(session).state is State.OPEN
    stall.hand_over(session, 1, wallet.sign(2000))
    stall.deliver(0)
    assert stall.session(session).state is State.DELIVERING
    assert stall.hardware["A1"].closed


def test_a_version_is_handed_over_as_it_was_signed(stall: StillStall, session: str, wallet: Wallet) -> None:
    tx = wallet.sign(2000)
    stall.hand_over(session, 1, tx)
    newest = stall.ledger.newest_version(session)
    assert newest is not None
    assert (newest.txid, newest.raw, newest.value_sat, newest.fee_sat) == (tx.txid, tx.raw, 2000, 200)
    spent = [TxOutput(100_000, COIN_SCRIPT)]
    assert newest.psbt == finalized_psbt(tx, spent), "the node gets one of ours"
    assert tuple(item.outpoint for item in stall.aggregate(session).inputs) == tuple(wallet.inputs)
    assert stall.aggregate(session).first_height == stall.chain.blocks[-1].height
