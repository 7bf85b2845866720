"""The demo of the on-chain method as a newcomer runs it: one session, one transaction, one fee, and all books agree."""

from __future__ import annotations

import json
import subprocess

import pytest

from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.tariff import Tariff, cost_msat
from wattline.regtest.chain import Chain
from wattline.regtest.scene import script
from wattline.regtest.settlement import smallest_vsize

pytestmark = [pytest.mark.lightningd, pytest.mark.timeout(180)]

P2TR = "witness_v1_taproot"
FLOOR_SAT = 546


def test_half_a_slice_of_bread_is_paid_in_many_increments_by_one_transaction(kind: str, onchain_chain: Chain) -> None:
    del onchain_chain  # it says whether there is a bitcoind; the demo runs its own
    command = [str(script("wattline")), "demo", "--method", "onchain", "--node", kind, "--seconds", "15", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200,000 sat per kWh" in done.stderr
    assert ("PRACTICE NODES" in done.stderr) == (kind == "practice")
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["method"], said["node"], said["stop_reason"]) == ("onchain", kind, "done")
    assert said["price_msat_per_kwh"] == 200_000_000

    assert said["increments"] >= 20
    assert said["payments"] == said["increments"]
    assert len(said["txid"]) == 64
    assert said["confirmations"] >= 1
    # The cable's wallet gives P2TR outputs, for its change, too, and the socket's addresses are P2TR.
    assert smallest_vsize([P2TR], [P2TR, P2TR]) <= said["vsize"] <= smallest_vsize([P2TR], [P2TR, P2TR]) + 5
    assert said["fees_msat"] == said["fee_sat"] * MSAT_PER_SAT, "one miner's fee, and no other"
    assert said["vsize"] <= said["fee_sat"] <= 2 * said["vsize"]

    tariff = Tariff.of(energy_msat_per_kwh=said["price_msat_per_kwh"])
    assert said["charged_msat"] == cost_msat(tariff, said["energy_uwh_socket"], 0, started=True)
    final_sat = final_value_sat(said["charged_msat"], 0, FLOOR_SAT)
    assert final_sat > FLOOR_SAT, "so that it is the charge that is paid"
    assert said["value_sat"] == said["counted_sat"] == said["received_sat"] == final_sat
    assert said["books_agree"]
    assert said["credited_msat"] - said["charged_msat"] - said["refunded_msat"] == said["balance_msat"]
    assert 0 <= said["balance_msat"] < MSAT_PER_SAT, "what rounding up to whole sats leaves"

    assert said["relay_closed"] == said["relay_opened"] == 1
    assert said["relay_final"] == "open"
    assert said["max_unpaid_msat"] == 0
    assert said["energy_uwh_cable"] == pytest.approx(said["energy_uwh_socket"], rel=0.01)
