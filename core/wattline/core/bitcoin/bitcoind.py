"""bitcoind behind the Chain Protocol: what wattline asks, in bitcoind's words, and its answers as our own types.

Needs bitcoind v24 (``gettxspendingprevout``) or newer, without a wallet and without any index; a pruned one will do as
long as it keeps the blocks of the sessions that are not settled yet. Source of all shapes: bitcoind's own ``help``.

bitcoind's answers as wattline's own types: amounts in satoshi, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

from wattline.core.bitcoin.bitcoind_rpc import Access, BitcoindRpc
from wattline.core.bitcoin.chain import (
    BlockPruned,
    BroadcastRefused,
    ChainRefused,
    ChainUnavailable,
    Floor,
    MinedTx,
    Outpoint,
    Tip,
    Tx,
    TxInput,
    TxOutput,
    Unspent,
    Verdict,
)
from wattline.core.bitcoin.transaction import read_tx
from wattline.core.errors import StopError

SAT_PER_BTC = 100_000_000
VBYTES_PER_KW = 250
"""1000 weight units are 250 virtual bytes (BIP 141)."""

_NO_OUTPOINT = Outpoint("00" * 32, 0xFFFFFFFF)
"""What a coinbase's only input spends."""


def sat_of(amount_btc: Decimal | int) -> int:
    """An amount in BTC as satoshi. Raises ValueError when it is no whole number of them, or no exact number at all."""
    if not isinstance(amount_btc, (Decimal, int)) or isinstance(amount_btc, bool):
        raise ValueError(f"{amount_btc!r} is no exact amount")  # noqa: TRY004 - a value of bitcoind's, no caller's mistake
    value = Fraction(amount_btc) * SAT_PER_BTC
    if value.denominator != 1:
        raise ValueError(f"{amount_btc} BTC are no whole number of satoshi")
    return int(value)


