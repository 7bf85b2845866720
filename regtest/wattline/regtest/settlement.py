"""What became of a session's on-chain transaction, as socket, wallet and chain have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.regtest.bitcoind_rpc import SAT_PER_BTC, BitcoindRefusedError
from wattline.regtest.chain import Chain
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Json, Scene
from wattline.regtest.waiting import wait_until

FRAME_WEIGHT = 42
"""Of a segwit transaction without inputs and outputs (BIP 144)."""
INPUT_WEIGHTS = {"witness_v1_taproot": 230, "witness_v0_keyhash": 271}
"""The lightest that spends an output of that kind by its key: a Schnorr signature of 64 bytes (BIP 341), an ECDSA one
of 71 (BIP 143) with the sighash byte and the key. The names are bitcoind's."""
OUTPUT_WEIGHTS = {"witness_v1_taproot": 172, "witness_v0_keyhash": 124}


@dataclass(frozen=True, slots=True)
class Settlement:
    """One transaction for a whole session. Values in sat."""

    increments: int
    """How often it grew."""
    txid: str
    """Of the one that was mined or is to be; empty when nothing was broadcast."""
    fee_sat: int
    """By the chain: what its inputs hold less what its outputs pay."""
    vsize: int
    """By the chain."""
    confirmations: int
    """As the socket tells them."""
    value_sat: int
    """What it pays to the socket, by the chain, once it is in a block."""
    counted_sat: int
    """What the socket's ledger counts on: credited less returned and lost."""
    received_sat: int
    """What the socket's wallet has had at the session's address (listfunds): of this transaction or any other."""

    @property
    def agrees(self) -> bool:
        """Whether ledger, wallet and chain say the same."""
        return self.value_sat == self.counted_sat == self.received_sat


def confirmed(scene: Scene, network: RegtestNetwork, session_id: str, timeout_s: float = 30.0) -> Settlement:
    """Mine a block, and wait until socket and wallet have seen the transaction of a session that is over in it."""
    wait_sent(scene, session_id, timeout_s)
    network.mine(1)
    return seen_in_block(scene, session_id, timeout_s)


def wait_sent(scene: Scene, session_id: str, timeout_s: float = 30.0) -> None:
    """Until the transaction of a session that is over is in the mempool; at once where nothing is owed on-chain."""

    def is_sent() -> bool:
        onchain = scene.session(session_id).get("onchain")
        if onchain is None or onchain["status"] == "void":
            return True
        return onchain["status"] == "sent" and onchain["txid"] in scene.network.chain.call("getrawmempool")

    wait_until("the session's transaction in the mempool", is_sent, timeout_s)


def seen_in_block(scene: Scene, session_id: str, timeout_s: float = 30.0) -> Settlement:
    """Wait until socket and wallet have seen the session's transaction in a block; where there is none, as it is."""

    def seen() -> Settlement | None:
        settlement = settlement_of(scene, session_id)
        return settlement if settlement.txid == "" or (settlement.confirmations and settlement.received_sat) else None

    return wait_until("the session's transaction in a block", seen, timeout_s)


def settlement_of(scene: Scene, session_id: str) -> Settlement:
    """As it stands now."""
    session = scene.session(session_id)
    onchain: Json = session.get("onchain", {})
    txid = onchain.get("mined_txid") or (onchain.get("txid") if onchain.get("status") == "sent" else "") or ""
    counted_msat = (
        session.get("onchain_credited_msat", 0) - session.get("returned_msat", 0) - session.get("missing_msat", 0)
    )
    address = onchain.get("address", "")
    tx = transaction(scene.network.chain, txid) if txid else None
    in_block = tx is not None and tx.get("confirmations", 0) > 0
    return Settlement(
        increments=int(onchain.get("increments", 0)),
        txid=txid,
        fee_sat=_fee_sat(scene.network.chain, tx) if tx is not None else 0,
        vsize=int(tx["vsize"]) if tx is not None else 0,
        confirmations=int(onchain.get("confirmations", 0)),
        value_sat=paid_sat(tx, address) if tx is not None and in_block else 0,
        counted_sat=counted_msat // MSAT_PER_SAT,
        received_sat=sum(
            int(output["amount_msat"]) // MSAT_PER_SAT
            for output in scene.node.rpc.call("listfunds", {"spent": True})["outputs"]
            if output.get("address") == address and output["status"] in ("confirmed", "spent")
        ),
    )


def transaction(chain: Chain, txid: str) -> Json | None:
    """As bitcoind decodes it; None when it knows none of that id."""
    try:
        return dict(chain.call("getrawtransaction", txid, 1))
    except BitcoindRefusedError:
        return None


def paid_sat(tx: Json, address: str) -> int:
    """What a transaction pays to an address."""
    return sum(_sat(out["value"]) for out in tx["vout"] if out["scriptPubKey"].get("address") == address)


def prevouts(chain: Chain, tx: Json) -> list[Json]:
    """The outputs that a transaction spends."""
    return [chain.call("getrawtransaction", item["txid"], 1)["vout"][item["vout"]] for item in tx["vin"]]


def smallest_vsize(input_types: Sequence[str], output_types: Sequence[str]) -> int:
    """Of a transaction with inputs and outputs of those kinds (bitcoind's names), vB."""
    weight = FRAME_WEIGHT + sum(map(INPUT_WEIGHTS.__getitem__, input_types))
    weight += sum(map(OUTPUT_WEIGHTS.__getitem__, output_types))
    return -(-weight // 4)


def _fee_sat(chain: Chain, tx: Json) -> int:
    spent_sat = sum(_sat(output["value"]) for output in prevouts(chain, tx))
    return spent_sat - sum(_sat(output["value"]) for output in tx["vout"])


def _sat(value_btc: Any) -> int:
    return int(Decimal(value_btc) * SAT_PER_BTC)
