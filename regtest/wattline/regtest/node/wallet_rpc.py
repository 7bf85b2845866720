"""Commands of the on-chain wallet (wallet/reservation.c, wallet/walletrpc.c, plugins/txprepare.c), served from a wallet
on a bitcoind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from wattline.regtest.bitcoind_rpc import SAT_PER_BTC
from wattline.regtest.node.bitcoin_wallet import SPENT, BitcoinWallet, Utxo
from wattline.regtest.node.coins import ALL_SAT, DUST_SAT, LIGHTNINGD, P2TR_OUTPUT_WEIGHT, RESERVE_BLOCKS, Change, Coins
from wattline.regtest.node.fault import INVALID_PARAMETERS, UNKNOWN_METHOD, Fault
from wattline.regtest.node.feerates import Feerates
from wattline.regtest.node.movements import Movements
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.psbt import Psbt, PsbtError, PsbtOutput
from wattline.regtest.node.rpc_server import Given, Method, RpcServer

Json = dict[str, Any]
OUTPUT_IS_DUST = 302
_NO_TXID, _NO_VOUT = "00" * 32, 0xFFFFFFFF
"""What a coinbase spends."""
NAMES = (
    "feerates",
    "listtransactions",
    "utxopsbt",
    "reserveinputs",
    "unreserveinputs",
    "addpsbtoutput",
    "signpsbt",
    "sendpsbt",
    "withdraw",
    "bkpr-listincome",
    "bkpr-editdescriptionbyoutpoint",
)


def refuse_all(rpc: RpcServer) -> None:
    """A node without a bitcoind has no such wallet."""
    for name in NAMES:
        rpc.add(name, _refusal(name))


def _refusal(name: str) -> Method:
    async def refuse(given: Given, _: str) -> Json:
        raise Fault(UNKNOWN_METHOD, f"Unknown command '{name}': this practice node has no bitcoind")

    return refuse


class WalletRpc:
    """``height`` tells the node's."""

    def __init__(
        self,
        wallet: BitcoinWallet,
        coins: Coins,
        feerates: Feerates,
        movements: Movements,
        height: Callable[[], int],
        rpc: RpcServer,
    ) -> None:
        self._wallet = wallet
        self._coins = coins
        self._feerates = feerates
        self._height = height
        methods = (
            self._feerates.list,
            self._listtransactions,
            self._utxopsbt,
            self._reserveinputs,
            self._unreserveinputs,
            self._addpsbtoutput,
            self._signpsbt,
            self._sendpsbt,
            self._withdraw,
            movements.income,
            movements.describe,
        )
        for name, method in zip(NAMES, methods, strict=True):
            rpc.add(name, method)

    async def _listtransactions(self, given: Given, _: str) -> Json:
        Parameters(given)
        shown = []
        for row in self._wallet.transactions():
            tx = await self._wallet.ask("decoderawtransaction", row["rawtx"])
            shown.append(_transaction(row, tx))
        return {"transactions": shown}

    # Reservations.

    async def _utxopsbt(self, given: Given, _: str) -> Json:
        params = Parameters(
            given,
            ("satoshi", "feerate", "startweight", "utxos"),
            ("reserve", "reservedok", "locktime", "min_witness_weight", "excess_as_change", "opening_anchor_channel"),
        )
        value_sat = _amount(params, "satoshi")
        feerate = await self._feerates.read(params, "feerate")
        utxos = self._utxos(params)
        funded = await self._coins.funded(
            utxos,
            value_sat,
            feerate,
            params.integer("startweight"),
            params.integer("reserve", RESERVE_BLOCKS),
            locktime=params.integer("locktime", self._height()),
            reserved_ok=params.flag("reservedok", False),
            excess_as_change=params.flag("excess_as_change", False),
            keeps_emergency=params.flag("opening_anchor_channel", False),
        )
        return {
            "psbt": str(funded.psbt),
            "feerate_per_kw": funded.feerate_per_kw,
            "estimated_final_weight": funded.weight,
            "excess_msat": funded.excess_sat * 1000,
            **({"change_outnum": 0} if funded.psbt.outputs else {}),
            **(self._reservations(funded.reservations) if funded.reservations else {}),
        }

    async def _reserveinputs(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("psbt",), ("exclusive", "reserve"))
        utxos, height = self._wallet.owned(_psbt(params, "psbt")), self._height()
        for utxo in utxos:
            if params.flag("exclusive", True) and utxo.is_reserved(height):
                raise Fault(INVALID_PARAMETERS, f"{utxo} already reserved")
            if utxo.status == SPENT:
                raise Fault(INVALID_PARAMETERS, f"{utxo} already spent")
        return self._reservations(self._coins.reserve(utxos, params.integer("reserve", RESERVE_BLOCKS)))

    async def _unreserveinputs(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("psbt",), ("reserve",))
        utxos = self._wallet.owned(_psbt(params, "psbt"))
        return self._reservations(self._coins.unreserve(utxos, params.integer("reserve", RESERVE_BLOCKS)))

    def _reservations(self, changes: Sequence[Change]) -> Json:
        return {"reservations": [_reservation(change, self._height()) for change in changes]}

    # Versions.

    async def _addpsbtoutput(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("satoshi", "initialpsbt", "destination"))
        psbt, value_sat = _psbt(params, "initialpsbt"), _amount(params, "satoshi")
        script = await self._script(params, "destination")
        if value_sat < DUST_SAT:
            raise Fault(OUTPUT_IS_DUST, f"Receive amount is below dust limit ({DUST_SAT}sat)")
        grown = psbt.with_outputs(PsbtOutput(value_sat, script))
        return {"psbt": str(grown), "estimated_added_weight": P2TR_OUTPUT_WEIGHT, "outnum": len(psbt.outputs)}

    async def _signpsbt(self, given: Given, _: str) -> Json:
        return {"signed_psbt": str(await self._coins.signed(_psbt(Parameters(given, ("psbt",)), "psbt")))}

    async def _sendpsbt(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("psbt",), ("reserve",))
        psbt, blocks = _psbt(params, "psbt"), params.integer("reserve", RESERVE_BLOCKS)
        tx, txid = await self._coins.sent(psbt, blocks)
        return {"tx": tx, "txid": txid}

    async def _withdraw(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("destination", "satoshi"), ("feerate", "minconf", "utxos"))
        output = PsbtOutput(_amount(params, "satoshi"), await self._script(params, "destination"))
        feerate = await self._feerates.read(params, "feerate")
        utxos = self._utxos(params) if params.has("utxos") else None
        psbt, tx, txid = await self._coins.pay(output, feerate, utxos, params.integer("minconf", 1), True)
        return {"tx": tx, "txid": txid, "psbt": str(psbt)}

    async def _script(self, params: Parameters, name: str) -> bytes:
        script = await self._wallet.script_of(params.text(name))
        if script is None:
            raise Fault(LIGHTNINGD, f"Could not parse destination address, {name} should be a valid address")
        return bytes.fromhex(script)

    def _utxos(self, params: Parameters) -> list[Utxo]:
        """param_txout."""
        given = params.raw("utxos")
        if not isinstance(given, list) or not given:
            raise Fault(INVALID_PARAMETERS, f"Please specify an array of 'txid:output_index', not \"{given}\"")
        return [self._utxo(str(text)) for text in given]

    def _utxo(self, text: str) -> Utxo:
        txid, colon, vout = text.partition(":")
        if not colon:
            raise Fault(
                INVALID_PARAMETERS,
                f"Could not decode the outpoint from \"{text}\" The utxos should be specified as 'txid:output_index'.",
            )
        if not re.fullmatch(r"[0-9a-f]{64}", txid):
            raise Fault(INVALID_PARAMETERS, f'Could not get a txid out of "{txid}"')
        if not vout.isdecimal():
            raise Fault(INVALID_PARAMETERS, f'Could not get a vout out of "{vout}"')
        utxo = self._wallet.output(txid, int(vout))
        if utxo is None:
            raise Fault(INVALID_PARAMETERS, f"Unknown UTXO {text}")
        if utxo.status == SPENT:
            raise Fault(INVALID_PARAMETERS, f"Already spent UTXO {text}")
        return utxo


