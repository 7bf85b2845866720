"""A session turned into what is shown of it while it runs and said of it at its end."""

from __future__ import annotations

from collections.abc import Sequence

from wattline.cable.link.receipt import Receipt
from wattline.cable.pay.onchain_end import agreed_sat
from wattline.cable.policy.buyer import Buyer
from wattline.cable.settings import CableSettings
from wattline.cable.summary import Snapshot, Summary, percentile
from wattline.core.ledger.cable import CableAggregate
from wattline.device.meters.reading import Reading


def snapshot_of(
    buyer: Buyer,
    settings: CableSettings,
    reading: Reading | None,
    day_sent_msat: int,
    connected: bool,
    elapsed_ms: int,
) -> Snapshot:
    """The session as it is now."""
    statement, account, terms = buyer.statement, buyer.account, buyer.terms
    return Snapshot(
        socket=settings.socket.parsed.target,
        session_id=terms.session_id,
        outlet_id=terms.outlet_id,
        price_msat_per_kwh=terms.tariff.energy_msat_per_kwh,
        state=statement.state if statement else "",
        relay_closed=statement.relay_closed if statement else False,
        connected=connected,
        seconds=elapsed_ms / 1000,
        power_mw=reading.power_mw if reading else 0,
        voltage_mv=reading.voltage_mv if reading else 0,
        current_ma=reading.current_ma if reading else 0,
        energy_uwh_cable=buyer.track.energy_uwh,
        energy_uwh_socket=statement.energy_uwh if statement else 0,
        socket_power_mw=statement.power_mw if statement else 0,
        credited_msat=statement.credited_msat if statement else 0,
        charged_msat=statement.charged_msat if statement else 0,
        balance_msat=statement.balance_msat if statement else 0,
        paid_msat=account.settled_msat,
        in_flight_msat=account.in_flight_msat,
        in_flight=account.in_flight,
        in_doubt=len(buyer.in_doubt),
        payments=account.payments,
        failed_payments=account.failed_payments,
        latency_ms=buyer.latency.estimate_ms,
        fees_msat=account.fees_msat,
        prepaid_msat=buyer.prepaid_msat,
        max_prepaid_msat=buyer.max_prepaid_msat if buyer.method == "onchain" else settings.limits.max_prepaid_msat,
        session_sent_msat=account.sent_msat,
        max_session_msat=settings.limits.max_session_msat,
        day_sent_msat=day_sent_msat,
        max_day_msat=settings.limits.max_day_msat,
        hold=buyer.hold,
        stop_reason=buyer.stop.reason if buyer.stop else "",
    )


def summary_of(
    buyer: Buyer,
    receipt: Receipt | None,
    objections: Sequence[str],
    refund_seen: bool | None,
    elapsed_ms: int,
    aggregate: CableAggregate | None = None,
) -> Summary:
    """The session as it ended: the receipt's figures where there is one, else those of the last statement."""
    account, terms, statement = buyer.account, buyer.terms, buyer.statement
    final = receipt.claim if receipt is not None else statement.claim if statement is not None else None
    durations = list(account.durations_ms)
    socket_stop_reason = receipt.stop_reason if receipt is not None else statement.stop_reason if statement else ""
    value_sat = 0
    if aggregate is not None and aggregate.signed_sat:
        value_sat = receipt.onchain_value_sat if receipt is not None else agreed_sat(aggregate)
    return Summary(
        stop_reason=buyer.stop.reason if buyer.stop else "",
        message=buyer.stop.message if buyer.stop else "",
        session_id=terms.session_id,
        socket_node_id=terms.node_id,
        outlet_id=terms.outlet_id,
        seconds=elapsed_ms / 1000,
        energy_uwh_socket=final.energy_uwh if final else 0,
        energy_uwh_cable=buyer.track.energy_uwh,
        delivered_ms=final.delivered_ms if final else 0,
        price_msat_per_kwh=terms.tariff.energy_msat_per_kwh,
        paid_msat=account.settled_msat,
        credited_msat=final.credited_msat if final else 0,
        charged_msat=final.charged_msat if final else 0,
        refunded_msat=final.refunded_msat if final else 0,
        balance_msat=final.balance_msat if final else 0,
        fees_msat=account.fees_msat,
        in_doubt_msat=account.in_flight_msat,
        payments=account.payments,
        failed_payments=account.failed_payments,
        payment_ms_p50=percentile(durations, 50),
        payment_ms_p99=percentile(durations, 99),
        max_prepaid_msat=buyer.max_prepaid_seen_msat,
        socket_stop_reason=socket_stop_reason,
        receipt=receipt is not None,
        refund_status=receipt.refund_status if receipt is not None else "",
        refund_seen=refund_seen,
        objections=tuple(objections),
        method="onchain" if buyer.is_paying_onchain else "keysend",
        increments=account.increments,
        txid=receipt.onchain_txid if receipt is not None else "",
        fee_sat=aggregate.fee_sat if value_sat and aggregate is not None else 0,
        onchain_value_sat=value_sat,
    )
