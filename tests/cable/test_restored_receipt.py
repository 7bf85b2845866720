"""A receipt that was made from a restored ledger: what it may lack is no lie, what it says too much is one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cable.test_onchain_end import HELD
from wattline.cable.pay.settlement import judged
from wattline.cable.policy.events import Receipt, SignedReceipt
from wattline.cable.policy.reconciliation import Known, OnchainKnown, Tolerance, objections
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.ledger.cable import CableAggregateStatus
from wattline.core.lightning.onchain import WalletTx
from wattline.core.tariff import Tariff, cost_msat

TARIFF = Tariff.of(300_000_000)
OWN_UWH, COPY_UWH = 10_000_000, 8_000_000
KNOWN = Known(least_energy_uwh=OWN_UWH, most_energy_uwh=OWN_UWH, elapsed_ms=60_000, surely_credited_msat=4_000_000)
FINAL_SAT, COPY_SAT, NEWEST_SAT = 3000, 3500, 4000
ONCHAIN = OnchainKnown(
    floor_sat=546,
    accepted_msat=NEWEST_SAT * MSAT_PER_SAT,
    signed_msat=NEWEST_SAT * MSAT_PER_SAT,
    txids={FINAL_SAT: "aa" * 32, COPY_SAT: "bb" * 32, NEWEST_SAT: "cc" * 32},
    is_final_taken=True,
)


def receipt(energy_uwh: int, newest_sat: int, *, restored: bool) -> Receipt:
    """The final version is mined; what the account calls unused is owed."""
    charged_msat = cost_msat(TARIFF, energy_uwh, 0, True)
    credited_msat, returned_msat = newest_sat * MSAT_PER_SAT, (newest_sat - FINAL_SAT) * MSAT_PER_SAT
    return Receipt(
        session_id="0" * 26,
        node_id="02" + "ab" * 32,
        outlet_id="A1",
        stop_reason="ledger_restored" if restored else "cable_closed",
        tariff=TARIFF,
        energy_uwh=energy_uwh,
        delivered_ms=0,
        credited_msat=credited_msat,
        charged_msat=charged_msat,
        refunded_msat=returned_msat,
        balance_msat=credited_msat - charged_msat - returned_msat,
        payments=2,
        refund_status="owed",
        refund_fee_msat=0,
        refund_payment_hash="",
        signed=SignedReceipt(b"", ""),
        onchain_credited_msat=credited_msat,
        returned_msat=returned_msat,
        onchain_txid="aa" * 32,
        onchain_value_sat=FINAL_SAT,
        from_restored_ledger=restored,
    )


def objected(receipt: Receipt) -> list[str]:
    return objections(receipt, KNOWN, TARIFF, Tolerance(20_000, 1000), NEWEST_SAT * MSAT_PER_SAT, 1000, 0, ONCHAIN)


def test_a_receipt_of_an_older_copy_may_lack_energy_and_versions() -> None:
    assert objected(receipt(OWN_UWH, NEWEST_SAT, restored=False)) == []
    assert objected(receipt(COPY_UWH, COPY_SAT, restored=True)) == []
    assert len(objected(receipt(COPY_UWH, COPY_SAT, restored=False))) >= 3


@pytest.mark.parametrize(
    "lie",
    [
        {"energy_uwh": 2 * OWN_UWH},
        {"charged_msat": 4_000_000, "balance_msat": -1_000_000},
        {"onchain_credited_msat": (NEWEST_SAT + 1) * MSAT_PER_SAT},
        {"onchain_value_sat": FINAL_SAT + 1},
        {"onchain_txid": "cc" * 32},
        {"returned_msat": 0},
        {"credited_msat": 3_400_000},
    ],
)
def test_it_may_not_say_more_than_any_other(lie: dict[str, object]) -> None:
    assert objected(replace(receipt(COPY_UWH, COPY_SAT, restored=True), **lie))  # type: ignore[arg-type]


def test_what_was_mined_beyond_all_that_a_ledger_knows_to_be_signed_accuses_the_ledger_and_no_socket() -> None:
    row = replace(HELD, signed_sat=2000, accepted_sat=2000, agreed_sat=2000, status=CableAggregateStatus.ENDED)
    for paid_sat, status in ((2001, CableAggregateStatus.SETTLED), (2000, CableAggregateStatus.UNANSWERED)):
        mined = WalletTx("ab" * 32, 7, frozenset(), ((row.script, paid_sat),))
        assert judged(replace(row, due_sat=1500), mined, 9).status is status
