"""The harness itself: nodes, channels, and payments by lightningd's own commands."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pyln.client import RpcError

from wattline.core.errors import StopError
from wattline.regtest.bitcoind_rpc import BitcoindRefusedError
from wattline.regtest.chain import Chain
from wattline.regtest.daemon import Daemon, DaemonDiedError
from wattline.regtest.lightningd import XKEYSEND_SINCE, Node
from wattline.regtest.network import Channel, RegtestNetwork
from wattline.regtest.waiting import DeadlineError, wait_until

pytestmark = pytest.mark.lightningd

PUSH_MSAT = 400_000_000


@pytest.fixture(scope="module")
def pair(module_network: RegtestNetwork) -> Channel:
    cable, socket = module_network.nodes("cable", "socket", allow_deprecated_apis="true")
    return module_network.open_channel(cable, socket, 1_000_000, push_msat=PUSH_MSAT)


def received_msat(node: Node) -> int:
    paid = [row for row in node.rpc.listinvoices()["invoices"] if row["status"] == "paid"]
    return sum(row["amount_received_msat"] for row in paid)


def has_received(node: Node, amount_msat: int) -> bool:
    return received_msat(node) == amount_msat


def session_of(node: Node) -> list[int]:
    """lightningd and the processes that it started."""
    stats = [path.read_text().rpartition(")") for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(head.split()[0]) for head, _, fields in stats if int(fields.split()[3]) == node.pid]


def is_alive(pid: int) -> bool:
    """Whether the process still runs; one that has ended and waits for init to collect it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def to_us_msat(node: Node, scid: str) -> int:
    """Once no payment is on its way."""

    def look() -> int | None:
        (channel,) = [row for row in node.rpc.listpeerchannels()["channels"] if row.get("short_channel_id") == scid]
        return int(channel["to_us_msat"]) if not channel["htlcs"] else None

    return wait_until("the channel to be at rest", look)


def test_a_channel_starts_with_the_pushed_amount_on_the_other_side(pair: Channel) -> None:
    assert to_us_msat(pair.peer, pair.short_channel_id) == PUSH_MSAT
    assert to_us_msat(pair.opener, pair.short_channel_id) == 1_000_000_000 - PUSH_MSAT


@pytest.mark.parametrize("command", ["xkeysend", "keysend"])
def test_a_keysend_is_paid_in_both_directions(pair: Channel, command: str) -> None:
    if command == "xkeysend" and pair.opener.program.version < XKEYSEND_SINCE:
        pytest.skip(f"{pair.opener.program.version_text} of lightningd has no xkeysend")
    for payer, payee in ((pair.opener, pair.peer), (pair.peer, pair.opener)):
        before = received_msat(payee)
        payer.rpc.call(command, {"destination": payee.node_id, "amount_msat": 12_345})
        wait_until("the invoice to be paid", partial(has_received, payee, before + 12_345))


def test_a_restart_keeps_the_channel_and_its_balance(module_network: RegtestNetwork, pair: Channel) -> None:
    socket = pair.peer
    before, pid = to_us_msat(socket, pair.short_channel_id), socket.pid
    socket.restart()
    assert socket.pid != pid
    assert to_us_msat(socket, pair.short_channel_id) == before
    module_network.wait_for_channel(pair)
    pair.opener.keysend(socket, 1_000)


@pytest.mark.parametrize("which", ["opener", "peer"])
def test_a_killed_node_reconnects_and_is_paid_again(module_network: RegtestNetwork, pair: Channel, which: str) -> None:
    victim: Node = getattr(pair, which)
    node_id = victim.node_id
    victim.kill()
    assert not victim.is_running
    victim.start()
    assert victim.node_id == node_id
    module_network.wait_for_channel(pair)
    pair.opener.keysend(pair.peer, 1_000)


def test_a_line_of_three_nodes_routes_both_ways_for_a_fee(network: RegtestNetwork) -> None:
    cable, hub, socket = network.nodes("cable", "hub", "socket")
    network.line(cable, hub, socket)
    for payer, payee in ((cable, socket), (socket, cable)):
        paid = payer.keysend(payee, 1_000_000)
        assert paid["amount_msat"] == 1_000_000
        assert paid["amount_sent_msat"] > 1_000_000


