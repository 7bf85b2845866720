"""The on-chain wallet of a Lightning node as the rest of wattline sees it: the cable's, which signs versions of an
aggregate, and the socket's, which receives one. Core Lightning behind both is in
:mod:`wattline.core.lightning.cln_onchain`.

Values are integers in satoshi, fee rates satoshi per 1000 weight units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wattline.core.bitcoin.chain import Outpoint, TxOutput

EMPTY_TX_WEIGHT = 42
"""Of a segwit transaction without inputs and outputs: version, locktime, two counts, marker and flag (BIP 141)."""
RESERVE_BLOCKS = 72
"""For how long inputs are reserved at a time (about 12 hours); to be renewed before."""


@dataclass(frozen=True, slots=True)
class WalletOutput:
    """A confirmed output of the node's wallet that nothing has reserved."""

    outpoint: Outpoint
    value_sat: int
    blockheight: int


@dataclass(frozen=True, slots=True)
class Income:
    """An output to one of the node's own addresses, spent since or not."""

    outpoint: Outpoint
    value_sat: int
    blockheight: int
    """0 while it is in no block."""


@dataclass(frozen=True, slots=True)
class WalletTx:
    """A transaction that the wallet has seen."""

    txid: str
    blockheight: int
    """0 while it is in no block."""
    inputs: frozenset[Outpoint]
    outputs: tuple[tuple[str, int], ...]
    """scriptPubKey (hex) and value_sat of each."""

    def paid_to(self, script: str) -> int:
        """The sum of its outputs to ``script``, sat."""
        return sum(value_sat for other, value_sat in self.outputs if other == script)


@dataclass(frozen=True, slots=True)
class Base:
    """Inputs that are reserved for an aggregate."""

    psbt: str
    """With these inputs and no output (base64)."""
    inputs_weight: int
    """Of a transaction with these inputs and no output, as the node estimates it, witnesses included."""


class PayingFunds(Protocol):
    """The cable's side. Every method raises NodeUnavailable, NodeRefused."""

    def outputs(self) -> Sequence[WalletOutput]:
        """Confirmed, unreserved, largest first."""

    def new_address(self) -> str: ...

    def feerate_per_kw(self) -> int:
        """The node's estimate for a confirmation within about six blocks; its floor where it has none."""

    def height(self) -> int:
        """Of the chain, as the node knows it."""

    def reserve(self, outpoints: Sequence[Outpoint]) -> Base:
        """Reserve them for RESERVE_BLOCKS. Raises NodeRefused when one is reserved or spent already."""

    def renew(self, base: Base) -> None:
        """Reserve them for RESERVE_BLOCKS from now on, also when the reservation had run out."""

    def release(self, base: Base) -> None:
        """Give them back to the wallet, however often they were reserved."""

    def sign(self, base: Base, outputs: Sequence[TxOutput]) -> bytes:
        """A version of the transaction: ``base`` with these outputs (P2WPKH or P2TR), in this order, locktime 0,
        signed. A binary PSBT of version 0. Raises AddressError for any other script."""

    def spender(self, outpoint: Outpoint) -> WalletTx | None:
        """The transaction that the wallet has seen to spend its ``outpoint``."""


class ReceivingFunds(Protocol):
    """The socket's side. Every method raises NodeUnavailable, NodeRefused."""

    def new_address(self) -> str: ...

    def outputs(self) -> Sequence[WalletOutput]:
        """Confirmed, unreserved, largest first."""

    def income(self, script: str) -> Sequence[Income]:
        """What came to the own address of this scriptPubKey (hex), by the node's own record."""

    def send(self, psbt: str) -> str:
        """Broadcast a signed PSBT (base64) of our own making through the node, which then knows of its own unconfirmed
        output; the txid, also when it is in the mempool already."""

    def bump(self, outpoint: Outpoint, feerate_per_kw: int) -> str:
        """Spend the own unconfirmed ``outpoint`` to the own wallet at this fee rate (a child that pays for its
        parent); the child's txid."""

    def feerate_per_kw(self) -> int:
        """The node's estimate for a confirmation within about six blocks; its floor where it has none."""

    def describe_income(self, outpoint: Outpoint, text: str) -> None:
        """Write into Core Lightning's bookkeeper what the deposit was for."""

    def bitcoin_options(self) -> Mapping[str, str]:
        """How the node itself reaches its bitcoind: its ``bitcoin-...`` options and their values."""
