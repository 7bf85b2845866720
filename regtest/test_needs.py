from __future__ import annotations

import pytest
from harness.needs import fold


def skipped(reason: str, line: int) -> pytest.TestReport:
    where = ("regtest/test_any.py", line, "any")
    return pytest.TestReport("any", where, {}, "skipped", ("regtest/test_any.py", line, f"Skipped: {reason}"), "setup")


def test_each_need_is_told_once_in_the_words_that_were_said_first() -> None:
    first, again = skipped("needs a moon: full for 1 s", 3), skipped("needs a moon: full for 2 s", 9)
    other, own = skipped("needs a sun: it is night", 3), skipped("not on Mondays: 1", 3)
    for report in (first, again, other, own):
        fold(report)
    assert first.longrepr == again.longrepr
    assert isinstance(first.longrepr, tuple)
    assert isinstance(other.longrepr, tuple)
    assert first.longrepr[2] == "Skipped: needs a moon: full for 1 s"
    assert other.longrepr[2] == "Skipped: needs a sun: it is night"
    assert own.longrepr == ("regtest/test_any.py", 3, "Skipped: not on Mondays: 1")
