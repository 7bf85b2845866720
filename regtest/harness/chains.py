"""A real bitcoind whose way to the network a test has in its hand."""

from __future__ import annotations

import threading

from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import Access
from wattline.core.bitcoin.chain import ChainUnavailable

HELD_S = 30.0


class HeldBitcoind(Bitcoind):
    """Broadcasts nothing before it may."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.wants_to_send = threading.Event()
        self.may_send = threading.Event()

    def broadcast(self, raw: str) -> str:
        self.wants_to_send.set()
        assert self.may_send.wait(HELD_S), "the test did not let it go on"
        return super().broadcast(raw)


class MuteBitcoind(Bitcoind):
    """Answers, but breaks off whenever something is to be broadcast."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.wants_to_send = threading.Event()

    def broadcast(self, raw: str) -> str:
        self.wants_to_send.set()
        raise ChainUnavailable("bitcoind_unavailable", "cut off")
