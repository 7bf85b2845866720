"""A chain in memory: blocks, a mempool with replacements, reorgs; and the socket's wallet on it.

Transactions and PSBTs are real ones, but for their signatures.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence

from wattline.core.bitcoin import address
from wattline.core.bitcoin import transaction as serialization
from wattline.core.bitcoin.chain import (
    BlockPruned,
    BroadcastRefused,
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
from wattline.core.bitcoin.psbt import signed_tx
from wattline.core.bitcoin.transaction import read_tx, sized
from wattline.core.errors import RetryError, StopError
from wattline.core.lightning.node import NodeRefused, NodeUnavailable
from wattline.core.lightning.onchain import Income, WalletOutput
from wattline.plugin.onchain.chain_identity import GENESIS

VALID, INVALID = "11" * 64, "ee" * 64
"""What counts as a signature that is right, or wrong."""
RELAY_FLOOR_PER_KW = 250
COIN_SCRIPT = "5120" + "ab" * 32
RBF_STEP_SAT_PER_VB = 1
"""What a replacement pays more than what it replaces (BIP 125, rule 4)."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def address_of(name: str) -> str:
    """A P2TR address that stands for ``name``."""
    return address.address_of(script_of(name), "regtest")


def script_of(name: str) -> str:
    """The scriptPubKey of that address."""
    return "5120" + sha(name)


def make_tx(
    inputs: Sequence[Outpoint],
    outputs: Sequence[tuple[str, int]],
    *,
    version: int = 2,
    locktime: int = 0,
    sequence: int = 0xFFFFFFFD,
    signed: bool = True,
    valid: bool = True,
) -> Tx:
    """``outputs``: script and value_sat. ``signed``: every input has a signature; ``valid``: they are right ones."""
    witness = (VALID if valid else INVALID,) if signed else ()
    return serialization.make_tx(
        version,
        locktime,
        [TxInput(item, sequence, witness=witness) for item in inputs],
        [TxOutput(value_sat, script) for script, value_sat in outputs],
    )


def psbt_of(tx: Tx) -> bytes:
    """As a cable hands it over: with a signature (PSBT_IN_TAP_KEY_SIG) where there is one, and no word of the chain."""
    bare = serialization.make_tx(
        tx.version, tx.locktime, [TxInput(item.outpoint, item.sequence) for item in tx.inputs], tx.outputs
    )
    signatures = [b"\x01\x13" + sized(bytes.fromhex("".join(item.witness))) for item in tx.inputs]
    maps = [
        signature + b"\x00" if item.witness else b"\x00" for signature, item in zip(signatures, tx.inputs, strict=True)
    ]
    return b"psbt\xff\x01\x00" + sized(bytes.fromhex(bare.raw)) + b"\x00" + b"".join(maps) + bytes(len(tx.outputs))


class Block:
    def __init__(self, height: int, block_hash: str, txs: Sequence[Tx]) -> None:
        self.height = height
        self.block_hash = block_hash
        self.txs = list(txs)


