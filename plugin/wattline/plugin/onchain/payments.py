"""Payments on the chain, put together: the desk where they are handed over, the choice of what is broadcast, and
the watch that follows it."""

from __future__ import annotations

import time
from collections.abc import Callable

from wattline.core.bitcoin.chain import Chain
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.node import Signer
from wattline.core.lightning.onchain import ReceivingFunds
from wattline.core.session.session import Session
from wattline.plugin.crediting import SmartSocket
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.onchain.decision import BroadcastDecision
from wattline.plugin.onchain.input_watch import InputWatch
from wattline.plugin.onchain.intake import VersionIntake
from wattline.plugin.onchain.sessions import OpenAggregates
from wattline.plugin.settings import OnchainSettings


class Onchain:
    """What a socket that takes payments on the chain has beside the others
    (:class:`wattline.plugin.closing.OnchainDesk`). ``node_id`` and ``network``: lightningd's."""

    def __init__(
        self,
        settings: OnchainSettings,
        node_id: str,
        network: str,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        signer: Signer,
        seller: SmartSocket,
        copy: OlderCopy,
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``now``: Unix seconds; ``clock``: monotonic, in s."""
        desks = OpenAggregates()
        self.desk = VersionIntake(settings, ledger, chain, funds, signer, node_id, network, seller, desks, now)
        self.choice = BroadcastDecision(settings, ledger, seller, desks, copy, now, clock)
        self.watch = InputWatch(
            settings, network, ledger, chain, funds, self.desk, self.choice, seller, copy, now, clock
        )

    def start(self) -> None:
        self.watch.start()

    def stop(self) -> None:
        self.choice.stop()
        self.watch.stop()

    @property
    def trouble(self) -> str:
        return "; ".join(filter(None, [self.desk.trouble, *self.watch.troubles]))

    @property
    def tip_height(self) -> int | None:
        return self.watch.tip_height

    def accept_chain(self, reason: str) -> None:
        """The operator says that the chain is the right one."""
        self.watch.identity.accept(reason)
        self.watch.wake()

    def close(self, session_id: str) -> None:
        self.choice.is_put_off(session_id)  # for a while it is waited for
        self.desk.close(session_id)

    def give_back(self, session: Session) -> int:
        return self.choice.give_back(session)

    def is_owed(self, session: Session) -> bool:
        return self.choice.is_owed(session)

    def lost_msat(self, session_id: str) -> int:
        return self.choice.lost_msat(session_id)

    def conclude(self, session: Session) -> None:
        self.choice.conclude(session)
        self.watch.wake()

    def forget(self, session_id: str) -> None:
        self.desk.forget(session_id)
