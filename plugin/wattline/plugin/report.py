"""What the operator sees: outlets, sessions and totals as JSON objects (the results of the RPC methods)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateStatus, Version, lost_msat
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.tariff import Tariff
from wattline.plugin.certificate import Identity
from wattline.plugin.journal import JournalReader
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.onchain.input_watch import InputWatch
from wattline.plugin.opening import PriceList
from wattline.plugin.outlet_state import OutletView
from wattline.plugin.sessions import Sessions

Json = dict[str, Any]
MOST_SHOWN = 100
"""So many sessions of which a refund is held."""


def outlet_object(view: OutletView) -> Json:
    """One outlet; powers and currents are null when the meter does not answer: nobody knows, which is not zero."""
    reading = view.reading
    result: Json = {
        "outlet_id": view.outlet_id,
        "state": view.condition.value,
        "relay": "closed" if view.relay_closed else "open",
        "power_mw": reading.power_mw if reading else None,
        "voltage_mv": reading.voltage_mv if reading else None,
        "current_ma": reading.current_ma if reading else None,
        "energy_uwh": reading.energy_uwh if reading else None,
        "session_id": view.session.session_id if view.session else None,
        "waiting_sessions": [session.session_id for session in view.waiting if session.state.is_live],
    }
    if view.fault:
        result["fault"] = view.fault
    return result


def session_object(record: SessionRecord, max_unpaid_msat: int | None = None) -> Json:
    """One session, live or over."""
    session = record.session
    account = session.account
    result: Json = {
        "session_id": session.session_id,
        "outlet_id": session.outlet_id,
        "method": session.method.value,
        "state": session.state.value,
        "stop_reason": session.stop_reason.value if session.stop_reason else None,
        "opened_at": record.opened_at,
        "closed_at": record.closed_at,
        "energy_uwh": session.energy_uwh,
        "delivered_ms": session.delivered_ms,
        "charged_msat": account.charged_msat,
        "credited_msat": account.credited_msat,
        "refunded_msat": account.refunded_msat,
        "balance_msat": account.balance_msat,
        "payments": account.payments,
        "refund_status": session.refund_status.value,
        "refund_fee_msat": session.refund_fee_msat,
        "cable_node_id": record.cable_node_id,
        "tariff_id": session.terms.tariff.tariff_id,
        "energy_msat_per_kwh": session.terms.tariff.energy_msat_per_kwh,
    }
    if max_unpaid_msat is not None:
        result["max_unpaid_msat"] = max_unpaid_msat
    return result


def onchain_object(aggregate: Aggregate, version: Version | None, increments: int, tip_height: int | None) -> Json:
    """The aggregate of one session; ``version`` is the one that is (or would be) broadcast."""
    is_pending = aggregate.status in (AggregateStatus.OPEN, AggregateStatus.SENT) and aggregate.mined_block is None
    mined_height = aggregate.mined_height
    confirmations = 0
    if mined_height is not None and tip_height is not None:
        confirmations = max(1, tip_height - mined_height + 1)
    return {
        "status": aggregate.status.value,
        "address": aggregate.address,
        "increments": increments,
        "txid": version.txid if version else None,
        "value_sat": version.value_sat if version else 0,
        "fee_sat": version.fee_sat if version else 0,
        "vsize": version.vsize if version else 0,
        "choice_reason": aggregate.choice_reason or None,
        "mined_txid": aggregate.mined_txid,
        "mined_value_sat": aggregate.mined_value_sat,
        "blockheight": mined_height,
        "confirmations": confirmations,
        "exposure_sat": version.value_sat if version and is_pending else 0,
        "child_txid": aggregate.child_txid,
    }


def tariff_object(tariff: Tariff) -> Json:
    return {
        "tariff_id": tariff.tariff_id,
        "energy_msat_per_kwh": tariff.energy_msat_per_kwh,
        "time_msat_per_hour": tariff.time_msat_per_hour,
        "session_fee_msat": tariff.session_fee_msat,
    }


class Report:
    """Answers the operator from the socket and its ledger."""

    def __init__(
        self,
        ledger: Ledger,
        sessions: Sessions,
        prices: PriceList,
        outlets: Callable[[], Sequence[OutletView]],
        journal: JournalReader,
        identity: Identity,
        copy: OlderCopy,
        onchain: InputWatch | None,
        problems: Callable[[], Sequence[str]],
        ready: threading.Event,
    ) -> None:
        """``problems``: a line for each thing that payments need and that is not there."""
        self._problems = problems
        self._ledger = ledger
        self._sessions = sessions
        self._prices = prices
        self._outlets = outlets
        self._journal = journal
        self._ready = ready
        self._identity = identity
        self._copy = copy
        self._onchain = onchain

    def status(self) -> Json:
        cursor, held = self._ledger.cursor(), self._copy.held()
        return {
            "node_id": self._identity.node_id,
            "network": self._identity.network,
            "listen": self._identity.listen,
            "address": f"{self._identity.node_id}@{self._identity.listen}",
            "certificate_sha256": self._identity.certificate_sha256.hex(),
            "state": "running" if self._ready.is_set() else "starting",
            "tariff": tariff_object(self._prices.current),
            "outlets": [outlet_object(view) for view in self._outlets()],
            "journal": {
                "updated_index": cursor.updated_index,
                "pay_index": cursor.pay_index,
                "missing_invoices": self._journal.missing_invoices,
                "unlisted_payments": self._journal.unlisted_payments,
            },
            "problems": list(self._problems()),
            "refunds_owed": len(self._ledger.owed_refunds()),
            "refunds_held": len(held),
            "held_sessions": sorted(set(held))[:MOST_SHOWN],
            "ledger_restored_at": self._copy.noticed_at,
            "onchain": self._onchain_status(),
        }

    def _onchain_status(self) -> Json:
        if self._onchain is None:
            return {"enabled": False}
        return {
            "enabled": True,
            "trouble": self._onchain.trouble or None,
            "blockheight": self._onchain.tip_height,
            "exposure_sat": self._ledger.exposure_sat(),
            "unfinished": len(self._ledger.unfinished_aggregates()),
            "refused_cables": len(self._ledger.refused_cables()),
        }

    def refused_cables(self) -> list[Json]:
        """Cables that paid with what they did not have."""
        return [cable._asdict() for cable in self._ledger.refused_cables()]

    def forgive(self, cable_node_id: str) -> bool:
        """Let a cable in again; False when it was not refused."""
        return self._ledger.forgive_cable(cable_node_id)

    def sessions(self, session_id: str | None, limit: int) -> list[Json]:
        """The newest first, live ones as they are at this moment."""
        if session_id is not None:
            found = self._sessions.record(session_id)
            return [self._session(found)] if found is not None else []
        return [
            self._session(self._sessions.live(record.session.session_id) or record)
            for record in self._ledger.sessions(limit)
        ]

    def totals(self, start: int, end: int) -> Json:
        """Sums over the sessions opened from ``start`` on and before ``end``."""
        totals = self._ledger.totals(start, end)
        return {"start_time": start, "end_time": end, **asdict(totals), "balance_msat": totals.balance_msat}

    def _session(self, record: SessionRecord) -> Json:
        session_id = record.session.session_id
        result = session_object(record, self._sessions.max_unpaid_msat(session_id))
        aggregate = self._ledger.aggregate(session_id)
        if aggregate is None:
            return result
        number = aggregate.chosen_number
        newest = self._ledger.newest_version(session_id)
        version = self._ledger.version(session_id, number) if number is not None else newest
        tip_height = self._onchain.tip_height if self._onchain is not None else None
        return result | {
            "onchain_credited_msat": newest.value_sat * MSAT_PER_SAT if newest else 0,
            "returned_msat": record.session.returned_msat,
            "lost_msat": lost_msat(aggregate.lost_msat, record.session.account.balance_msat),
            "missing_msat": aggregate.lost_msat,
            "onchain": onchain_object(aggregate, version, self._ledger.increments(session_id), tip_height),
        }
