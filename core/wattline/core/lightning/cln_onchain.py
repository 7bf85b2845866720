"""Core Lightning's on-chain wallet behind the PayingFunds and ReceivingFunds Protocols."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from wattline.core.bitcoin.address import address_of, is_plain
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.errors import RetryError
from wattline.core.lightning.node import NodeRefused
from wattline.core.lightning.onchain import EMPTY_TX_WEIGHT, RESERVE_BLOCKS, Base, Income, WalletOutput, WalletTx
from wattline.core.lightning.rpc import NodeRpc, RpcRefused, msat_of, reading

MSAT_PER_SAT = 1000
ESTIMATE_BLOCKS = 6
FOREVER_BLOCKS = 1_000_000
"""More than any reservation lasts. lightningd adds it to a height in 32 bits: the largest number would overflow."""

# common/jsonrpc_errors.h
_UNSPECIFIED = -1
_NO_EMERGENCY_FUNDS = 313
# What tells one of its unspecified errors from another (wallet/walletrpc.c), and bitcoind's code within.
_NOT_RESERVED = "is not reserved"
_NOT_BROADCAST = "Error broadcasting transaction"
_ALREADY_MINED = "error code: -27"


class CoreLightningFunds:
    """The wallet of one lightningd. Thread-safe, with any number of calls under way."""

    def __init__(self, rpc: NodeRpc) -> None:
        self._rpc = rpc
        self._known_network: str | None = None

    # --- both sides ---------------------------------------------------------------------------------------------------

    def new_address(self) -> str:
        answer = self._rpc.call("newaddr", {"addresstype": "p2tr"})
        with reading("newaddr"):
            return str(answer["p2tr"])

    def feerate_per_kw(self) -> int:
        answer = self._rpc.call("feerates", {"style": "perkw"})
        with reading("feerates"):
            rates = answer["perkw"]
            floor = int(rates["floor"])
            estimates = {int(row["blockcount"]): int(row["feerate"]) for row in rates.get("estimates", [])}
            near = [blocks for blocks in estimates if blocks <= ESTIMATE_BLOCKS]
            return max(floor, estimates[max(near)]) if near else floor

    # --- PayingFunds --------------------------------------------------------------------------------------------------

    def outputs(self) -> Sequence[WalletOutput]:
        answer = self._rpc.call("listfunds")
        with reading("listfunds"):
            found = [
                WalletOutput(
                    Outpoint(row["txid"], int(row["output"])),
                    msat_of(row["amount_msat"]) // MSAT_PER_SAT,
                    int(row["blockheight"]),
                )
                for row in answer["outputs"]
                if row["status"] == "confirmed" and not row["reserved"] and is_plain(row["scriptpubkey"])
            ]
        # Others may be spent only after a delay (outputs of an anchor channel), or with more weight than expected.
        return sorted(found, key=lambda output: (-output.value_sat, output.outpoint))

    def reserve(self, outpoints: Sequence[Outpoint]) -> Base:
        """As in the Protocol. Raises NodeRefused ``funds_kept_back`` when lightningd wants to keep some of it for its
        anchor channels (``min-emergency-msat``), and the rest of the wallet does not hold as much."""
        floor = self._rpc.call("feerates", {"style": "perkw"})
        with reading("feerates"):
            floor_per_kw = int(floor["perkw"]["floor"])
        params = {
            # No output of its own, and no change: what the inputs hold is "excess", which is left alone.
            "satoshi": 0,
            "feerate": f"{floor_per_kw}perkw",
            "startweight": EMPTY_TX_WEIGHT,
            "utxos": [str(outpoint) for outpoint in outpoints],
            "locktime": 0,
            "reserve": RESERVE_BLOCKS,
        }
        try:
            answer = self._rpc.call("utxopsbt", params)
        except RpcRefused as error:
            if error.rpc_code == _NO_EMERGENCY_FUNDS:
                raise _kept_back(error.message) from error
            raise
        with reading("utxopsbt"):
            base = Base(answer["psbt"], int(answer["estimated_final_weight"]))
        if "change_outnum" in answer:
            # With an anchor channel lightningd adds an output for its emergency reserve (wallet/reservation.c).
            self.release(base)
            raise _kept_back("utxopsbt: they are all that the wallet holds")
        return base

    def height(self) -> int:
        answer = self._rpc.call("getinfo")
        with reading("getinfo"):
            return int(answer["blockheight"])

    def renew(self, base: Base) -> None:
        # A second reservation adds its blocks to what is left of the first (wallet/wallet.c, wallet_reserve_utxo), so
        # the surplus is taken off again: the inputs are never unreserved in between, nor reserved ever longer.
        answer = self._rpc.call("reserveinputs", {"psbt": base.psbt, "exclusive": False, "reserve": RESERVE_BLOCKS})
        with reading("reserveinputs"):
            rows = answer["reservations"]
            if not rows or not all(row["reserved"] for row in rows):
                raise NodeRefused("inputs_unknown", "reserveinputs: the wallet does not know these inputs")
            until = min(int(row["reserved_to_block"]) for row in rows)
        surplus = until - (self.height() + RESERVE_BLOCKS)
        if surplus > 0:
            self._rpc.call("unreserveinputs", {"psbt": base.psbt, "reserve": surplus})

    def release(self, base: Base) -> None:
        self._rpc.call("unreserveinputs", {"psbt": base.psbt, "reserve": FOREVER_BLOCKS})

    def sign(self, base: Base, outputs: Sequence[TxOutput]) -> bytes:
        """As in the Protocol. Raises NodeRefused ``reservation_lapsed`` when the inputs have to be renewed first."""
        psbt = base.psbt
        destinations = [address_of(output.script, self._network()) for output in outputs]
        for output, destination in zip(outputs, destinations, strict=True):
            params = {"satoshi": f"{output.value_sat}sat", "initialpsbt": psbt, "destination": destination}
            answer = self._rpc.call("addpsbtoutput", params)
            with reading("addpsbtoutput"):
                psbt = answer["psbt"]
        try:
            signed = self._rpc.call("signpsbt", {"psbt": psbt})
        except RpcRefused as error:
            if error.rpc_code == _UNSPECIFIED and _NOT_RESERVED in error.message:
                raise NodeRefused("reservation_lapsed", error.message, error.rpc_code) from error
            raise
        with reading("signpsbt"):
            return base64.b64decode(signed["signed_psbt"], validate=True)

    def spender(self, outpoint: Outpoint) -> WalletTx | None:
        # All transactions since the node began are asked for only when the output is no longer in the wallet.
        funds = self._rpc.call("listfunds")
        with reading("listfunds"):
            if any(row["txid"] == outpoint.txid and row["output"] == outpoint.vout for row in funds["outputs"]):
                return None
        answer = self._rpc.call("listtransactions")
        with reading("listtransactions"):
            spenders = [found for found in map(_wallet_tx, answer["transactions"]) if outpoint in found.inputs]
        # Of several that were seen, the one in a block is what happened.
        return max(spenders, key=lambda found: found.blockheight, default=None)

    # --- ReceivingFunds -----------------------------------------------------------------------------------------------

    def income(self, script: str) -> Sequence[Income]:
        answer = self._rpc.call("listfunds", {"spent": True})
        with reading("listfunds"):
            rows = [row for row in answer["outputs"] if row["scriptpubkey"] == script]
            heights = {row["txid"]: int(row.get("blockheight", 0)) for row in rows}
        if not all(heights.values()):
            # Of one that is spent it does not say in which block it was (wallet/walletrpc.c, json_add_utxo).
            seen = self._rpc.call("listtransactions")
            with reading("listtransactions"):
                heights |= {
                    row["hash"]: int(row["blockheight"]) for row in seen["transactions"] if row["hash"] in heights
                }
        with reading("listfunds"):
            return [
                Income(
                    Outpoint(row["txid"], int(row["output"])),
                    msat_of(row["amount_msat"]) // MSAT_PER_SAT,
                    heights[row["txid"]],
                )
                for row in rows
            ]

    def send(self, psbt: str) -> str:
        """As in the Protocol. Raises NodeRefused ``already_mined``, or ``broadcast_refused`` with bitcoind's reason."""
        try:
            answer = self._rpc.call("sendpsbt", {"psbt": psbt})
        except RpcRefused as error:
            if error.rpc_code == _UNSPECIFIED and _NOT_BROADCAST in error.message:
                # The whole transaction comes after the reason, whose line breaks are told as backslash and n.
                reason = error.message.partition(" Unsent tx discarded")[0].replace("\\n", " ").strip()
                code = "already_mined" if _ALREADY_MINED in reason else "broadcast_refused"
                raise NodeRefused(code, reason, error.rpc_code) from error
            raise
        with reading("sendpsbt"):
            return str(answer["txid"])

    def bump(self, outpoint: Outpoint, feerate_per_kw: int) -> str:
        answer = self._rpc.call(
            "withdraw",
            {
                "destination": self.new_address(),
                "satoshi": "all",
                "feerate": f"{feerate_per_kw}perkw",
                "minconf": 0,
                "utxos": [str(outpoint)],
            },
        )
        with reading("withdraw"):
            return str(answer["txid"])

    def describe_income(self, outpoint: Outpoint, text: str) -> None:
        """As in the Protocol. Raises RetryError ``income_not_booked`` while the bookkeeper has not seen the deposit."""
        answer = self._rpc.call("bkpr-editdescriptionbyoutpoint", {"outpoint": str(outpoint), "description": text})
        with reading("bkpr-editdescriptionbyoutpoint"):
            booked = bool(answer["updated"])
        if not booked:
            raise RetryError("income_not_booked", f"the bookkeeper has no deposit {outpoint} yet")

    def bitcoin_options(self) -> Mapping[str, str]:
        answer = self._rpc.call("listconfigs")
        with reading("listconfigs"):
            options = {name: row for name, row in answer["configs"].items() if name.startswith("bitcoin-")}
            return {
                name: str(row.get("value_str", row.get("value_int")))
                for name, row in options.items()
                if "value_str" in row or "value_int" in row
            }

    def _network(self) -> str:
        """A node never changes it."""
        if self._known_network is None:
            answer = self._rpc.call("getinfo")
            with reading("getinfo"):
                self._known_network = str(answer["network"])
        return self._known_network


def _kept_back(message: str) -> NodeRefused:
    return NodeRefused(
        "funds_kept_back",
        "lightningd keeps some funds for its anchor channels (min-emergency-msat), so not all outputs of its wallet "
        f"can be used: {message}; put a further output into the wallet",
    )


def _wallet_tx(row: Mapping[str, Any]) -> WalletTx:
    return WalletTx(
        row["hash"],
        int(row["blockheight"]),
        frozenset(Outpoint(item["txid"], int(item["index"])) for item in row["inputs"]),
        tuple((item["scriptPubKey"], msat_of(item["amount_msat"]) // MSAT_PER_SAT) for item in row["outputs"]),
    )