class FakeChain:
    """wattline.core.bitcoin.chain.Chain."""

    def __init__(self) -> None:
        self.away = False
        self.network = "regtest"
        self.pruned_below = 0
        """Blocks of a lower height are gone, but for their headers."""
        self.floor_per_kw = RELAY_FLOOR_PER_KW
        self.is_raised = False
        self.blocks = [Block(0, GENESIS["regtest"], [])]
        self.mempool: dict[str, Tx] = {}
        self.before_broadcast: Callable[[Tx], None] = lambda _: None
        """Called with whatever the socket sends, taken or not."""
        self.sent: set[str] = set()
        """The txids that the socket tried to send."""
        self.looks: list[str] = []
        """Which questions were asked."""
        self._made = 0
        self.mine(count=5)

    # What happens on it.

    def fund(self, value_sat: int, script: str = COIN_SCRIPT, depth: int = 10) -> Outpoint:
        """An output in a block, with ``depth`` confirmations; 0: in the mempool."""
        self._made += 1
        tx = make_tx([Outpoint(sha(f"coinbase {self._made}"), 0)], [(script, value_sat)])
        if depth:
            self.mine([tx], count=1)
            self.mine([], count=depth - 1)
        else:
            self.mempool[tx.txid] = tx
        return Outpoint(tx.txid, 0)

    def forget(self, outpoint: Outpoint) -> None:
        """A coin never was, as after a deep reorg in which something else took its parent's place."""
        for block in self.blocks:
            block.txs = [tx for tx in block.txs if tx.txid != outpoint.txid]

    def mine(self, txs: Sequence[Tx] | None = None, count: int = 1) -> None:
        """Blocks, the first of them with these transactions (None: with the whole mempool)."""
        for number in range(count):
            self._made += 1
            inside = [] if number else (list(self.mempool.values()) if txs is None else list(txs))
            height = len(self.blocks)
            self.blocks.append(Block(height, sha(f"block {height} {self._made}"), inside))
            for tx in inside:
                self.mempool.pop(tx.txid, None)
                self._evict(self._conflicts(tx))

    def reorg(self, depth: int, txs: Sequence[Tx] | None = ()) -> None:
        """The newest ``depth`` blocks are replaced by one more, the first of them with ``txs``; what was in them is in
        the mempool again, where it still can be mined."""
        undone = [tx for block in self.blocks[-depth:] for tx in block.txs]
        del self.blocks[-depth:]
        for tx in undone:
            if not self._conflicts(tx):
                self.mempool[tx.txid] = tx
        if txs is None:
            txs = list(self.mempool.values())
        self.mine([tx for tx in txs if not self._is_mined(tx.txid)], count=1)
        self.mine([], count=depth)

    def offer(self, tx: Tx) -> str:
        """Somebody broadcasts it: empty, or why the mempool does not take it."""
        reason = self._why_not(tx)
        if not reason:
            self._evict(self._conflicts(tx))
            self.mempool[tx.txid] = tx
        return reason

    def drop(self, txid: str) -> None:
        """Out of the mempool: it was full, or two weeks are over."""
        self.mempool.pop(txid, None)

    def spenders(self, outpoint: Outpoint) -> list[Tx]:
        """What was mined that spends it: at most one, or this chain is broken."""
        return [tx for block in self.blocks for tx in block.txs if outpoint in tx.outpoints]

    # The Protocol.

    def check(self, network: str) -> None:
        self._answer("check")
        if network != self.network:
            raise StopError("bitcoind_other_network", f"bitcoind is on {self.network}, not on {network}")

    def tip(self) -> Tip:
        self._answer("tip")
        return Tip(self.blocks[-1].height, self.blocks[-1].block_hash)

    def block_hash(self, height: int) -> str | None:
        self._answer("block_hash")
        return self.blocks[height].block_hash if height < len(self.blocks) else None

    def verdict(self, raw: str) -> Verdict:
        self._answer("verdict")
        reason = self._why_not(read_tx(bytes.fromhex(raw)))
        return Verdict(not reason, reason)

    def unspent(self, outpoint: Outpoint, *, include_mempool: bool) -> Unspent | None:
        self._answer("unspent")
        if self.spenders(outpoint):
            return None
        if include_mempool and self._mempool_spender(outpoint) is not None:
            return None
        for block in self.blocks:
            for tx in block.txs:
                if tx.txid == outpoint.txid and outpoint.vout < len(tx.outputs):
                    output = tx.outputs[outpoint.vout]
                    return Unspent(output.value_sat, output.script, len(self.blocks) - block.height)
        parent = self.mempool.get(outpoint.txid)
        if include_mempool and parent is not None:
            return Unspent(parent.outputs[outpoint.vout].value_sat, parent.outputs[outpoint.vout].script, 0)
        return None

    def floor(self) -> Floor:
        self._answer("floor")
        return Floor(self.floor_per_kw, self.is_raised)

    def mempool_spenders(self, outpoints: Sequence[Outpoint]) -> Mapping[Outpoint, str]:
        self._answer("mempool_spenders")
        found = {outpoint: self._mempool_spender(outpoint) for outpoint in outpoints}
        return {outpoint: tx.txid for outpoint, tx in found.items() if tx is not None}

    def mempool_tx(self, txid: str) -> Tx | None:
        self._answer("mempool_tx")
        return self.mempool.get(txid)

    def mined_spender(self, outpoint: Outpoint, from_height: int) -> MinedTx | None:
        self._answer("mined_spender")
        for block in reversed(self.blocks[from_height:]):
            if block.height < self.pruned_below:
                raise BlockPruned("block_pruned", f"block {block.height}: pruned data")
            for tx in block.txs:
                if outpoint in tx.outpoints:
                    return MinedTx(tx, block.height, block.block_hash)
        return None

    def confirmations(self, block_hash: str) -> int:
        self._answer("confirmations")
        return next((len(self.blocks) - block.height for block in self.blocks if block.block_hash == block_hash), 0)

    def broadcast(self, raw: str) -> str:
        tx = read_tx(bytes.fromhex(raw))
        self.before_broadcast(tx)
        self._answer("broadcast")
        self.sent.add(tx.txid)
        if self._is_mined(tx.txid) or tx.txid in self.mempool:
            return tx.txid
        reason = self.offer(tx)
        if reason:
            raise BroadcastRefused("broadcast_refused", reason)
        return tx.txid

    # Its own.

    def _answer(self, question: str) -> None:
        self.looks.append(question)
        if self.away:
            raise ChainUnavailable("bitcoind_unavailable", "connection refused")

    def _is_mined(self, txid: str) -> bool:
        return any(tx.txid == txid for block in self.blocks for tx in block.txs)

    def _mempool_spender(self, outpoint: Outpoint) -> Tx | None:
        return next((tx for tx in self.mempool.values() if outpoint in tx.outpoints), None)

    def _conflicts(self, tx: Tx) -> list[Tx]:
        return [other for other in self.mempool.values() if other.txid != tx.txid and other.outpoints & tx.outpoints]

    def _evict(self, txs: Sequence[Tx]) -> None:
        for tx in txs:
            if self.mempool.pop(tx.txid, None) is not None:
                children = [
                    other for other in self.mempool.values() if any(item.txid == tx.txid for item in other.outpoints)
                ]
                self._evict(children)

    def _value_of(self, outpoint: Outpoint) -> int | None:
        """None when there is no such output, or it is spent in a block."""
        if self.spenders(outpoint):
            return None
        txs = [tx for block in self.blocks for tx in block.txs] + list(self.mempool.values())
        parent = next((tx for tx in txs if tx.txid == outpoint.txid), None)
        if parent is None or outpoint.vout >= len(parent.outputs):
            return None
        return parent.outputs[outpoint.vout].value_sat

    def fee_sat(self, tx: Tx) -> int | None:
        values = [self._value_of(outpoint) for outpoint in tx.outpoints]
        if any(value is None for value in values):
            return None
        return sum(value or 0 for value in values) - sum(output.value_sat for output in tx.outputs)

    def _why_not(self, tx: Tx) -> str:
        if tx.txid in self.mempool:
            return "txn-already-in-mempool"
        fee_sat = self.fee_sat(tx)
        if fee_sat is None:
            return "bad-txns-inputs-missingorspent"
        if any(item.witness != (VALID,) for item in tx.inputs):
            return "mempool-script-verify-flag-failed (Invalid Schnorr signature)"
        if fee_sat * 1000 < self.floor_per_kw * tx.vsize * 4:
            return "mempool min fee not met" if self.is_raised else "min relay fee not met"
        conflicts = self._conflicts(tx)
        replaced_sat = sum(self.fee_sat(other) or 0 for other in conflicts)
        if conflicts and fee_sat < replaced_sat + RBF_STEP_SAT_PER_VB * tx.vsize:
            return "insufficient fee, rejecting replacement"
        return ""