def _psbt(params: Parameters, name: str) -> Psbt:
    try:
        return Psbt.parse(params.text(name))
    except PsbtError:
        raise params.invalid(name, "Expected a PSBT") from None


def _amount(params: Parameters, name: str) -> int:
    """In sat: a bare number is satoshi here."""
    if params.text(name) == "all":
        return ALL_SAT
    match = re.fullmatch(r"([0-9]+)(sat|000msat)?", params.text(name))
    if match is None:
        raise params.invalid(name, "should be a satoshi amount")
    return int(match[1])


def _reservation(change: Change, height: int) -> Json:
    after = change.after
    is_reserved = after.is_reserved(height)
    return {
        "txid": after.txid,
        "vout": after.vout,
        "was_reserved": change.before.is_reserved(height),
        "reserved": is_reserved,
        **({"reserved_to_block": after.reserved_til} if is_reserved else {}),
    }


def _transaction(row: Json, tx: Json) -> Json:
    """One element of ``listtransactions``."""
    return {
        "hash": row["txid"],
        "rawtx": row["rawtx"],
        "blockheight": row["blockheight"] or 0,
        "txindex": row["txindex"],
        "locktime": tx["locktime"],
        "version": tx["version"],
        "inputs": [
            {"txid": one.get("txid", _NO_TXID), "index": one.get("vout", _NO_VOUT), "sequence": one["sequence"]}
            for one in tx["vin"]
        ],
        "outputs": [
            {
                "index": one["n"],
                "amount_msat": int(one["value"] * SAT_PER_BTC) * 1000,
                "scriptPubKey": one["scriptPubKey"]["hex"],
            }
            for one in tx["vout"]
        ],
    }
