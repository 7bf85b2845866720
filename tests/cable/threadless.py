"""A cable's session without threads: what stands in for them, its settings, and who watches it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cable.fakes import SOCKET_NODE
from tests.cable.judged_node import JudgedNode
from tests.cable.test_onchain_caps import Inline
from wattline.cable.opening import Progress
from wattline.cable.pay.keysend import KeysendPayments
from wattline.cable.settings import CableSettings
from wattline.cli.cable_view import Snapshot, snapshot_of

MAX_PREPAID_MSAT, MAX_PREPAID_SAT, MAX_SESSION_SAT = 300_000, 400, 12_000
NODES: dict[str, JudgedNode] = {}
"""By the path under which the client calls them."""


def settings_for(method: str) -> CableSettings:
    meter = {"driver": "ina228", "bus": "sim:toaster", "address": 65, "shunt_ohms": 0.001, "max_current_a": 40}
    return CableSettings.model_validate(
        {
            "socket": {"address": f"{SOCKET_NODE}@127.0.0.1:1"},
            "node": {"rpc": "lightning-rpc"},
            "meter": meter,
            "limits": {
                "max_price_msat_per_kwh": 900_000_000,
                "max_time_price_msat_per_hour": 36_000_000,
                "max_prepaid_msat": MAX_PREPAID_MSAT,
                "max_session_msat": MAX_SESSION_SAT * 1000,
                "max_day_msat": 10**12,
                "energy_tolerance_uwh": 10_000,
            },
            "payment": {"method": method, "pace_ms": 200, "max_failures_in_a_row": 1_000},
            "onchain": {"max_prepaid_sat": MAX_PREPAID_SAT, "max_increment_sat": 300, "max_fee_ratio": 1.0},
        }
    )


class Shown:
    """A listener that keeps all."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.snapshots: list[Snapshot] = []

    def event(self, text: str) -> None:
        self.lines.append(text)

    def show(self, progress: Progress) -> None:
        self.snapshots.append(snapshot_of(progress))


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """All is done at once, and the node is called by its judge."""

    def inline(*_arguments: Any, **_more: Any) -> Inline:
        return Inline()

    def begin(payments: KeysendPayments, name: str, work: Any, *arguments: object) -> None:
        del name
        if not payments._is_stopped:
            work(*arguments)

    patch.setattr("wattline.cable.pay.onchain.ThreadPoolExecutor", inline)
    patch.setattr("wattline.cable.pay.onchain.ANSWER_S", 0.0)
    patch.setattr(KeysendPayments, "_begin", begin)
    patch.setattr("wattline.core.lightning.rpc._Connection", lambda path, timeout_s: NODES[path])