def test_an_unannounced_channel_is_usable_and_not_told_to_others(network: RegtestNetwork) -> None:
    cable, socket = network.nodes("cable", "socket")
    channel = network.open_channel(cable, socket, 500_000, announce=False)
    cable.keysend(socket, 1_000)
    (row,) = socket.rpc.listpeerchannels(cable.node_id)["channels"]
    assert row["private"]
    assert socket.rpc.listchannels(channel.short_channel_id)["channels"] == []


def test_all_running_nodes_have_seen_what_was_mined(module_network: RegtestNetwork, pair: Channel) -> None:
    height = module_network.mine(2)
    assert [pair.opener.blockheight, pair.peer.blockheight] == [height, height]


def test_a_network_leaves_no_process_and_no_file_behind_after_an_exception(
    chain: Chain, network: RegtestNetwork
) -> None:
    pids: list[int] = []
    network = type(network)(chain)

    class BurntToastError(Exception):
        pass

    def run() -> None:
        with network:
            crashed, stopped, running = network.nodes("crashed", "stopped", "running")
            pids.extend(pid for node in (crashed, stopped, running) for pid in session_of(node))
            crashed.kill()
            stopped.stop()
            raise BurntToastError

    with pytest.raises(BurntToastError):
        run()
    assert len(pids) >= 3, "lightningd has plugins and subdaemons besides"
    assert [pid for pid in pids if is_alive(pid)] == []
    assert network.directory.exists(), "the logs of a failure are kept"
    network.close()
    assert not network.directory.exists()


def test_a_node_that_cannot_start_says_why(network: RegtestNetwork) -> None:
    with pytest.raises(DaemonDiedError, match="no-such-option"):
        network.node("cable", no_such_option=True)


def test_an_option_changed_before_a_restart_takes_effect(network: RegtestNetwork) -> None:
    node = network.node("cable")
    node.set_option("alias", "crumb")
    node.restart()
    assert node.rpc.getinfo()["alias"] == "crumb"


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_without_lightningd_on_path_a_test_skips_or_fails_as_asked(required: str, outcome: str) -> None:
    environment = {**os.environ, "PATH": "/nonexistent", "WATTLINE_REQUIRE_LIGHTNINGD": required}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", "names_what_was_missing", "-p", "no:cacheprovider"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert outcome in result.stdout
    assert "lightningd is not on PATH" in result.stdout


def test_a_plugin_is_started_with_its_options_and_stopped(network: RegtestNetwork, tmp_path: Path) -> None:
    plugin = tmp_path / "greeter.py"
    plugin.write_text(GREETER)
    plugin.chmod(0o755)
    node = network.node("cable")
    node.start_plugin(plugin, greeter_name="toast")
    assert node.rpc.call("greet")["hello"] == "toast"
    node.stop_plugin(plugin)
    with pytest.raises(RpcError, match="Unknown command"):
        node.rpc.call("greet")
    with pytest.raises(StopError, match="plugin start"):
        node.start_plugin(tmp_path / "missing.py")


def test_a_child_that_outlives_a_crash_is_ended_at_the_close(tmp_path: Path) -> None:
    script = "trap '' TERM HUP; sleep 600 & echo $! > child; wait"
    daemon = Daemon("stubborn", ["/bin/sh", "-c", script], tmp_path / "log", os.environ)
    daemon.start()
    child = int(wait_until("the child's number", lambda: _text(tmp_path / "child")))
    daemon.kill()
    assert is_alive(child)
    daemon.close(children_timeout_s=0.2)
    wait_until("the child to end", lambda: not is_alive(child), timeout_s=5)


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


@pytest.mark.real_only
def test_a_refusal_of_bitcoind_keeps_its_code(chain: Chain) -> None:
    with pytest.raises(BitcoindRefusedError) as caught:
        chain.call("getblockhash", 10_000_000)
    assert caught.value.rpc_code == -8


def test_a_wait_names_what_was_missing() -> None:
    with pytest.raises(DeadlineError, match=r"for: the toast .*last seen: 'bread'"):
        wait_until("the toast", _only_bread, timeout_s=0.0)


def _only_bread() -> bool:
    raise DeadlineError("deadline", "bread")


GREETER = f"""#!{sys.executable}
from pyln.client import Plugin

plugin = Plugin()
plugin.add_option("greeter-name", "nobody", "whom to greet")


@plugin.method("greet")
def greet(plugin):
    return {{"hello": plugin.get_option("greeter-name")}}


plugin.run()
"""
