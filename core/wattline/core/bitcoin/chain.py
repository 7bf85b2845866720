"""Transactions, outputs and blocks: domain types and one Protocol; bitcoind behind it is in
:mod:`wattline.core.bitcoin.bitcoind`.

Values are integers in satoshi, txids and block hashes lower-case hex as bitcoind shows them, scripts (scriptPubKey)
hex, fee rates satoshi per 1000 weight units (``feerate_per_kw``, as Core Lightning counts; 250 is 1 sat/vB), sizes in
virtual bytes (BIP 141).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wattline.core.errors import RetryError, StopError

_TXID = re.compile(r"[0-9a-f]{64}")
_VOUT = re.compile(r"0|[1-9][0-9]{0,9}")
_LAST_VOUT = 0xFFFFFFFF
"""What a coinbase's only input spends."""


class ChainUnavailable(RetryError):
    """bitcoind does not answer, or is still starting. Code ``bitcoind_unavailable``."""


class ChainRefused(StopError):
    """bitcoind answered with an error that repeating the call will not cure. Code ``bitcoind_refused``,
    ``bitcoind_not_permitted`` when it does not know us, ``bitcoind_unknown`` or ``config_unreadable`` when nothing says
    where it is; ``rpc_code`` is its own."""

    def __init__(self, code: str, message: str, rpc_code: int | None = None) -> None:
        super().__init__(code, message)
        self.rpc_code = rpc_code


class NotATransaction(StopError):
    """What was handed over is no PSBT (code ``psbt_invalid``), lacks a signature (``psbt_incomplete``), or is no
    transaction (``tx_invalid``)."""


class BlockPruned(ChainRefused):
    """A block that is asked for was deleted to save space (``prune``). Code ``block_pruned``."""


class BroadcastRefused(StopError):
    """The mempool does not take the transaction now; ``message`` is bitcoind's reason. Code ``broadcast_refused``."""


@dataclass(frozen=True, slots=True, order=True)
class Outpoint:
    """One output of one transaction. Raises StopError ``outpoint_invalid``."""

    txid: str
    vout: int

    def __post_init__(self) -> None:
        if not _TXID.fullmatch(self.txid) or not 0 <= self.vout <= _LAST_VOUT:
            raise StopError("outpoint_invalid", f"an outpoint is txid:vout, not {self.txid}:{self.vout}")

    def __str__(self) -> str:
        return f"{self.txid}:{self.vout}"

    @classmethod
    def parse(cls, text: str) -> Outpoint:
        """From ``txid:vout``. Raises StopError ``outpoint_invalid``."""
        txid, _, vout = text.partition(":")
        if not _VOUT.fullmatch(vout):
            raise StopError("outpoint_invalid", f"an outpoint is txid:vout, not {text}")
        return cls(txid, int(vout))


@dataclass(frozen=True, slots=True)
class TxInput:
    outpoint: Outpoint
    sequence: int
    """nSequence (BIP 68, BIP 125)."""
    script_sig: str = ""
    """Hex; empty for native segwit (BIP 141)."""
    witness: tuple[str, ...] = ()
    """The elements of the witness stack, hex."""


@dataclass(frozen=True, slots=True)
class TxOutput:
    value_sat: int
    script: str


@dataclass(frozen=True, slots=True)
class Tx:
    """A transaction with its witnesses."""

    txid: str
    version: int
    locktime: int
    inputs: tuple[TxInput, ...]
    outputs: tuple[TxOutput, ...]
    vsize: int
    raw: str
    """Serialized with witnesses, hex."""

    def paid_to(self, script: str) -> int:
        """The sum of its outputs to ``script``, sat."""
        return sum(output.value_sat for output in self.outputs if output.script == script)

    @property
    def outpoints(self) -> frozenset[Outpoint]:
        """What it spends."""
        return frozenset(item.outpoint for item in self.inputs)


@dataclass(frozen=True, slots=True)
class Unspent:
    """An unspent output."""

    value_sat: int
    script: str
    confirmations: int
    """0 in the mempool."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the mempool would say (``testmempoolaccept``)."""

    allowed: bool
    reason: str
    """Why not; empty when allowed."""

    @property
    def is_unsigned(self) -> bool:
        """A signature, or another condition of an output that is spent, is not met."""
        return "script-verify-flag" in self.reason


@dataclass(frozen=True, slots=True)
class Floor:
    """The least fee rate with which the mempool takes a transaction now."""

    feerate_per_kw: int
    """Rounded up."""
    is_raised: bool
    """The mempool is full, and asks for more than the node's configured minimum."""


@dataclass(frozen=True, slots=True)
class Tip:
    height: int
    block_hash: str


@dataclass(frozen=True, slots=True)
class MinedTx:
    """A transaction in a block of the best chain."""

    tx: Tx
    height: int
    block_hash: str


class Chain(Protocol):
    """Every method raises ChainUnavailable, and ChainRefused for what it does not name. Thread-safe."""

    def check(self, network: str) -> None:
        """That it can be worked with and is on ``network`` (as Core Lightning calls it: ``bitcoin``, ``testnet``,
        ``testnet4``, ``signet`` or ``regtest``). Raises StopError ``bitcoind_too_old``, ``bitcoind_other_network``."""

    def tip(self) -> Tip: ...

    def block_hash(self, height: int) -> str | None:
        """Of the best chain's block of that height, also when the block itself was pruned; None above the tip."""

    def verdict(self, raw: str) -> Verdict:
        """Whether the mempool would take it: scripts and signatures, policy, fees, and everything else."""

    def unspent(self, outpoint: Outpoint, *, include_mempool: bool) -> Unspent | None:
        """None when it is spent (``include_mempool``: or about to be) or never was."""

    def floor(self) -> Floor: ...

    def mempool_spenders(self, outpoints: Sequence[Outpoint]) -> Mapping[Outpoint, str]:
        """The txids of mempool transactions that spend any of these."""

    def mempool_tx(self, txid: str) -> Tx | None:
        """A transaction of the mempool; None when it is not there (any more)."""

    def mined_spender(self, outpoint: Outpoint, from_height: int) -> MinedTx | None:
        """The transaction of the best chain that spends ``outpoint``, looked for in the blocks from the tip down to
        ``from_height``. None when there is none there. Raises BlockPruned when it may stand in a block that is gone."""

    def confirmations(self, block_hash: str) -> int:
        """Of a transaction in this block: 1 at the tip; 0 when the block is not in the best chain (any more)."""

    def broadcast(self, raw: str) -> str:
        """Hand a transaction to the network; its txid, also when it is in the mempool already. Raises
        BroadcastRefused."""