def feerate_per_kw_of(feerate_btc_per_kvb: Decimal | int) -> int:
    """A fee rate in BTC per 1000 virtual bytes as satoshi per 1000 weight units, rounded up."""
    return -(-sat_of(feerate_btc_per_kvb) * VBYTES_PER_KW // 1000)


def tx_of(row: Mapping[str, Any], raw: str) -> Tx:
    """A transaction as ``decoderawtransaction`` and ``getblock`` tell it, whose serialization is ``raw``. Raises
    KeyError, TypeError or ValueError for anything else."""
    return Tx(
        txid=row["txid"],
        version=row["version"],
        locktime=row["locktime"],
        inputs=tuple(_input_of(item) for item in row["vin"]),
        outputs=tuple(TxOutput(sat_of(item["value"]), item["scriptPubKey"]["hex"]) for item in row["vout"]),
        vsize=row["vsize"],
        raw=raw,
    )


def _input_of(item: Mapping[str, Any]) -> TxInput:
    if "coinbase" in item:
        return TxInput(_NO_OUTPOINT, item["sequence"])
    outpoint = Outpoint(item["txid"], item["vout"])
    return TxInput(outpoint, item["sequence"], item["scriptSig"]["hex"], tuple(item.get("txinwitness", ())))


@contextmanager
def reading(method: str) -> Iterator[None]:
    """Turns a missing or wrong field of bitcoind's answer into ChainRefused."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChainRefused(
            "bitcoind_refused", f"{method}: unexpected answer: {type(error).__name__}: {error}"
        ) from error


OLDEST_VERSION = 240_000
REORG_ATTEMPTS = 3
"""How often a search is begun anew because the chain was reorganised below it."""

# bitcoind's error codes (src/rpc/protocol.h).
_MISC = -1
_INVALID_ADDRESS_OR_KEY = -5
_INVALID_PARAMETER = -8
_VERIFY = -25
_VERIFY_REJECTED = -26
_ALREADY_IN_CHAIN = -27
_PRUNED = "pruned data"
"""What its message says of a block that was deleted (src/rpc/blockchain.cpp, CheckBlockDataAvailability)."""
# What getblockchaininfo's `chain` is called by Core Lightning (bitcoin/chainparams.c).
_NETWORKS = {"main": "bitcoin", "test": "testnet"}


class Bitcoind:
    """One bitcoind, by JSON-RPC over HTTP. Thread-safe; connections are kept open and used again."""

    def __init__(self, access: Access | Callable[[], Access]) -> None:
        """See :class:`BitcoindRpc`."""
        self._rpc = BitcoindRpc(access)

    @property
    def _address(self) -> str:
        return self._rpc.access.address

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._rpc.close()

    def check(self, network: str) -> None:
        """Make sure that this bitcoind can be worked with, and that it is on lightningd's ``network``. Raises
        StopError ``bitcoind_too_old`` or ``bitcoind_other_network``, ChainUnavailable, ChainRefused."""
        about, own = self._rpc.call("getnetworkinfo"), self.network()
        with reading("getnetworkinfo"):
            version = int(about["version"])
        if version < OLDEST_VERSION:
            raise StopError(
                "bitcoind_too_old",
                f"bitcoind at {self._address} is {about.get('subversion', version)}; wattline needs v24 or newer",
            )
        if own != network:
            raise StopError(
                "bitcoind_other_network",
                f"bitcoind at {self._address} is on {own}, but lightningd is on {network}: "
                "set url in [bitcoind] of socket.toml",
            )

    def network(self) -> str:
        answer = self._rpc.call("getblockchaininfo")
        with reading("getblockchaininfo"):
            return _NETWORKS.get(answer["chain"], str(answer["chain"]))

    def tip(self) -> Tip:
        """The newest block. Raises ChainUnavailable also while bitcoind catches up with the chain: what it knows to be
        unspent is then long spent perhaps."""
        answer = self._rpc.call("getblockchaininfo")
        with reading("getblockchaininfo"):
            if answer["initialblockdownload"]:
                raise ChainUnavailable(
                    "bitcoind_unavailable",
                    f"bitcoind at {self._address} still catches up with the chain (block {answer['blocks']})",
                )
            return Tip(int(answer["blocks"]), answer["bestblockhash"])

    def block_hash(self, height: int) -> str | None:
        try:
            return str(self._rpc.call("getblockhash", height))
        except ChainRefused as error:
            if error.rpc_code == _INVALID_PARAMETER:
                return None
            raise

    def verdict(self, raw: str) -> Verdict:
        answer = self._rpc.call("testmempoolaccept", [raw])
        with reading("testmempoolaccept"):
            (row,) = answer
            if row.get("allowed") is True:
                return Verdict(True, "")
            return Verdict(False, str(row.get("reject-reason") or row.get("package-error") or "no reason given"))

    def unspent(self, outpoint: Outpoint, *, include_mempool: bool) -> Unspent | None:
        answer = self._rpc.call("gettxout", outpoint.txid, outpoint.vout, include_mempool)
        if answer is None:
            return None
        with reading("gettxout"):
            return Unspent(sat_of(answer["value"]), answer["scriptPubKey"]["hex"], int(answer["confirmations"]))

    def floor(self) -> Floor:
        answer = self._rpc.call("getmempoolinfo")
        with reading("getmempoolinfo"):
            now, least = answer["mempoolminfee"], answer["minrelaytxfee"]
            return Floor(feerate_per_kw_of(max(now, least)), now > least)

    def mempool_spenders(self, outpoints: Sequence[Outpoint]) -> Mapping[Outpoint, str]:
        if not outpoints:
            return {}
        answer = self._rpc.call("gettxspendingprevout", [{"txid": item.txid, "vout": item.vout} for item in outpoints])
        with reading("gettxspendingprevout"):
            return {Outpoint(row["txid"], row["vout"]): row["spendingtxid"] for row in answer if "spendingtxid" in row}

    def mempool_tx(self, txid: str) -> Tx | None:
        try:
            answer = self._rpc.call("getrawtransaction", txid, True)
        except ChainRefused as error:
            if error.rpc_code == _INVALID_ADDRESS_OR_KEY:
                return None
            raise
        with reading("getrawtransaction"):
            # With -txindex it tells of mined ones too.
            return None if "blockhash" in answer else tx_of(answer, answer["hex"])

    def mined_spender(self, outpoint: Outpoint, from_height: int) -> MinedTx | None:
        """As in the Protocol. Reads a block for each height down to ``from_height`` unless the output is unspent.
        Raises ChainUnavailable also when the chain was reorganised again and again meanwhile."""
        for _ in range(REORG_ATTEMPTS):
            if self.unspent(outpoint, include_mempool=False) is not None:
                return None
            tip = self.tip()
            found = self._search(outpoint, tip, from_height)
            # The blocks were found each from the one above it, so they are one chain: the best one if its end is.
            if self.confirmations(found.block_hash if found is not None else tip.block_hash) > 0:
                return found
        raise ChainUnavailable("bitcoind_unavailable", "the chain was reorganised while it was read")

    def confirmations(self, block_hash: str) -> int:
        try:
            answer = self._rpc.call("getblockheader", block_hash)
        except ChainRefused as error:
            if error.rpc_code == _INVALID_ADDRESS_OR_KEY:
                return 0
            raise
        with reading("getblockheader"):
            return max(0, int(answer["confirmations"]))

    def broadcast(self, raw: str) -> str:
        try:
            return str(self._rpc.call("sendrawtransaction", raw))
        except ChainRefused as error:
            if error.rpc_code == _ALREADY_IN_CHAIN:
                return read_tx(bytes.fromhex(raw)).txid
            if error.rpc_code in (_VERIFY, _VERIFY_REJECTED):
                raise BroadcastRefused("broadcast_refused", error.message) from error
            raise

    def _search(self, outpoint: Outpoint, tip: Tip, from_height: int) -> MinedTx | None:
        """From ``tip`` downwards, each block found by the hash that stands in the one above it."""
        # In a block an input begins with its outpoint: the hash in internal byte order, the number little-endian.
        needle = bytes.fromhex(outpoint.txid)[::-1].hex() + outpoint.vout.to_bytes(4, "little").hex()
        block_hash = tip.block_hash
        for height in range(tip.height, max(from_height, 1) - 1, -1):
            # A whole block decoded is many times its size; most do not hold what is looked for.
            raw = self._block(block_hash, height)
            if needle in raw:
                found = self._spender_in(block_hash, outpoint)
                if found is not None:
                    return MinedTx(found, height, block_hash)
            # Block header: version (4 bytes), hash of the block before (32), ...
            block_hash = bytes.fromhex(raw[8:72])[::-1].hex()
        return None

    def _block(self, block_hash: str, height: int) -> str:
        """Serialized, hex."""
        try:
            return str(self._rpc.call("getblock", block_hash, 0))
        except ChainRefused as error:
            if error.rpc_code == _MISC and _PRUNED in error.message:
                raise BlockPruned("block_pruned", f"bitcoind has deleted block {height}: {error.message}") from error
            raise

    def _spender_in(self, block_hash: str, outpoint: Outpoint) -> Tx | None:
        block: dict[str, Any] = self._rpc.call("getblock", block_hash, 2)
        with reading("getblock"):
            for row in block["tx"]:
                for item in row["vin"]:
                    if item.get("txid") == outpoint.txid and item["vout"] == outpoint.vout:
                        return tx_of(row, row["hex"])
        return None
