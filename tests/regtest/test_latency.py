"""How long a payment takes between practice nodes: about as long as between real ones, not no time at all."""

from __future__ import annotations

import time
from statistics import median

from harness.scenarios import FINAL_CLTV, pay

from wattline.core.lightning.cln import CoreLightning
from wattline.regtest.practice_network import PracticeNetwork

QUICKEST_MS = 50
"""Two messages of 25 ms: what no machine can be quicker than."""
SLOWEST_MS = 1000
"""Fifteen times what two real nodes on an idle machine took: this one may be busy."""


def test_a_payment_takes_about_as_long_as_between_real_nodes() -> None:
    with PracticeNetwork() as network:
        cable, socket = network.nodes("cable", "socket")
        network.open_channel(cable, socket, 1_000_000)
        wallet = CoreLightning(cable.rpc_path)
        route = wallet.find_route(socket.node_id, 10_000, 0, FINAL_CLTV)
        took_ms = []
        for number in range(1, 12):
            begun = time.monotonic()
            pay(wallet, route, number)
            took_ms.append((time.monotonic() - begun) * 1000)
    assert min(took_ms) >= QUICKEST_MS
    assert median(took_ms) < SLOWEST_MS, took_ms
