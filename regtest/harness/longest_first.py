"""The order in which the workers of a run take up the files of tests: the longest first.

Left to itself pytest-xdist begins with the files of the most tests; a file of a few long ones, begun last, then keeps
one worker busy while the others have nothing left to do. It needs ``--no-loadscope-reorder``, as in the Makefile.
"""

from __future__ import annotations

import pytest

LONGEST = (
    "regtest/test_onchain_crashes.py",
    "regtest/test_onchain_sessions.py",
    "regtest/test_fallback.py",
    "regtest/test_crashes.py",
    "regtest/test_cable.py",
    "tests/cli/test_outlet.py",
    "tests/cable/test_service.py",
    "tests/cable/test_onchain.py",
    "regtest/test_strangers.py",
    "regtest/test_journal.py",
    "regtest/test_replay.py",
    "tests/cli_errors/test_mistakes.py",
    "regtest/test_meters.py",
    "tests/cable/test_unseen.py",
    "tests/device/meters/test_agreement.py",
    "tests/core/ledger/test_aggregate_credit.py",
    "tests/cli/test_start.py",
    "regtest/test_sessions.py",
    "tests/device/relays/test_guard.py",
    "tests/plugin/test_onchain_property.py",
    "tests/cable/test_robberies.py",
    "tests/plugin/test_every_write.py",
    "tests/core/session/test_invariants.py",
    "tests/cable/test_floods.py",
    "regtest/test_faults.py",
    "regtest/test_onchain_demo.py",
    "tests/plugin/test_onchain_settlement.py",
    "regtest/test_left_behind.py",
    "tests/plugin/test_versions.py",
    "tests/plugin/test_input_watch.py",
    "regtest/test_demo.py",
    "tests/plugin/test_older_copy.py",
    "regtest/test_chain_changes.py",
    "regtest/test_onchain_refusals.py",
    "regtest/test_onchain_attacks.py",
    "regtest/test_onchain_floor.py",
    "regtest/test_loading.py",
    "regtest/test_prices.py",
    "tests/cable/test_auto.py",
    "tests/cable/test_final_due.py",
    "tests/cable/test_clocks.py",
    "regtest/test_onchain_nodes.py",
    "tests/plugin/test_floods.py",
    "tests/cli/test_meter.py",
    "tests/plugin/test_limits.py",
    "tests/cable/test_onchain_end.py",
)
"""Those of the long run in front. On two cores with practice nodes from 80 s down to 20 s;
``make test PYTEST_ARGS=--durations=0`` measures anew."""


def put_longest_first(items: list[pytest.Item]) -> None:
    """All other files follow in the order in which they are."""
    rank = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(LONGEST)))
