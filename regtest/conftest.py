"""Fixtures with nodes of either kind: every test that uses them runs on practice nodes and on real ones.

Those on real nodes skip with a reason when lightningd or bitcoind cannot be had, and fail instead when
``WATTLINE_REQUIRE_LIGHTNINGD=1``. Practice nodes need a bitcoind for what is paid on the chain: those tests skip where
none can be had, and fail when ``WATTLINE_REQUIRE_BITCOIND=1``. ``-k practice`` or ``-k "not practice"`` chooses one
kind. The end of every node's log is attached to the report of a failed test."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from harness.by_hand import HandCable
from harness.dear_trade import TRADE, end, wait_free
from harness.longest_first import put_longest_first
from harness.needs import fold, need_bitcoind, need_lightningd
from harness.one_dialect import share_compiled_statements

from wattline.regtest.chain import Chain
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.node.bitcoin_blocks import RESCAN
from wattline.regtest.places import Places, make_places
from wattline.regtest.practice_network import PracticeChain, PracticeNetwork
from wattline.regtest.scene import Scene

KINDS = ("practice", "lightningd")
LOG_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    share_compiled_statements()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what it puts into the background deaf to Ctrl-C, and so all that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "lightningd: needs nodes, real or practice; see regtest/conftest.py")
    config.addinivalue_line("markers", "real_only: about bitcoind or lightningd itself, so not for practice nodes")


# After pytest has put together the tests of one kind of node.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about a real node is not tried on a practice one; the rest is put into the order of the run."""
    without = [item for item in items if _kind(item) == "practice" and item.get_closest_marker("real_only") is not None]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    if hasattr(config, "workerinput"):
        # Every worker sorts alike. Without workers pytest's own order saves nodes: those of one kind after the other.
        put_longest_first(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test is skipped or failed before any of its fixtures is made."""
    if item.get_closest_marker("lightningd") is not None and _kind(item) != "practice":
        need_lightningd()


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of node that the test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def chain(kind: str) -> Iterator[Chain]:
    """One chain for the whole run; blocks are shared, so a test counts from the height that it finds."""
    if kind == "practice":
        with PracticeChain() as practised:
            yield practised
        return
    need_lightningd()
    with _bitcoind() as made:
        yield made


@pytest.fixture(scope="session")
def onchain_chain(kind: str, request: pytest.FixtureRequest) -> Iterator[Chain]:
    """One chain of a real bitcoind for the whole run, whatever the kind of node. A test that stops bitcoind starts it
    again."""
    if kind == "practice":
        with _bitcoind() as made:
            yield made
    else:
        yield request.getfixturevalue("chain")


@pytest.fixture
def network(kind: str, chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes for one test."""
    with _network(kind, chain) as made:
        yield made


@pytest.fixture(scope="module")
def module_network(kind: str, chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes that the tests of one module share."""
    with _network(kind, chain) as made:
        yield made


@pytest.fixture
def onchain_network(kind: str, onchain_chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes for one test, each with a wallet on a real bitcoind."""
    # One of the same name in an earlier test had the same keys: too long ago for this one to find its money.
    onchain_chain.mine(RESCAN + 1)
    with _network(kind, onchain_chain) as made:
        yield made


@pytest.fixture(scope="module")
def onchain_module_network(kind: str, onchain_chain: Chain) -> Iterator[RegtestNetwork]:
    """Nodes that the tests of one module share, each with a wallet on a real bitcoind."""
    # One of the same name in an earlier test had the same keys: too long ago for this one to find its money.
    onchain_chain.mine(RESCAN + 1)
    with _network(kind, onchain_chain) as made:
        yield made


@pytest.fixture(scope="module")
def scene(module_network: RegtestNetwork) -> Iterator[Scene]:
    """A socket that sells dear, and two nodes with a channel to it; what the tests of one module share."""
    with Scene(module_network, TRADE) as scene:
        socket = scene.start_node()
        for wallet in module_network.nodes("cable", "other"):
            module_network.open_channel(wallet, socket, 1_000_000, push_msat=200_000_000)
        scene.wait_running()
        yield scene


@pytest.fixture(scope="module")
def wallets(scene: Scene) -> dict[str, Node]:
    """The nodes by their names: socket, cable, other."""
    return {node.name: node for node in scene.network.all_nodes}


@pytest.fixture
def cable(scene: Scene, wallets: dict[str, Node]) -> Iterator[HandCable]:
    """A cable worked by hand at a free outlet; its session is ended afterwards."""
    scene.world.plug(0, "constant-1300")
    wait_free(scene)
    with HandCable(scene, wallets["cable"]) as cable:
        yield cable
        end(scene, cable)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Empty at first; for a process's environment."""
    return make_places(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    fold(report)


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
            report.sections.append(("log of the chain", network.chain.log_tail(LOG_LINES)))
    return report


def _network(kind: str, chain: Chain) -> RegtestNetwork:
    return PracticeNetwork(chain) if kind == "practice" else RegtestNetwork(chain)


def _bitcoind() -> Chain:
    """A chain, not started yet; where there is no bitcoind the test is skipped or failed."""
    need_bitcoind()
    return Chain()


def _kind(item: pytest.Item) -> str | None:
    """``practice`` or ``lightningd``; None for a test that uses no nodes of ours."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("kind") if callspec is not None else None
