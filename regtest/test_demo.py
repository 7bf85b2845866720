"""The demo as a newcomer runs it: the whole chain on either kind of node, and every book compared."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from wattline.core.tariff import Tariff, cost_msat
from wattline.regtest.places import Places, environment_of, left
from wattline.regtest.scene import script

pytestmark = [pytest.mark.lightningd, pytest.mark.timeout(180)]


def test_the_demo_toasts_a_slice_of_bread_and_all_books_agree(kind: str) -> None:
    command = [str(script("wattline")), "demo", "--node", kind, "--seconds", "6", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["relay_closed"] == said["relay_opened"] == 1, said
    assert said["relay_final"] == "open"
    assert said["energy_uwh_cable"] == pytest.approx(said["energy_uwh_socket"], rel=0.01)
    tariff = Tariff.of(energy_msat_per_kwh=said["price_msat_per_kwh"])
    assert said["charged_msat"] == cost_msat(tariff, said["energy_uwh_socket"], 0, started=True) > 0
    assert said["credited_msat"] - said["charged_msat"] - said["refunded_msat"] == said["balance_msat"]
    assert said["books_agree"]
    assert set(said["books"]["increments"].values()) == {said["credited_msat"]}
    assert set(said["books"]["refunds"].values()) == {said["refunded_msat"], None}
    assert said["payments"] >= 6
    assert said["payment_ms_p50"] <= said["payment_ms_p99"]
    assert said["max_unpaid_msat"] == 0
    assert said["stop_reason"] == "done"
    # Who asks for JSON wants no chart.
    assert "┤" not in done.stderr
    assert "course" not in said


def test_the_demo_tells_a_newcomer_what_happened_in_words_and_leaves_no_file_behind(kind: str, places: Places) -> None:
    command = [str(script("wattline")), "demo", "--node", kind, "--seconds", "4", "--price", "1000"]
    environment = environment_of(places)
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(places) == []
    for words in ("1000 sat per kWh", "given back", "agree to the msat"):
        assert words in done.stdout
    # As a rule once; a payment that a busy machine slows down may pause the session.
    assert re.search(r"closed ([1-9])×, opened \1×, now open", done.stdout), done.stdout
    assert re.search(r"^  power +1[34]\d\d\.\d W ┤ .*█", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^  balance +\d+\.\d{3} sat ┤", done.stdout, re.MULTILINE), done.stdout
    assert ("PRACTICE NODES" in done.stdout) == (kind == "practice")
