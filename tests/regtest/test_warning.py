"""A practice node says what it is, whoever looks."""

from __future__ import annotations

from wattline.regtest.node.daemon import WARNING
from wattline.regtest.practice_network import PracticeNetwork


def test_every_start_warns_that_this_is_for_practice_on_stderr_and_in_the_log() -> None:
    assert "PRACTICE" in WARNING
    assert "holds no money" in WARNING
    with PracticeNetwork() as network:
        node = network.node("cable")
        for starts in (1, 2, 3):
            if starts > 1:
                node.restart()
            # What the process writes to stderr goes to the file that is its log, too.
            lines = node.log_path.read_text(encoding="utf-8").splitlines()
            assert lines.count(WARNING) == starts
            assert sum(line.endswith(f"UNUSUAL lightningd: {WARNING}") for line in lines) == starts
