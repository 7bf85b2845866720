"""What payments need and is not there is a line in the status, in the log once, and is not offered to cables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.plugin.fakes import CABLE, FakeJournal, FakeWallet, Stall
from wattline.core.clock import Clock
from wattline.core.errors import StopError
from wattline.core.lightning.node import ChannelBalance, NodeUnavailable
from wattline.plugin.preconditions import NO_CHANNEL, NO_INBOUND, NO_KEYSEND, Preconditions
from wattline.v1 import charging_pb2 as pb


class Node(FakeWallet, FakeJournal):
    def __init__(self) -> None:
        FakeWallet.__init__(self)
        FakeJournal.__init__(self)
        self.has_keysend = True
        self.receivable_msat: list[int] = [1]
        self.is_down = False

    def takes_keysend(self) -> bool:
        if self.is_down:
            raise NodeUnavailable("node_unavailable", "it restarts")
        return self.has_keysend

    def channels(self) -> Sequence[ChannelBalance]:
        return [ChannelBalance(CABLE, "1x1x1", 0, msat) for msat in self.receivable_msat]


@pytest.mark.parametrize(
    ("has_keysend", "receivable_msat", "trouble", "problems"),
    [
        (True, [0, 5], "", []),
        (False, [5], "", [NO_KEYSEND]),
        (True, [], "", [NO_CHANNEL]),
        (True, [0, 0], "", [NO_INBOUND]),
        (False, [], "no bitcoind", [NO_KEYSEND, NO_CHANNEL, "onchain_unavailable: no bitcoind"]),
    ],
)
def test_each_has_a_line_that_says_what_to_do(
    has_keysend: bool, receivable_msat: list[int], trouble: str, problems: list[str]
) -> None:
    node = Node()
    node.has_keysend, node.receivable_msat = has_keysend, receivable_msat
    preconditions = Preconditions(node, node, lambda: trouble, Clock())
    preconditions.look()
    assert list(preconditions.problems) == problems
    assert preconditions.takes_keysend is has_keysend


def test_it_is_logged_once_and_gone_when_it_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.has_keysend = False
    preconditions = Preconditions(node, node, lambda: "", Clock())
    preconditions.look()
    preconditions.look()
    node.is_down = True
    preconditions.look()
    assert list(preconditions.problems) == [NO_KEYSEND], "a node that does not answer has said nothing new"
    assert caplog.text.count("keysend_off") == 1
    node.is_down, node.has_keysend = False, True
    preconditions.look()
    assert (list(preconditions.problems), preconditions.takes_keysend) == ([], True)


def test_a_socket_that_can_take_no_payments_offers_no_way_to_pay(tmp_path: Path) -> None:
    with Stall(tmp_path) as stall:
        stall.app.preconditions.takes_keysend = False
        offer = pb.Offer.FromString(stall.app.requests.offer(bytes(32)).offer)
        assert list(offer.methods) == []
        with pytest.raises(StopError) as caught:
            stall.open()
        assert caught.value.code == "method_not_supported"
        stall.app.preconditions.takes_keysend = True
        stall.open()
