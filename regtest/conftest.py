"""Fixtures with real nodes: they skip with a reason when lightningd or bitcoind cannot be had, and fail instead when
``WATTLINE_REQUIRE_LIGHTNINGD=1``; the end of every node's log is attached to the report of a failed test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import NoReturn

import pytest

from wattline.errors import WattlineError
from wattline.practice.chain import Chain
from wattline.practice.lightningd import find_lightningd
from wattline.practice.network import RegtestNetwork

LOG_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lightningd: needs a real lightningd and bitcoind; see regtest/conftest.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test is skipped or failed before any of its fixtures is made."""
    if item.get_closest_marker("lightningd") is not None:
        _need_lightningd()


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """One bitcoind for the whole run; blocks are shared, so a test counts from the height that it finds."""
    _need_lightningd()
    try:
        made = Chain()
    except WattlineError as error:
        _not_here(f"needs bitcoind: {error.message}")
    with made:
        yield made


@pytest.fixture
def network(chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes for one test."""
    with RegtestNetwork(chain) as made:
        yield made


@pytest.fixture(scope="module")
def module_network(chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes that the tests of one module share."""
    with RegtestNetwork(chain) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        networks = {id(value): value for value in item.funcargs.values() if isinstance(value, RegtestNetwork)}
        for network in networks.values():
            network.keep_logs = True
            for node in network.all_nodes:
                report.sections.append((f"log of {node.name}: {node.log_path}", node.log_tail(LOG_LINES)))
            report.sections.append(("log of bitcoind", network.chain.log_tail(LOG_LINES)))
    return report


def _need_lightningd() -> None:
    try:
        find_lightningd()
    except WattlineError as error:
        _not_here(f"needs lightningd: {error.message}")


def _not_here(reason: str) -> NoReturn:
    if os.environ.get("WATTLINE_REQUIRE_LIGHTNINGD") == "1":
        pytest.fail(f"{reason} (WATTLINE_REQUIRE_LIGHTNINGD=1 forbids a skip)", pytrace=False)
    pytest.skip(reason)
