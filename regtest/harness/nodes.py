"""What a socket's shell asks of its Lightning node, where the trial is about the chain: signatures that anybody can
make, a journal and a wallet without Lightning, and the socket's on-chain wallet on a real bitcoind."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from harness.attacker import Coin, Wallet, spend
from wattline.core.bitcoin.bitcoind import sat_of
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.errors import RetryError
from wattline.core.lightning.node import (
    ChannelBalance,
    NodeInfo,
    NodeRefused,
    NodeUnavailable,
    NoRoute,
    PaidInvoice,
    Route,
    SendFailure,
    SentPayment,
)
from wattline.core.lightning.notes import LabelledPayment
from wattline.core.lightning.onchain import Income, WalletOutput
from wattline.regtest.bitcoind_rpc import BitcoindRefusedError

CHILD_VSIZE = 111
"""One P2TR input, one P2TR output."""


def node_id(number: int) -> str:
    """A node id that is a point of the curve, as real ones are."""
    key = ec.derive_private_key(number, ec.SECP256K1()).public_key()
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint).hex()


SOCKET = node_id(1)


@dataclass(frozen=True, slots=True)
class TrustingSigner:
    """Signs as ``node_id``; believes whoever says who he is."""

    node_id: str = SOCKET

    def sign(self, message: str) -> str:
        return f"{self.node_id} says {message}"

    def verify(self, message: str, signature: str, node_id: str) -> bool:
        return signature == f"{node_id} says {message}"


class KeptNotes:
    """What the node keeps for the plugin; it has sent nothing."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}

    def note(self, name: str) -> str | None:
        return self._notes.get(name)

    def write_note(self, name: str, text: str) -> None:
        self._notes[name] = text

    def sent_since(self, created_at: int) -> Sequence[LabelledPayment]:
        return []


class NoJournal:
    """Nothing was ever paid by Lightning."""

    def paid_since(self, updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        return []

    def takes_keysend(self) -> bool:
        return True


class NoChannels:
    """A wallet from which no route leads anywhere: what is to be refunded by Lightning stays owed."""

    def info(self) -> NodeInfo:
        return NodeInfo(SOCKET, "regtest", "v26.06.6", 100)

    def channels(self) -> Sequence[ChannelBalance]:
        return []

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        raise NoRoute("no_route", "no channels")

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        raise AssertionError("there is no route")

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        return None

    def sent(self, payment_hash: str) -> SentPayment | None:
        return None

    def forgets_sent_after_s(self) -> int | None:
        return None


class SocketFunds:
    """The socket's on-chain wallet (:class:`wattline.core.lightning.onchain.ReceivingFunds`)."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self.estimate_per_kw = 253
        """What the node would pay for a confirmation."""
        self.incomes: dict[Outpoint, str] = {}
        self.bumps: list[str] = []
        """How every try to help a transaction ended: the child's txid, or why there is none."""

    def new_address(self) -> str:
        try:
            return self._wallet.address()
        except RetryError as error:
            raise NodeUnavailable("node_unavailable", error.message) from error

    def outputs(self) -> Sequence[WalletOutput]:
        return []

    def income(self, script: str) -> Sequence[Income]:
        answer = self._wallet.call("scantxoutset", "start", [f"raw({script})"])
        return [
            Income(Outpoint(row["txid"], row["vout"]), sat_of(row["amount"]), row["height"])
            for row in answer["unspents"]
        ]

    def send(self, psbt: str) -> str:
        return self._send(self._wallet.extracted(base64.b64decode(psbt)))

    def bump(self, outpoint: Outpoint, feerate_per_kw: int) -> str:
        answer = self._wallet.call("gettxout", outpoint.txid, outpoint.vout, True)
        coin = Coin(outpoint, sat_of(answer["value"]))
        value_sat = coin.value_sat - feerate_per_kw * CHILD_VSIZE * 4 // 1000
        child = spend([coin], [TxOutput(value_sat, self._wallet.script())])
        try:
            txid = self._send(self._wallet.raw(child))
        except NodeRefused as error:
            self.bumps.append(error.message)
            raise
        self.bumps.append(txid)
        return txid

    def feerate_per_kw(self) -> int:
        return self.estimate_per_kw

    def describe_income(self, outpoint: Outpoint, text: str) -> None:
        self.incomes[outpoint] = text

    def bitcoin_options(self) -> Mapping[str, str]:
        return {}

    def received_sat(self, address: str) -> int:
        """What the chain holds for the socket at one of its addresses."""
        return self._wallet.received_sat(address)

    def _send(self, raw: str) -> str:
        try:
            return str(self._wallet.call("sendrawtransaction", raw, 0))
        except RetryError as error:
            raise NodeUnavailable("node_unavailable", error.message) from error
        except BitcoindRefusedError as error:
            raise NodeRefused("broadcast_refused", error.message) from error
