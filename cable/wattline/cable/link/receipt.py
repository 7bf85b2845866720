"""The socket's final account of a session: whether it is signed, and whether it is true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from wattline.cable.link.messages import SignedReceipt
from wattline.cable.link.offer import tariff_from
from wattline.cable.policy.reconciliation import Claim, Known, Tolerance, compare
from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.errors import StopError
from wattline.core.lightning.node import Journal, Signer
from wattline.core.lightning.signing import is_signed_by
from wattline.core.record import DESCRIPTION_PREFIX, format_record
from wattline.core.tariff import Tariff
from wattline.core.wire.reading import OutOfRange, admitted
from wattline.v1 import charging_pb2 as pb

REFUND_SEQUENCE = 0
"""The number in the record of a session's refund; the cable's own payments begin at 1."""
PAGE = 500
WAY_BACK_MSAT = 3_000
"""What was not used may stay with the socket where its way back would eat it up, or be spent on that way. So much is
believed in any case (the common base fee of 1 sat at three channels), else as much as WAY_BACK_TIMES the way there."""
WAY_BACK_TIMES = 3

_REFUNDS = {
    pb.REFUND_STATUS_NONE: "none",
    pb.REFUND_STATUS_SENT: "sent",
    pb.REFUND_STATUS_OWED: "owed",
    pb.REFUND_STATUS_KEPT: "kept",
}


class ReceiptError(StopError):
    """A receipt that the socket's node has not signed, or that belongs to something else."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose signature has been checked; see ``Receipt`` in charging.proto for each field."""

    session_id: str
    node_id: str
    outlet_id: str
    stop_reason: str
    tariff: Tariff
    energy_uwh: int
    delivered_ms: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    balance_msat: int
    payments: int
    refund_status: str
    """``none``, ``sent``, ``owed`` or ``kept``."""
    refund_fee_msat: int
    refund_payment_hash: str
    signed: SignedReceipt
    onchain_credited_msat: int = 0
    returned_msat: int = 0
    onchain_txid: str = ""
    onchain_value_sat: int = 0
    from_restored_ledger: bool = False

    @property
    def refunded_by_payment_msat(self) -> int:
        """The part of the refund that goes over Lightning; the rest was never taken."""
        return self.refunded_msat - self.returned_msat

    @property
    def claim(self) -> Claim:
        return Claim(
            self.energy_uwh,
            self.delivered_ms,
            self.credited_msat,
            self.charged_msat,
            self.refunded_msat,
            self.balance_msat,
        )


def verify_receipt(signed: SignedReceipt, signer: Signer, node_id: str, session_id: str) -> Receipt:
    """The receipt when ``node_id`` has signed it and it is for ``session_id``. Raises ReceiptError."""
    if not is_signed_by(signer, "receipt", signed.receipt, signed.signature, node_id):
        raise ReceiptError("receipt_forged", f"the receipt is not signed by the socket's node {node_id}")
    return read_receipt(signed, node_id, session_id)


def read_receipt(signed: SignedReceipt, node_id: str, session_id: str) -> Receipt:
    """The same for one whose signature was checked before."""
    message = pb.Receipt()
    try:
        message.ParseFromString(signed.receipt)
        admitted(message)
    except DecodeError as error:
        raise ReceiptError("receipt_invalid", "the signed receipt cannot be read") from error
    except OutOfRange as error:
        raise ReceiptError("receipt_invalid", f"the signed receipt cannot be: {error.message}") from error
    if message.session_id != session_id or message.node_id != node_id:
        raise ReceiptError("receipt_invalid", f"the receipt is for session {message.session_id}, not {session_id}")
    return Receipt(
        session_id=message.session_id,
        node_id=message.node_id,
        outlet_id=message.outlet_id,
        stop_reason=message.stop_reason,
        tariff=tariff_from(message.tariff),
        energy_uwh=message.energy_uwh,
        delivered_ms=message.delivered_ms,
        credited_msat=message.credited_msat,
        charged_msat=message.charged_msat,
        refunded_msat=message.refunded_msat,
        balance_msat=message.balance_msat,
        payments=message.payments,
        refund_status=_REFUNDS.get(message.refund_status, "unknown"),
        refund_fee_msat=message.refund_fee_msat,
        refund_payment_hash=message.refund_payment_hash,
        signed=signed,
        onchain_credited_msat=message.onchain_credited_msat,
        returned_msat=message.returned_msat,
        onchain_txid=message.onchain_txid,
        onchain_value_sat=message.onchain_value_sat,
        from_restored_ledger=message.from_restored_ledger,
    )


@dataclass(frozen=True, slots=True)
class OnchainKnown:
    """What the cable knows of a session's aggregate."""

    floor_sat: int
    accepted_msat: int
    """The value of the newest version that the socket has credited."""
    signed_msat: int
    """The largest value of any version that was handed over."""
    txids: Mapping[int, str]
    """Those of the versions that this run has made, by value_sat."""
    is_final_taken: bool = False
    """The socket has said that it has the final version."""


