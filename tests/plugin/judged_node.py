"""The socket's lightningd behind the real client: what is called with a value that the gate would not let through, or
that the judge finds wrong, is written down for the test to fail of."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from pyln.client import RpcError

from tests.cable.judged_node import JudgedNode, zbase_of
from tests.plugin.fake_chain import FakeChain
from tests.plugin.fakes import CABLE, SOCKET
from wattline.core.bitcoin.psbt import signed_tx
from wattline.core.lightning import checked_calls as gate
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.rpc import NodeRpc


class SellingNode(JudgedNode):
    """With a channel to the cable, and the wallet that sessions are paid to on the chain."""

    def __init__(self, chain: FakeChain) -> None:
        super().__init__(CABLE)
        self._chain = chain
        rpc = JudgedRpc(self)
        self.lightning, self.funds = CoreLightning("judged"), CoreLightningFunds(rpc)
        self.lightning.rpc = rpc

    def _getinfo(self, params: dict[str, Any]) -> object:
        return {**super()._getinfo(params), "id": SOCKET}  # type: ignore[dict-item]

    def _signmessage(self, params: dict[str, Any]) -> object:
        return {"zbase": zbase_of(params["message"], SOCKET)}

    def _listfunds(self, params: dict[str, Any]) -> object:
        del params
        return {"outputs": [], "channels": []}

    def _listpeerchannels(self, params: dict[str, Any]) -> object:
        del params
        return {"channels": []}

    def _sendpsbt(self, params: dict[str, Any]) -> object:
        tx = signed_tx(base64.b64decode(params["psbt"]))
        self._chain.offer(tx)
        return {"txid": tx.txid, "tx": tx.raw}


class JudgedRpc(NodeRpc):
    """In front of the gate: a call that only the gate would have kept back was not parsed where it was made."""

    def __init__(self, node: SellingNode) -> None:
        super().__init__("judged")
        self._node = node

    def call(self, method: str, params: Mapping[str, Any] | None = None, takes_s: float = 0.0) -> dict[str, Any]:
        del takes_s
        fault = gate.fault(method, params or {})
        if fault is not None:
            self._node.broken.append(fault)
        try:
            answer = self._node.call(method, dict(params or {}))
        except RpcError as error:
            raise self._refusal(method, error.error) from error
        assert isinstance(answer, dict)
        return answer
