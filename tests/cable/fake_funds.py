"""The cable's on-chain wallet, and a chain on which a test has transactions mined."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattline.core.aggregate import OnchainRules
from wattline.core.bitcoin import address
from wattline.core.bitcoin.chain import Outpoint, Tx, TxInput, TxOutput
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.bitcoin.transaction import make_tx, sized
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus, CableAggregateStore
from wattline.core.lightning.node import NodeRefused, NodeUnavailable
from wattline.core.lightning.onchain import Base, WalletOutput, WalletTx
from wattline.v1 import charging_pb2 as pb

RULES = OnchainRules(
    floor_sat=600,
    credit_cap_sat=3_000,
    exposure_cap_sat=20_000,
    min_feerate_per_kw=253,
    max_feerate_per_kw=100_000,
    max_age_s=3_600,
    input_confirmations=1,
    max_inputs=3,
)
INPUT_WEIGHT = 230


def rules_message(rules: OnchainRules) -> pb.OnchainRules:
    return pb.OnchainRules(**{name: getattr(rules, name) for name in OnchainRules.__slots__})


def script_of(name: str) -> str:
    """A P2TR scriptPubKey that stands for ``name``."""
    return "5120" + hashlib.sha256(name.encode()).hexdigest()


def address_of(name: str) -> str:
    """Its address."""
    return address.address_of(script_of(name), "regtest")


def make_psbt(inputs: Sequence[Outpoint], outputs: Sequence[TxOutput]) -> bytes:
    """A PSBT of version 0 without signatures: nobody here checks them."""
    tx = make_tx(2, 0, [TxInput(item, 0xFFFFFFFD) for item in inputs], outputs)
    return b"psbt\xff\x01\x00" + sized(bytes.fromhex(tx.raw)) + bytes(1 + len(inputs) + len(outputs))


@dataclass
class FakeAggregate:
    """What the fake socket holds of one session."""

    address: str
    script: str
    number: int = 0
    value_sat: int = 0
    due_sat: int = 0
    final_sat: int = 0
    chosen: str = ""
    txids: dict[int, str] = field(default_factory=dict)
    held: dict[str, tuple[int, Tx]] = field(default_factory=dict)
    psbts: dict[str, bytes] = field(default_factory=dict)
    """Of every version that came, by txid, whatever was said of it."""
    final_came: threading.Event = field(default_factory=threading.Event)


class FakeFunds:
    """PayingFunds: three confirmed outputs."""

    def __init__(self) -> None:
        self.feerate = 253
        self.blocks = 100
        self.is_down = False
        self.spoils: list[TxOutput] | None = None
        """What is signed instead of what was asked for."""
        self.free = [WalletOutput(Outpoint(f"{n:064x}", 0), n * 10_000, 90) for n in (1, 2, 5)]
        self.reserved: dict[Outpoint, int] = {}
        """Until which height."""
        self.renewals = 0
        self.signed: list[int] = []
        self.mined: list[WalletTx] = []
        self._addresses = 0
        self._lock = threading.Lock()

    def outputs(self) -> Sequence[WalletOutput]:
        self._check()
        return [item for item in self.free if self.reserved.get(item.outpoint, 0) <= self.blocks]

    def new_address(self) -> str:
        self._check()
        self._addresses += 1
        return address_of(f"cable-{self._addresses}")

    def feerate_per_kw(self) -> int:
        self._check()
        return self.feerate

    def height(self) -> int:
        self._check()
        return self.blocks

    def reserve(self, outpoints: Sequence[Outpoint]) -> Base:
        self._check()
        free = {item.outpoint for item in self.outputs()}
        if not set(outpoints) <= free:
            raise NodeRefused("node_refused", "utxopsbt: already reserved")
        self.reserved |= dict.fromkeys(outpoints, self.blocks + 72)
        return Base(json.dumps([str(item) for item in outpoints]), 42 + INPUT_WEIGHT * len(outpoints))

    def renew(self, base: Base) -> None:
        self._check()
        self.renewals += 1
        self.reserved |= dict.fromkeys(_outpoints(base), self.blocks + 72)

    def release(self, base: Base) -> None:
        self._check()
        for item in _outpoints(base):
            self.reserved.pop(item, None)

    def sign(self, base: Base, outputs: Sequence[TxOutput]) -> bytes:
        self._check()
        if any(self.reserved.get(item, 0) <= self.blocks for item in _outpoints(base)):
            raise NodeRefused("reservation_lapsed", "signpsbt: an input is not reserved")
        self.signed.append(outputs[0].value_sat)
        return make_psbt(_outpoints(base), self.spoils or outputs)

    def spender(self, outpoint: Outpoint) -> WalletTx | None:
        self._check()
        return next((tx for tx in self.mined if outpoint in tx.inputs), None)

    # What a test does to it.

    def mine(self, tx: Tx) -> None:
        """A transaction gets into a block."""
        self.blocks += 1
        outputs = tuple((output.script, output.value_sat) for output in tx.outputs)
        self.mined.append(WalletTx(tx.txid, self.blocks, tx.outpoints, outputs))

    def mine_psbt(self, psbt: bytes) -> None:
        self.mine(unsigned_tx(psbt))

    def _check(self) -> None:
        if self.is_down:
            raise NodeUnavailable("node_unavailable", "lightningd does not answer")


def _outpoints(base: Base) -> list[Outpoint]:
    return [Outpoint.parse(text) for text in json.loads(base.psbt)]


class KeptAggregates(CableAggregateStore):
    """A ledger that survives the cable, in memory: thousands of made-up sessions are over in no time."""

    def __init__(self) -> None:
        self.rows: dict[str, CableAggregate] = {}

    def save(self, row: CableAggregate) -> None:
        before = self.rows.get(row.session_id)
        assert before is None or row.signed_sat >= before.signed_sat, "what was signed cannot be taken back"
        self.rows[row.session_id] = row

    def of(self, session_id: str) -> CableAggregate | None:
        return self.rows.get(session_id)

    def unfinished(self) -> Sequence[CableAggregate]:
        return [row for row in self.rows.values() if row.status.is_live]

    def unanswered(self, node_id: str | None = None) -> Sequence[CableAggregate]:
        rows = [row for row in self.rows.values() if row.status is CableAggregateStatus.UNANSWERED]
        return [row for row in rows if node_id in (None, row.node_id)]