def objections(
    receipt: Receipt,
    known: Known,
    tariff: Tariff,
    tolerance: Tolerance,
    settled_msat: int,
    min_refund_msat: int,
    way_msat: int,
    onchain: OnchainKnown | None = None,
) -> list[str]:
    """What in a receipt contradicts the cable's own account, a line each; nothing when it is true.

    ``settled_msat`` is what the cable knows to have arrived; here there is no grace, the account is final. Below
    ``min_refund_msat`` the socket keeps what was not used; ``way_msat`` is what the way of a payment to the socket has
    cost. ``onchain`` is None when nothing was handed over on-chain.

    One that was made from a restored ledger may lack what happened since the copy: energy, and versions that were
    accepted. It may not say more than any other.
    """
    lines = []
    if receipt.from_restored_ledger:
        lacks_msat = max(0, onchain.accepted_msat - receipt.onchain_credited_msat) if onchain is not None else 0
        settled_msat -= lacks_msat
        known = replace(
            known,
            least_energy_uwh=min(known.least_energy_uwh, receipt.energy_uwh),
            surely_credited_msat=max(0, known.surely_credited_msat - lacks_msat),
        )
    if receipt.tariff != tariff:
        lines.append(f"the receipt is by tariff {receipt.tariff.tariff_id}, the session by {tariff.tariff_id}")
    mismatch = compare(receipt.claim, known, tariff, tolerance)
    if mismatch is not None:
        lines.append(mismatch.message)
    if receipt.credited_msat < settled_msat:
        lines.append(f"the receipt credits {receipt.credited_msat} msat; {settled_msat} msat were paid")
    unused = receipt.credited_msat - receipt.charged_msat
    if receipt.refunded_msat + receipt.refund_fee_msat > max(0, unused):
        lines.append(
            f"the receipt refunds {receipt.refunded_msat} msat and {receipt.refund_fee_msat} msat of fee "
            f"out of {unused} msat of unused credit"
        )
    missing_msat = unused - receipt.refunded_msat
    if receipt.refund_status not in ("sent", "owed", "kept") and missing_msat > 0:
        lines.append(f"the receipt leaves {missing_msat} msat of unused credit without a word")
    believed_msat = max(WAY_BACK_MSAT, WAY_BACK_TIMES * way_msat)
    if receipt.refund_status == "kept":
        believed_msat = max(believed_msat, min_refund_msat)
    if receipt.refund_status in ("sent", "kept") and missing_msat >= believed_msat:
        lines.append(
            f"by the receipt {missing_msat} msat of {unused} msat of unused credit do not come back; it has to be less "
            f"than {believed_msat} msat"
        )
    return lines + _onchain_objections(receipt, onchain)


def _onchain_objections(receipt: Receipt, known: OnchainKnown | None) -> list[str]:
    credited_msat, value_sat = receipt.onchain_credited_msat, receipt.onchain_value_sat
    if known is None:
        if credited_msat or value_sat or receipt.returned_msat:
            return ["the receipt tells of an on-chain payment; none was made"]
        return []
    lines = []
    least_msat = 0 if receipt.from_restored_ledger else known.accepted_msat
    if not least_msat <= credited_msat <= known.signed_msat:
        lines.append(
            f"the receipt credits {credited_msat} msat on-chain; {known.accepted_msat} msat were accepted and "
            f"{known.signed_msat} msat signed"
        )
    owed_sat = final_value_sat(receipt.charged_msat, receipt.credited_msat - credited_msat, known.floor_sat)
    # Without a final version the newest is taken, and what that is too much goes back or is too little to.
    is_newest = value_sat * MSAT_PER_SAT == credited_msat and receipt.refund_status in ("owed", "sent", "kept")
    # What a restored ledger finds on the chain may be the final version, for a charge that it has lost.
    is_found = receipt.from_restored_ledger and value_sat in known.txids
    if value_sat > owed_sat and not is_found and (known.is_final_taken or not is_newest):
        lines.append(f"the receipt takes {value_sat} sat on-chain; {owed_sat} sat are owed")
    if receipt.returned_msat != credited_msat - value_sat * MSAT_PER_SAT:
        lines.append(
            f"the receipt gives {receipt.returned_msat} msat back; of {credited_msat} msat handed over on-chain it "
            f"takes {value_sat} sat"
        )
    txid = known.txids.get(value_sat, receipt.onchain_txid) if value_sat else ""
    if receipt.onchain_txid != txid or (value_sat and not txid):
        lines.append(
            f"the receipt names transaction {receipt.onchain_txid or '-'}; the version signed is {txid or '-'}"
        )
    return lines


class RefundSearch:
    """Looks for a refund in the own node's paid invoices; every look goes on where the last one ended."""

    def __init__(self, journal: Journal, session_id: str, amount_msat: int) -> None:
        """``amount_msat``: what it has to be at the least."""
        self._journal = journal
        self._description = f"{DESCRIPTION_PREFIX}{format_record(session_id, REFUND_SEQUENCE)}"
        self._amount_msat = amount_msat
        self._cursor = 0

    def found(self) -> bool:
        """Whether it is there by now. Raises NodeUnavailable, NodeRefused."""
        while rows := self._journal.paid_since(self._cursor, PAGE):
            for row in rows:
                if (
                    row.is_paid
                    and row.description == self._description
                    and row.amount_received_msat >= self._amount_msat
                ):
                    return True
            self._cursor = rows[-1].updated_index
        return False
