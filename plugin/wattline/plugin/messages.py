"""Domain values as messages of the protocol."""

from __future__ import annotations

from wattline.core.aggregate import Version
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.session import Session
from wattline.core.session.state import RefundStatus, State
from wattline.core.tariff import Tariff
from wattline.plugin.outlet_state import Condition, OutletView
from wattline.v1 import charging_pb2 as pb

_CONDITIONS = {
    Condition.STARTING: "it is starting",
    Condition.AVAILABLE: "the socket is starting",
    Condition.IN_USE: "it serves another session",
    Condition.FAULTED: "its meter or relay does not work",
}
METHODS = {"keysend": pb.METHOD_KEYSEND, "onchain": pb.METHOD_ONCHAIN}

_STATES = {
    State.OPEN: pb.SESSION_STATE_OPEN,
    State.DELIVERING: pb.SESSION_STATE_DELIVERING,
    State.PAUSED: pb.SESSION_STATE_PAUSED,
    State.SETTLING: pb.SESSION_STATE_SETTLING,
    State.CLOSED: pb.SESSION_STATE_CLOSED,
}
_REFUNDS = {
    RefundStatus.NONE: pb.REFUND_STATUS_NONE,
    RefundStatus.SENT: pb.REFUND_STATUS_SENT,
    RefundStatus.OWED: pb.REFUND_STATUS_OWED,
    RefundStatus.KEPT: pb.REFUND_STATUS_KEPT,
}


def tariff_message(tariff: Tariff) -> pb.Tariff:
    return pb.Tariff(
        tariff_id=tariff.tariff_id,
        energy_msat_per_kwh=tariff.energy_msat_per_kwh,
        time_msat_per_hour=tariff.time_msat_per_hour,
        session_fee_msat=tariff.session_fee_msat,
    )


def outlet_message(view: OutletView, rated_power_mw: int, is_open: bool) -> pb.Outlet:
    """An outlet in the offer; ``is_open``: the socket sells at all."""
    available = is_open and view.condition is Condition.AVAILABLE
    return pb.Outlet(
        outlet_id=view.outlet_id,
        max_power_mw=rated_power_mw,
        available=available,
        unavailable_reason="" if available else why_unavailable(view),
    )


def why_unavailable(view: OutletView) -> str:
    """For people: what keeps an outlet from being sold."""
    return view.fault or _CONDITIONS[view.condition]


def statement_message(
    view: OutletView, session: Session, sequence: int, in_flight_msat: int, wish_msat: int
) -> pb.Statement:
    """The running account of ``session``; power and voltage are the outlet's present ones."""
    reading = view.reading
    return pb.Statement(
        session_id=session.session_id,
        sequence=sequence,
        state=_STATES[session.state],
        relay_closed=view.relay_closed,
        energy_uwh=session.energy_uwh,
        delivered_ms=session.delivered_ms,
        power_mw=reading.power_mw if reading else 0,
        voltage_mv=max(0, reading.voltage_mv) if reading else 0,
        current_ma=reading.current_ma if reading else 0,
        credited_msat=session.account.credited_msat,
        charged_msat=session.account.charged_msat,
        refunded_msat=session.account.refunded_msat,
        balance_msat=session.account.balance_msat,
        in_flight_msat=in_flight_msat,
        payments=session.account.payments,
        min_increment_msat=wish_msat,
        stop_reason=session.stop_reason or "",
        onchain_credited_msat=session.account.onchain_msat,
    )


def receipt_message(
    record: SessionRecord,
    node_id: str,
    refund_payment_hash: str,
    onchain_msat: int,
    chosen: Version | None,
    *,
    is_from_older_copy: bool = False,
) -> pb.Receipt:
    """The final statement of a closed session. ``onchain_msat``: what was credited on the chain; ``chosen``: the
    version that is broadcast; ``is_from_older_copy``: there may be an earlier one that the ledger has lost."""
    session = record.session
    return pb.Receipt(
        session_id=session.session_id,
        node_id=node_id,
        outlet_id=session.outlet_id,
        cable_node_id=record.cable_node_id,
        method=METHODS[session.method],
        tariff=tariff_message(session.terms.tariff),
        opened_at=record.opened_at,
        closed_at=record.closed_at or 0,
        stop_reason=session.stop_reason or "",
        energy_uwh=session.energy_uwh,
        delivered_ms=session.delivered_ms,
        credited_msat=session.account.credited_msat,
        charged_msat=session.account.charged_msat,
        refunded_msat=session.account.refunded_msat,
        balance_msat=session.account.balance_msat,
        payments=session.account.payments,
        refund_status=_REFUNDS[session.refund_status],
        refund_fee_msat=session.refund_fee_msat,
        refund_payment_hash=refund_payment_hash,
        onchain_credited_msat=onchain_msat,
        returned_msat=session.returned_msat,
        onchain_txid=chosen.txid if chosen is not None else "",
        onchain_value_sat=chosen.value_sat if chosen is not None else 0,
        from_restored_ledger=is_from_older_copy,
    )
