"""What a test needs that may not be on this machine: skipped with the reason, or failed where skips are forbidden."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from wattline.core.errors import WattlineError
from wattline.regtest.bitcoind import find_bitcoind
from wattline.regtest.lightningd import find_lightningd

SKIPPED = "Skipped: needs "
_first_words: dict[str, str] = {}
"""What was said first, by what is needed."""


def need_lightningd() -> None:
    """Fails instead of skipping when ``WATTLINE_REQUIRE_LIGHTNINGD=1``."""
    try:
        find_lightningd()
    except WattlineError as error:
        _not_here(f"needs lightningd: {error.message}")


def need_bitcoind() -> None:
    """Fetches one where it can be had. Fails instead of skipping when ``WATTLINE_REQUIRE_LIGHTNINGD=1`` or
    ``WATTLINE_REQUIRE_BITCOIND=1``."""
    try:
        find_bitcoind()
    except WattlineError as error:
        _not_here(f"needs bitcoind: {error.message}", "WATTLINE_REQUIRE_BITCOIND")


def fold(report: pytest.TestReport) -> None:
    """Let pytest tell a reason once with a count, and not once for each place that a fixture was asked for, nor
    for each process that has found it in words of its own (Debian's archive tells times)."""
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2].startswith(SKIPPED):
        need = report.longrepr[2].removeprefix(SKIPPED).partition(":")[0]
        report.longrepr = (__file__, 1, _first_words.setdefault(need, report.longrepr[2]))


def _not_here(reason: str, *required_by: str) -> NoReturn:
    for name in ("WATTLINE_REQUIRE_LIGHTNINGD", *required_by):
        if os.environ.get(name) == "1":
            pytest.fail(f"{reason} ({name}=1 forbids a skip)", pytrace=False)
    pytest.skip(reason)
