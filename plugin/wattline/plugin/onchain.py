"""Payments on the chain, put together: the desk where they are handed over and the watch that follows them."""

from __future__ import annotations

from wattline.bitcoin.chain import Chain
from wattline.ledger import Ledger
from wattline.lightning.node import Signer
from wattline.lightning.onchain import ReceivingFunds
from wattline.offering import OnchainSettings
from wattline.plugin.aggregates import Aggregates
from wattline.plugin.chain_watch import ChainWatch
from wattline.plugin.smart_socket import SmartSocket
from wattline.session import Session


class Onchain:
    """What a socket that takes payments on the chain has beside the others
    (:class:`wattline.plugin.settlement.OnchainDesk`). ``network``: lightningd's."""

    def __init__(
        self,
        settings: OnchainSettings,
        network: str,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        signer: Signer,
        seller: SmartSocket,
    ) -> None:
        self.desk = Aggregates(settings, ledger, chain, funds, signer, seller)
        self._watch = ChainWatch(settings, network, ledger, chain, funds, self.desk, seller)

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self.desk.stop()
        self._watch.stop()

    @property
    def trouble(self) -> str:
        return self.desk.trouble

    @property
    def tip_height(self) -> int | None:
        return self._watch.tip_height

    def close(self, session_id: str) -> None:
        self.desk.close(session_id)

    def give_back(self, session: Session) -> int:
        return self.desk.give_back(session)

    def is_owed(self, session: Session) -> bool:
        return self.desk.is_owed(session)

    def lost_msat(self, session_id: str) -> int:
        return self.desk.lost_msat(session_id)

    def conclude(self, session: Session) -> None:
        self.desk.conclude(session)
        self._watch.wake()

    def forget(self, session_id: str) -> None:
        self.desk.forget(session_id)