class FakeFunds:
    """wattline.core.lightning.onchain.ReceivingFunds, on a FakeChain."""

    def __init__(self, chain: FakeChain) -> None:
        self._chain = chain
        self.gone = False
        self.estimate_per_kw = RELAY_FLOOR_PER_KW
        self.knows_income = True
        """Its bookkeeper has seen the deposit."""
        self.addresses: list[str] = []
        self.holds: list[WalletOutput] = []
        """What its wallet holds besides."""
        self.refusal = ""
        """Why it takes no transaction."""
        self.asked = 0
        """How often it was given one."""
        self.told: list[str] = []
        """The txids that were handed to it."""
        self.children: list[str] = []
        self.descriptions: dict[Outpoint, str] = {}

    def new_address(self) -> str:
        self._answer()
        self.addresses.append(address_of(str(len(self.addresses))))
        return self.addresses[-1]

    def outputs(self) -> Sequence[WalletOutput]:
        self._answer()
        return self.holds

    def income(self, script: str) -> Sequence[Income]:
        self._answer()
        return [
            Income(Outpoint(tx.txid, number), output.value_sat, block.height)
            for block in self._chain.blocks
            for tx in block.txs
            for number, output in enumerate(tx.outputs)
            if output.script == script
        ]

    def send(self, psbt: str) -> str:
        self._answer()
        self.asked += 1
        if self.refusal:
            raise NodeRefused("node_refused", self.refusal)
        tx = signed_tx(base64.b64decode(psbt))
        self._chain.before_broadcast(tx)
        self._chain.sent.add(tx.txid)
        if tx.txid not in self._chain.mempool:
            reason = self._chain.offer(tx)
            if reason:
                raise NodeRefused("broadcast_refused", reason)
        self.told.append(tx.txid)
        return tx.txid

    def bump(self, outpoint: Outpoint, feerate_per_kw: int) -> str:
        self._answer()
        parent = self._chain.mempool.get(outpoint.txid)
        if parent is None or outpoint.txid not in self.told:
            raise NodeRefused("withdraw_failed", f"{outpoint}: no such output")
        fee_sat = feerate_per_kw * 111 * 4 // 1000
        child = make_tx([outpoint], [(script_of("own"), parent.outputs[outpoint.vout].value_sat - fee_sat)])
        reason = self._chain.offer(child)
        if reason:
            raise NodeRefused("withdraw_failed", reason)
        self.children.append(child.txid)
        return child.txid

    def feerate_per_kw(self) -> int:
        self._answer()
        return self.estimate_per_kw

    def describe_income(self, outpoint: Outpoint, text: str) -> None:
        self._answer()
        if not self.knows_income:
            raise RetryError("income_not_booked", f"the bookkeeper has no deposit {outpoint} yet")
        self.descriptions[outpoint] = text

    def bitcoin_options(self) -> Mapping[str, str]:
        return {}

    def _answer(self) -> None:
        if self.gone:
            raise NodeUnavailable("node_unavailable", "connection refused")
