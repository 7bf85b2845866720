"""Sessions that are paid on-chain: the real service, payments and ledger against a fake socket and wallet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.cable.conftest import Bench
from tests.cable.fake_funds import RULES, FakeAggregate, address_of, script_of
from tests.cable.fakes import CABLE_NODE, SOCKET_NODE, FakeSigner, fake_signature, keep_refund, wait_for
from wattline.core.bitcoin import address
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus
from wattline.core.lightning.node import is_signed_by, onchain_content, signed_text
from wattline.core.lightning.onchain import Base
from wattline.core.tariff import Tariff
from wattline.v1 import charging_pb2 as pb

PRICE = 900_000_000
"""So dear that a second of toast is worth 325 sat."""


@pytest.fixture
def onchain(bench: Bench) -> Bench:
    bench.payment["method"] = "onchain"
    dear(bench)
    return bench


def dear(bench: Bench) -> None:
    bench.socket.tariff = Tariff.of(PRICE)
    bench.socket.methods = [pb.METHOD_KEYSEND, pb.METHOD_ONCHAIN]
    bench.socket.onchain_rules = RULES
    bench.socket.credit_cap_msat = 10_000_000
    bench.limits |= {
        "max_price_msat_per_kwh": PRICE,
        "max_prepaid_msat": 1_000_000,
        "max_session_msat": 100_000_000,
        "max_day_msat": 100_000_000,
    }
    bench.onchain["max_fee_ratio"] = 0.2


def until_versions(bench: Bench, count: int) -> None:
    """``count`` versions, and something delivered: an end before that would not be a good one."""
    wait_for(
        lambda: bench.socket.sessions and aggregate(bench).number >= count and bench.shown.energy_uwh_cable > 0,
        what=f"{count} versions; {bench.socket.versions} {bench.listener.lines}",
    )


def until_charged(bench: Bench) -> None:
    wait_for(lambda: bench.listener.snapshots and bench.shown.charged_msat > 600_000, what="more than the floor")


def aggregate(bench: Bench) -> FakeAggregate:
    return bench.socket.session.onchain or FakeAggregate("", "")


def row(bench: Bench) -> CableAggregate:
    found = bench.ledger.cable_aggregates.of(bench.socket.session.session_id)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def no_waiting_for_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)


def test_a_session_is_paid_by_one_growing_transaction_and_ends_at_the_exact_charge(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 5)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert (summary.method, summary.stop_reason) == ("onchain", "done")
    assert onchain.node.sends == []
    held = aggregate(onchain)
    assert summary.increments == summary.payments == held.number
    assert summary.onchain_value_sat == held.final_sat == max(600, -(-summary.charged_msat // 1000))
    assert summary.txid == held.chosen
    assert summary.credited_msat == held.value_sat * 1000
    assert summary.refunded_msat >= (held.value_sat - held.final_sat) * 1000
    values = [value for _, value, is_final in onchain.socket.versions if not is_final]
    assert values == sorted(set(values))
    assert values[0] >= 600


def test_the_miner_s_fee_is_paid_once_and_counted_once(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 4)
    summary = onchain.finish()
    # 42 + 230 of inputs and 2 x 172 of outputs are 616 weight units, 154 vB.
    assert summary.fee_sat == 156  # 616 x 253 / 1000, rounded up
    assert summary.fees_msat == 156_000
    inputs_sat = sum(item.value_sat for item in row(onchain).inputs)
    for value_sat, tx in aggregate(onchain).held.values():
        assert sum(output.value_sat for output in tx.outputs) == inputs_sat - 156
        assert tx.outputs[0] == TxOutput(value_sat, aggregate(onchain).script)
    assert onchain.ledger.cable_aggregates.sent_msat() == (row(onchain).signed_sat + 156) * 1000


def test_no_channel_is_needed(onchain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onchain.node, "channels", list)
    onchain.start()
    until_versions(onchain, 2)
    assert onchain.finish().is_good


def test_the_open_and_the_request_are_signed_by_the_cable_s_node(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 1)
    onchain.finish()
    sent = onchain.socket.opens[0]
    assert sent.method == pb.METHOD_ONCHAIN
    unsigned = pb.Open()
    unsigned.CopyFrom(sent)
    unsigned.signature = ""
    content = unsigned.SerializeToString(deterministic=True)
    assert is_signed_by(FakeSigner(CABLE_NODE), "open", content, sent.signature, CABLE_NODE)
    text = signed_text("onchain", onchain_content(SOCKET_NODE, onchain.socket.session.session_id))
    assert onchain.socket.signatures == [fake_signature(text, CABLE_NODE)]


def test_what_is_prepaid_stays_below_floor_and_cap_together(onchain: Bench) -> None:
    onchain.onchain["max_prepaid_sat"] = 100
    onchain.start()
    until_versions(onchain, 8)
    summary = onchain.finish()
    assert summary.max_prepaid_msat <= 700_000
    assert onchain.socket.peak_balance <= 700_000 + 180_000  # what the tolerance of the meters is worth


def test_the_inputs_are_free_again_when_nothing_was_handed_over(onchain: Bench) -> None:
    onchain.funds.spoils = [TxOutput(700, script_of("socket-1")), TxOutput(5, script_of("cable-1"))]
    summary = onchain.run()
    assert summary.stop_reason == "payment_failed"
    assert "does not pay" in summary.message
    assert onchain.socket.versions == []
    assert row(onchain).status is CableAggregateStatus.VOID
    assert onchain.funds.reserved == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("script", script_of("somebody else")),
        ("script", ""),
        ("script", script_of("socket-1").upper()),
        ("script", "0020" + "ab" * 32),
        ("address", ""),
        ("address", "1" * 700),
        ("address", address_of("socket-1").upper()),
        ("address", address_of("somebody else")),
        ("address", address.address_of(script_of("socket-1"), "bitcoin")),
    ],
)
def test_an_address_that_is_not_the_one_of_its_script_never_reaches_the_node(
    onchain: Bench, field: str, value: str
) -> None:
    onchain.socket.lie_invitation = lambda message: setattr(message, field, value)
    summary = onchain.run()
    is_malformed = len(value) > 90 or (field == "script" and value != value.lower())
    assert summary.stop_reason == ("message_invalid" if is_malformed else "onchain_mismatch")
    assert onchain.socket.versions == []
    assert onchain.funds.reserved == {}
    assert onchain.funds.signed == []


def test_inputs_that_another_cable_of_the_same_wallet_took_meanwhile_are_chosen_anew(
    onchain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = onchain.funds.reserve
    taken: list[Outpoint] = []

    def beaten(outpoints: Sequence[Outpoint]) -> Base:
        if not taken:
            taken.extend(outpoints)
            reserve(outpoints)
        return reserve(outpoints)

    monkeypatch.setattr(onchain.funds, "reserve", beaten)
    onchain.start()
    until_versions(onchain, 2)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert taken
    assert not {item.outpoint for item in row(onchain).inputs} & set(taken)


# Before the session.


def test_a_session_that_is_not_worth_the_fee_is_not_opened_and_it_is_said_what_would_be(onchain: Bench) -> None:
    onchain.wish.__init__(1_000)  # type: ignore[misc]
    summary = onchain.run()
    assert summary.stop_reason == "onchain_not_worth"
    assert "may come to 835 sat (3 s at rated power)" in summary.message
    assert onchain.socket.opens == []
    assert onchain.funds.reserved == {}


def test_without_a_confirmed_output_no_session_is_opened(onchain: Bench) -> None:
    onchain.funds.free = []
    summary = onchain.run()
    assert summary.stop_reason == "no_onchain_funds"
    assert onchain.socket.opens == []


def test_a_floor_above_the_own_limit_is_refused(onchain: Bench) -> None:
    onchain.onchain["max_floor_sat"] = 599
    summary = onchain.run()
    assert summary.stop_reason == "onchain_floor_too_high"
    assert "600 sat" in summary.message
    assert onchain.socket.opens == []


def test_a_socket_that_takes_no_on_chain_payment_is_not_opened(onchain: Bench) -> None:
    onchain.socket.methods = [pb.METHOD_KEYSEND]
    assert onchain.run().stop_reason == "method_not_supported"


def test_a_socket_that_cannot_look_at_the_chain_for_long_is_given_up(
    onchain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.onchain_side.GIVE_UP_MS", 500)
    monkeypatch.setattr("wattline.cable.onchain_side.ASK_AGAIN_MS", 100)
    rules = onchain.socket.onchain_rules
    onchain.socket.lie_offer = lambda offer: setattr(onchain.socket, "onchain_rules", None)
    summary = onchain.run()
    assert rules is not None
    assert summary.stop_reason == "onchain_unavailable"
    assert len(onchain.socket.signatures) >= 2


def test_with_a_small_wallet_its_value_bounds_the_session(onchain: Bench) -> None:
    onchain.funds.free = [replace(onchain.funds.free[0], value_sat=2_200)]
    onchain.limits["max_fee_ratio"] = 0.05
    summary = onchain.run()
    assert summary.stop_reason == "onchain_limit"
    assert max(value for _, value, _ in onchain.socket.versions) <= 2_200 - 156 - 546
    assert summary.objections == ()


def test_the_session_budget_counts_the_miner_s_fee(onchain: Bench) -> None:
    onchain.limits.update(max_prepaid_msat=1_000_000, max_session_msat=1_500_000)
    summary = onchain.run()
    assert summary.stop_reason == "budget_spent"
    assert max(onchain.funds.signed) + 156 <= 1_500


# What goes wrong on the way.


def test_a_refused_version_counts_as_handed_over_and_another_takes_its_place(onchain: Bench) -> None:
    refused: list[int] = []

    def refuse(number: int, value_sat: int) -> tuple[str, str] | None:
        if number == 3 and not refused:
            refused.append(value_sat)
            return "policy", "the mempool would not take it"
        return None

    onchain.socket.refuse_versions = refuse
    onchain.start()
    until_versions(onchain, 5)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert summary.failed_payments == 1
    assert row(onchain).signed_sat >= refused[0]


def test_a_reason_that_holds_for_every_version_ends_the_session(onchain: Bench) -> None:
    onchain.socket.refuse_versions = lambda number, value: ("input_refused", "fraud") if number > 2 else None
    summary = onchain.run()
    assert summary.stop_reason == "payment_failed"
    assert "input_refused" in summary.message
    assert [number for number, _, _ in onchain.socket.versions].count(3) == 2  # and once more the final version


def test_a_version_whose_answer_is_lost_with_the_stream_is_told_again_and_counts_once(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 2)
    onchain.socket.loses_answers = 1
    wait_for(lambda: onchain.socket.loses_answers == 0)
    onchain.socket.cut_streams()
    count = aggregate(onchain).number
    until_versions(onchain, count + 3)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert summary.credited_msat == summary.paid_msat == aggregate(onchain).value_sat * 1000
    repeated = [number for number, _, _ in onchain.socket.versions]
    assert len(repeated) > len(set(repeated))


def test_a_version_that_never_arrived_is_in_doubt_and_handed_over_again(
    onchain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.pay.onchain.ANSWER_S", 0.2)
    monkeypatch.setattr("wattline.cable.pay.keysend.RESOLVE_MS", 100)
    onchain.start()
    until_versions(onchain, 2)
    onchain.socket.loses_versions = 2
    wait_for(lambda: any("in doubt" in line for line in onchain.listener.lines))
    count = aggregate(onchain).number
    until_versions(onchain, count + 3)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert summary.in_doubt_msat == 0


def test_a_lapsed_reservation_is_renewed_before_the_next_version(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 2)
    onchain.funds.blocks += 100
    count = aggregate(onchain).number
    until_versions(onchain, count + 2)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert onchain.funds.renewals >= 1


def test_the_reservation_is_renewed_when_blocks_have_passed(onchain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattline.cable.onchain_side.RENEW_MS", 50)
    onchain.start()
    until_versions(onchain, 1)
    assert onchain.funds.renewals == 0
    onchain.node.height += 36
    wait_for(lambda: onchain.funds.renewals == 1)
    onchain.finish()


# Restarts.


def test_a_killed_cable_goes_on_with_the_same_transaction(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 3)
    onchain.crash()
    before = row(onchain)
    onchain.start()
    wait_for(lambda: onchain.socket.resumes == 1)
    count = aggregate(onchain).number
    until_versions(onchain, count + 2)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert len(onchain.socket.sessions) == 1
    assert row(onchain).inputs == before.inputs
    assert summary.paid_msat == aggregate(onchain).value_sat * 1000
    assert summary.increments == aggregate(onchain).number
    assert len({tx.inputs for _, tx in aggregate(onchain).held.values()}) == 1


def test_a_version_that_was_stored_while_the_cable_died_is_counted_after_the_restart(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 2)
    onchain.socket.loses_answers = 10**6
    count = aggregate(onchain).number
    until_versions(onchain, count + 1)
    onchain.crash()
    assert row(onchain).accepted_sat < aggregate(onchain).value_sat
    onchain.socket.loses_answers = 0
    onchain.start()
    wait_for(lambda: onchain.socket.resumes == 1)
    count = aggregate(onchain).number
    until_versions(onchain, count + 1)
    summary = onchain.finish()
    assert summary.is_good, summary
    assert summary.paid_msat == aggregate(onchain).value_sat * 1000


def test_after_a_restart_a_socket_that_lost_what_it_had_is_not_trusted(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 3)
    onchain.crash()

    def forget(message: pb.OnchainInvitation) -> None:
        message.newest_number, message.newest_value_sat = 1, 600

    onchain.socket.lie_invitation = forget
    signed = len(onchain.funds.signed)
    summary = onchain.run()
    assert summary.stop_reason == "onchain_mismatch"
    assert len(onchain.funds.signed) == signed


def test_a_session_that_ended_while_the_cable_was_dead_is_put_on_record(onchain: Bench) -> None:
    onchain.socket.final_timeout_s = 0.0
    onchain.start()
    until_charged(onchain)
    onchain.crash()
    old = onchain.socket.session
    onchain.socket.close_session(old, "cable_lost")
    onchain.socket.final_timeout_s = 3.0
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == 2)
    until_charged(onchain)
    summary = onchain.finish()
    assert summary.is_good, summary
    kept = onchain.ledger.cable_aggregates.of(old.session_id)
    assert kept is not None
    assert kept.status is CableAggregateStatus.ENDED
    # The new session has other inputs: those of the old one are still spoken for.
    assert not set(kept.inputs) & set(row(onchain).inputs)


# The end.


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda due: setattr(due, "value_sat", due.value_sat + 1), "that makes"),
        (lambda due: setattr(due, "keysend_msat", 10**9), "that makes"),
    ],
    ids=["value", "keysend"],
)
def test_a_final_version_that_is_not_what_is_owed_is_not_signed(
    onchain: Bench, lie: Callable[[pb.FinalDue], None], words: str
) -> None:
    onchain.socket.lie_final = lie
    onchain.socket.final_timeout_s = 0.5
    onchain.start()
    until_versions(onchain, 3)
    summary = onchain.finish()
    assert not summary.is_good
    assert any("no final version" in line and words in line for line in summary.objections), summary.objections
    assert not any(is_final for _, _, is_final in onchain.socket.versions)
    assert row(onchain).final_sat is None


def test_a_socket_that_charges_more_at_the_end_than_flowed_gets_no_final_version(onchain: Bench) -> None:
    def lie(due: pb.FinalDue) -> None:
        due.charged_msat += 200_000
        due.value_sat += 200

    onchain.socket.lie_final = lie
    onchain.socket.final_timeout_s = 0.5
    onchain.start()
    until_versions(onchain, 3)
    summary = onchain.finish()
    assert any("own meter" in line for line in summary.objections), summary.objections
    assert not any(is_final for _, _, is_final in onchain.socket.versions)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda receipt: setattr(receipt, "onchain_value_sat", receipt.onchain_value_sat + 1), "are owed"),
        (lambda receipt: setattr(receipt, "onchain_txid", "ab" * 32), "names transaction"),
        (lambda receipt: setattr(receipt, "returned_msat", 0), "gives 0 msat back"),
        (lambda receipt: setattr(receipt, "onchain_credited_msat", 1_000), "were accepted"),
    ],
    ids=["value", "txid", "returned", "credited"],
)
def test_a_receipt_that_is_not_true_of_the_chain_is_objected_to(
    onchain: Bench, lie: Callable[[pb.Receipt], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.closing.REFUND_MS", 300)
    onchain.socket.lie_receipt = lie
    onchain.start()
    until_versions(onchain, 3)
    summary = onchain.finish()
    assert not summary.is_good
    assert any(words in line for line in summary.objections), summary.objections


# Afterwards.


def test_the_agreed_version_is_found_mined_at_the_next_start(onchain: Bench) -> None:
    onchain.start()
    until_charged(onchain)
    onchain.finish()
    assert row(onchain).status is CableAggregateStatus.ENDED
    held = aggregate(onchain)
    session_id = onchain.socket.session.session_id
    onchain.funds.mine(held.held[held.chosen][1])
    onchain.wish.__init__()  # type: ignore[misc]
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == 2)
    settled = onchain.ledger.cable_aggregates.of(session_id)
    assert settled is not None
    assert (settled.status, settled.mined_sat) == (CableAggregateStatus.SETTLED, held.final_sat)
    until_versions(onchain, 1)
    onchain.finish()


def test_while_it_is_not_mined_its_inputs_are_kept_for_it_at_each_start(onchain: Bench) -> None:
    onchain.start()
    until_charged(onchain)
    onchain.finish()
    first = row(onchain)
    onchain.funds.blocks += 100
    onchain.wish.__init__()  # type: ignore[misc]
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == 2)
    until_versions(onchain, 1)
    onchain.finish()
    assert not set(first.inputs) & set(row(onchain).inputs)


def test_a_socket_that_could_not_take_the_final_version_and_owes_the_rest_of_the_newest_is_no_cheat(
    onchain: Bench,
) -> None:
    onchain.socket.refuses_finals = True
    onchain.socket.final_timeout_s = 0.5
    onchain.start()
    until_charged(onchain)
    summary = onchain.finish()
    assert summary.is_good, summary
    signed = row(onchain)
    assert any(is_final for _, _, is_final in onchain.socket.versions), "it was signed and handed over"
    held = aggregate(onchain)
    newest = held.held[held.txids[held.number]]
    assert summary.onchain_value_sat == newest[0] == signed.accepted_sat
    assert (signed.final_sat, signed.agreed_sat) == (held.due_sat, newest[0])
    onchain.funds.mine(newest[1])
    onchain.wish.__init__()  # type: ignore[misc]
    onchain.start()
    wait_for(lambda: len(onchain.socket.sessions) == 2)
    settled = onchain.ledger.cable_aggregates.of(signed.session_id)
    assert settled is not None
    assert (settled.status, settled.mined_sat) == (CableAggregateStatus.SETTLED, newest[0])
    until_versions(onchain, 1)
    onchain.finish()


def test_a_receipt_that_keeps_what_the_newest_version_pays_too_much_is_objected_to(onchain: Bench) -> None:
    onchain.socket.refuses_finals = True
    onchain.socket.final_timeout_s = 0.5
    onchain.socket.lie_receipt = keep_refund
    onchain.start()
    until_charged(onchain)
    summary = onchain.finish()
    assert any("do not come back" in line for line in summary.objections), summary.objections


def test_a_receipt_that_keeps_less_of_the_newest_version_than_the_socket_refunds_is_true(onchain: Bench) -> None:
    onchain.socket.min_refund_msat = onchain.limits["max_kept_msat"] = 10**9
    onchain.socket.refuses_finals = True
    onchain.socket.final_timeout_s = 0.5
    onchain.start()
    until_charged(onchain)
    summary = onchain.finish()
    assert summary.refund_status == "kept"
    assert summary.balance_msat > 1_000
    assert summary.objections == ()


def test_a_socket_that_has_more_mined_than_agreed_is_seen_told_of_and_refused(onchain: Bench) -> None:
    onchain.start()
    until_versions(onchain, 4)
    onchain.finish()
    held = aggregate(onchain)
    largest = max(held.held.values(), key=lambda item: item[0])
    onchain.funds.mine(largest[1])
    onchain.wish.__init__()  # type: ignore[misc]
    summary = onchain.run()
    assert summary.stop_reason == "socket_cheated"
    assert "wattline cable forgive" in summary.message
    assert any(f"{largest[0] - held.final_sat} sat are lost" in line for line in onchain.listener.lines)
    assert len(onchain.socket.sessions) == 1
    onchain.payment["method"] = "keysend"
    assert onchain.run().stop_reason == "socket_cheated"


def test_what_is_mined_before_the_run_ends_is_in_its_summary(onchain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 5.0)
    onchain.start()
    until_versions(onchain, 3)
    onchain.wish.want("done", "enough")
    held = aggregate(onchain)
    wait_for(lambda: held.chosen)
    largest = max(held.held.values(), key=lambda item: item[0])
    onchain.funds.mine(largest[1])
    summary = onchain.wait()
    assert summary.onchain_value_sat == largest[0]
    assert any("sat were agreed" in line for line in summary.objections)
    assert row(onchain).status is CableAggregateStatus.CHEATED
    assert row(onchain).node_id == SOCKET_NODE
