"""The cable's lightningd, behind the real client: judges every call that reaches it, and answers as a node would."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyln.client import RpcError

from tests.cable.fake_funds import INPUT_WEIGHT, address_of, make_psbt, script_of
from tests.core.lightning.judge import ZBASE32, is_right
from wattline.core.bitcoin.address import script_of as script_of_address
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.lightning.onchain import WalletTx

OWN = "02" + "aa" * 32
FUNDS_SCRIPT = script_of("the cable's coins")
HEIGHT = 500
NOTHING_YET = TxOutput(0, "6a")
"""In the place of the outputs of a PSBT that has none."""
NO_ROUTE, FAILED_ON_THE_WAY = 205, 204


def zbase_of(message: str, node_id: str) -> str:
    """In the form of a signature; it is checked by making it again."""
    digest = hashlib.sha512(f"{node_id}:{message}".encode()).digest() * 2
    return "d9" + "".join(ZBASE32[byte % 32] for byte in digest[:102])


@dataclass
class JudgedNode:
    """One wallet of three coins and one channel to the socket."""

    socket_node_id: str
    coins: dict[Outpoint, int] = field(
        default_factory=lambda: {Outpoint(f"{n:064x}", 0): n * 10_000 for n in (1, 2, 5)}
    )
    reserved: set[Outpoint] = field(default_factory=set)
    mined: list[WalletTx] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What was called as it may not be called."""
    asked: list[str] = field(default_factory=list)
    carries: Callable[[int], bool] = lambda amount_msat: True
    """Whether the channel carries a payment of so much."""
    on_signing: Callable[[list[TxOutput]], None] = lambda outputs: None
    on_payment: Callable[[int], None] = lambda amount_msat: None
    addresses: int = 0
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    routed_msat: int = 0

    def connection(self, path: str, timeout_s: float) -> JudgedNode:
        """In place of the client's own: ``wattline.core.lightning.rpc._Connection``."""
        del path, timeout_s
        return self

    def call(self, method: str, params: dict[str, Any]) -> object:
        self.asked.append(method)
        try:
            right = is_right(method, params)
        except Exception as error:  # noqa: BLE001 - what the judge cannot read is not right
            self.broken.append(f"{method}: {type(error).__name__}: {error}")
            right = True
        if not right:
            self.broken.append(f"{method} was handed {params}")
        answer: Callable[[dict[str, Any]], object] = getattr(self, "_" + method)
        return answer(params)

    # What it answers.

    def _getinfo(self, params: dict[str, Any]) -> object:
        del params
        return {"id": OWN, "network": "regtest", "version": "v26.06.6", "blockheight": HEIGHT}

    def _signmessage(self, params: dict[str, Any]) -> object:
        return {"zbase": zbase_of(params["message"], OWN)}

    def _checkmessage(self, params: dict[str, Any]) -> object:
        return {"verified": params["zbase"] == zbase_of(params["message"], params["pubkey"])}

    def _listfunds(self, params: dict[str, Any]) -> object:
        del params
        spent = {outpoint for tx in self.mined for outpoint in tx.inputs}
        rows = [
            {
                "txid": item.txid, "output": item.vout, "amount_msat": value_sat * 1000, "status": "confirmed",
                "scriptpubkey": FUNDS_SCRIPT, "blockheight": 90, "reserved": item in self.reserved,
            }
            for item, value_sat in self.coins.items()
            if item not in spent
        ]  # fmt: skip
        return {"outputs": rows, "channels": []}

    def _feerates(self, params: dict[str, Any]) -> object:
        del params
        return {"perkw": {"floor": 253, "estimates": []}}

    def _newaddr(self, params: dict[str, Any]) -> object:
        del params
        self.addresses += 1
        return {"p2tr": address_of(f"cable-{self.addresses}")}

    def _utxopsbt(self, params: dict[str, Any]) -> object:
        chosen = [Outpoint.parse(text) for text in params["utxos"]]
        self.reserved |= set(chosen)
        weight = 42 + INPUT_WEIGHT * len(chosen)
        return {"psbt": _text(make_psbt(chosen, [NOTHING_YET])), "estimated_final_weight": weight}

    def _reserveinputs(self, params: dict[str, Any]) -> object:
        inputs = unsigned_tx(base64.b64decode(params["psbt"])).inputs
        self.reserved |= {item.outpoint for item in inputs}
        return {"reservations": [{"reserved": True, "reserved_to_block": HEIGHT + 72} for _ in inputs]}

    def _unreserveinputs(self, params: dict[str, Any]) -> object:
        self.reserved -= unsigned_tx(base64.b64decode(params["psbt"])).outpoints
        return {"reservations": []}

    def _addpsbtoutput(self, params: dict[str, Any]) -> object:
        tx = unsigned_tx(base64.b64decode(params["initialpsbt"]))
        added = TxOutput(int(params["satoshi"][:-3]), script_of_address(params["destination"], "regtest"))
        outputs = [*(output for output in tx.outputs if output != NOTHING_YET), added]
        return {"psbt": _text(make_psbt([item.outpoint for item in tx.inputs], outputs))}

    def _signpsbt(self, params: dict[str, Any]) -> object:
        tx = unsigned_tx(base64.b64decode(params["psbt"]))
        if not tx.outpoints <= self.reserved:
            raise _refusal("signpsbt", -1, "Aborting PSBT signing: UTXO is not reserved")
        if sum(self.coins[item] for item in tx.outpoints) <= sum(output.value_sat for output in tx.outputs):
            self.broken.append(f"signpsbt: {tx.outputs} is more than there is")
        self.on_signing(list(tx.outputs))
        return {"signed_psbt": params["psbt"]}

    def _listtransactions(self, params: dict[str, Any]) -> object:
        del params
        rows = [
            {
                "hash": tx.txid,
                "blockheight": tx.blockheight,
                "inputs": [{"txid": item.txid, "index": item.vout} for item in tx.inputs],
                "outputs": [{"scriptPubKey": script, "amount_msat": sat * 1000} for script, sat in tx.outputs],
            }
            for tx in self.mined
        ]
        return {"transactions": rows}

    def _listinvoices(self, params: dict[str, Any]) -> object:
        del params
        return {"invoices": []}

    def _listconfigs(self, params: dict[str, Any]) -> object:
        del params
        return {"configs": {}}

    def _getroutes(self, params: dict[str, Any]) -> object:
        amount_msat = params["amount_msat"]
        if not self.carries(amount_msat):
            raise _refusal("getroutes", NO_ROUTE, "We could not find a usable set of paths.")
        self.routed_msat = amount_msat
        hop = {
            "short_channel_id_dir": "104x1x0/0", "node_id_out": params["destination"],
            "amount_in_msat": amount_msat, "amount_out_msat": amount_msat, "cltv_in": 60, "cltv_out": 50,
        }  # fmt: skip
        return {"routes": [{"amount_msat": amount_msat, "final_cltv": 50, "path": [hop]}]}

    def _createonion(self, params: dict[str, Any]) -> object:
        return {"onion": "00" * 1366, "shared_secrets": ["aa" * 32 for _ in params["hops"]]}

    def _sendonion(self, params: dict[str, Any]) -> object:
        amount_msat, paid = params["amount_msat"], self.carries(params["amount_msat"])
        if paid:
            self.on_payment(amount_msat)
        self.payments[params["payment_hash"]] = {
            "payment_hash": params["payment_hash"], "status": "complete" if paid else "failed",
            "amount_msat": amount_msat, "amount_sent_msat": amount_msat, "label": params["label"],
            "destination": self.socket_node_id, "created_at": 1, "id": len(self.payments) + 1,
        }  # fmt: skip
        return {}

    def _waitsendpay(self, params: dict[str, Any]) -> object:
        row = self.payments[params["payment_hash"]]
        if row["status"] == "failed":
            data = {"failcodename": "WIRE_TEMPORARY_CHANNEL_FAILURE", "erring_index": 0}
            raise _refusal("waitsendpay", FAILED_ON_THE_WAY, "failed: WIRE_TEMPORARY_CHANNEL_FAILURE", data)
        return row

    def _listsendpays(self, params: dict[str, Any]) -> object:
        row = self.payments.get(params["payment_hash"])
        return {"payments": [] if row is None else [row]}


def _text(psbt: bytes) -> str:
    return base64.b64encode(psbt).decode("ascii")


def _refusal(method: str, code: int, message: str, data: object = None) -> RpcError:
    return RpcError(method, {}, {"code": code, "message": message, "data": data or {}})
