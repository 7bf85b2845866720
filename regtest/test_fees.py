"""The benchmark of fees, cut short: that it runs on real nodes, and that its ratios hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.lightningd, pytest.mark.real_only, pytest.mark.timeout(180)]

FEES = Path(__file__).parent / "bench" / "fees.py"
PAYMENTS = 8
ENOUGH_PER_S = 2
DUST_SAT = 330
"""What bitcoind relays of P2TR at least."""


@pytest.fixture(scope="module")
def measured(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fees")
    files = {name: folder / f"fees.{name}" for name in ("json", "svg", "md")}
    command = [sys.executable, str(FEES), "--sessions", "toast,EV", "--counts", str(PAYMENTS)]
    # Other tests run at the same time: how fast it is, only a run alone can tell.
    command += ["--enough", str(ENOUGH_PER_S)]
    command += ["--json", str(files["json"]), "--plot", str(files["svg"]), "--markdown", str(files["md"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(files["json"].read_text(encoding="utf-8"))
    return {**result, "svg": files["svg"].read_text(encoding="utf-8"), "md": files["md"].read_text(encoding="utf-8")}


def row(measured: dict[str, Any], tariff: str, session: str, way: str) -> dict[str, Any]:
    (found,) = [
        item
        for item in measured["outcomes"]
        if (item["tariff"], item["session"], item["payments"], item["way"]) == (tariff, session, PAYMENTS, way)
    ]
    return dict(found)


@pytest.mark.parametrize("tariff", ["everyday", "dear"])
def test_an_aggregate_costs_one_fee_where_the_naive_way_costs_one_for_each_payment(
    measured: dict[str, Any], tariff: str
) -> None:
    naive = row(measured, tariff, "EV", "one tx each")
    aggregate = row(measured, tariff, "EV", "aggregate")
    assert naive["fee_msat"] == pytest.approx(PAYMENTS * aggregate["fee_msat"], rel=0.02)
    assert naive["vbytes"] == pytest.approx(PAYMENTS * aggregate["vbytes"], rel=0.02)
    assert (naive["transactions"], aggregate["transactions"]) == (PAYMENTS, 1)
    assert naive["paid_msat"] == aggregate["paid_msat"] == naive["value_msat"]


def test_what_is_dust_cannot_be_paid_one_by_one_but_grows_as_an_aggregate(measured: dict[str, Any]) -> None:
    naive = row(measured, "dear", "toast", "one tx each")
    aggregate = row(measured, "dear", "toast", "aggregate")
    assert naive["value_msat"] < PAYMENTS * DUST_SAT * 1000
    assert "dust" in naive["refused"]
    assert aggregate["refused"] is None
    assert aggregate["fee_msat"] == row(measured, "dear", "EV", "aggregate")["fee_msat"], "one fee, whatever it pays"


def test_a_session_that_is_worth_less_than_dust_is_paid_by_lightning_alone(measured: dict[str, Any]) -> None:
    assert "dust" in row(measured, "everyday", "toast", "one tx each")["refused"]
    assert "too few" in row(measured, "everyday", "toast", "aggregate")["refused"]
    keysend = row(measured, "everyday", "toast", "keysend")
    assert keysend["paid_msat"] == keysend["value_msat"]
    assert "dust" in measured["dust"]["lightningd"]
    assert "dust" in measured["dust"]["bitcoind"]


def test_a_keysend_payment_costs_what_the_router_takes(measured: dict[str, Any]) -> None:
    keysend = row(measured, "everyday", "EV", "keysend")
    share_msat = keysend["value_msat"] * measured["router_ppm"] // 1_000_000
    expected_msat = PAYMENTS * measured["router_base_msat"] + share_msat
    # Each of them is rounded.
    assert keysend["fee_msat"] == pytest.approx(expected_msat, abs=PAYMENTS)


def test_the_plot_and_the_table_show_every_session(measured: dict[str, Any]) -> None:
    paid = [item for item in measured["outcomes"] if item["refused"] is None]
    assert measured["svg"].count('<circle cx="') == len(paid) + 3, "one for each, and the legend's"
    assert measured["md"].count("| EV |") == 2
    assert measured["increments_per_s"] >= ENOUGH_PER_S
