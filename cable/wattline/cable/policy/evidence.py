"""What the end of an aggregate is judged by: the cable's own bill, and the socket's signed receipt. Pure.

All of it is in the ledger while the session lives, so whoever finds its end judges by the same, also when the run that
should have seen it was killed. docs/onchain.md has the rule in words.

Whether the final version that a socket asks for pays what is owed, and no more. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.cable.link.messages import FinalDue, SignedReceipt
from wattline.cable.link.receipt import Receipt, read_receipt
from wattline.cable.policy.reconciliation import Tolerance, unheard_ms
from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.clock import Moment
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregate, CableSession
from wattline.core.tariff import cost_msat
from wattline.device.meters.reading import Reading

DOWN_MARGIN_MS = 2_000
"""Times of the record are whole seconds."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a session can have come to by the cable's own account."""

    most_charge_msat: int
    """The highest charge that an honest meter can have come to."""
    keysend_msat: int
    """Surely arrived over Lightning."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """See the module."""

    bill: Bill | None = None
    """None: nothing is known of the session but its aggregate."""
    receipt: Receipt | None = None
    """Its signature was checked."""
    min_refund_msat: int = 0
    """Unused credit below this the socket keeps, by its offer."""

    def due_sat(self, row: CableAggregate) -> int:
        """The most that is due: the smaller of the cable's own account (the final version where one was signed, else
        the bill, at least the floor) and of what the receipt itself says is charged and taken."""
        due_sat, keysend_msat = row.signed_sat, 0
        if self.bill is not None:
            keysend_msat = self.bill.keysend_msat
            due_sat = min(due_sat, final_value_sat(self.bill.most_charge_msat, keysend_msat, row.floor_sat))
        if row.final_sat is not None:
            due_sat = row.final_sat
        told = self.receipt
        if told is None:
            return due_sat
        keysend_msat = max(keysend_msat, told.credited_msat - told.onchain_credited_msat)
        due_sat = min(due_sat, final_value_sat(told.charged_msat, keysend_msat, row.floor_sat))
        return min(due_sat + self._kept_sat, told.onchain_value_sat, row.signed_sat)

    @property
    def _kept_sat(self) -> int:
        """What a socket may keep, and says that it does."""
        told = self.receipt
        if told is None or told.refund_status != "kept":
            return 0
        kept_msat = told.credited_msat - told.charged_msat - told.refunded_msat
        return kept_msat // MSAT_PER_SAT if 0 < kept_msat < self.min_refund_msat else 0


def saved_evidence(session: CableSession, keysend_msat: int, tolerance: Tolerance, now: Moment) -> Evidence:
    """By what the ledger holds of ``session``. Where its end was not seen, as much counts as delivered as the outlet's
    rated power can have delivered since the last write."""
    energy_uwh, delivered_ms = session.energy_uwh, session.delivered_ms
    is_end_seen = session.closed_at is not None and session.saved_at >= session.closed_at
    if not is_end_seen:
        gap_ms = unseen_ms(session, now)
        energy_uwh += session.rated_power_mw * gap_ms // 3600
        delivered_ms = None if delivered_ms is None else delivered_ms + gap_ms
    if delivered_ms is None:
        over_s = session.closed_at if is_end_seen and session.closed_at is not None else now.wall_s
        age_ms = max(0, over_s - (session.opened_at or session.created_at)) * 1000 + DOWN_MARGIN_MS
        delivered_ms = max(age_ms, 0 if is_end_seen else unseen_ms(session, now))
    most_charge_msat = cost_msat(session.tariff, energy_uwh + tolerance.allowed_uwh(energy_uwh), delivered_ms, True)
    return Evidence(Bill(most_charge_msat, keysend_msat), saved_receipt(session), session.min_refund_msat)


def unseen_ms(session: CableSession, now: Moment) -> int:
    """For how long, at the most, nobody has written down what ``session`` came to.

    Within a boot of the machine that is known. Across one the wall clock may be behind, so it counts for no less than
    the machine has been running, and than a socket delivers to a cable that is away: nobody is accused by a clock."""
    passed_ms = session.saved.passed_ms(now)
    if passed_ms is None:
        written_s = max(session.saved_at, session.opened_at or session.created_at)
        up_ms = now.boot_ms if session.saved_boot_id else 0
        passed_ms = max((now.wall_s - written_s) * 1000, up_ms, unheard_ms(session.cable_lost_s))
    return passed_ms + DOWN_MARGIN_MS


def found_over(session: CableSession, reading: Reading | None, now: Moment) -> CableSession:
    """``session`` of an earlier run, closed now that it turned out to be over, with the most that can have been
    delivered. The own meter is believed when it has counted through; ``reading``: None when it gives none."""
    gap_ms = unseen_ms(session, now)
    energy_uwh = session.energy_uwh + session.rated_power_mw * gap_ms // 3600
    if reading is not None:
        counted_uwh = reading.energy_uwh - session.base_uwh + session.extra_uwh
        if counted_uwh >= session.energy_uwh:
            energy_uwh = counted_uwh
    delivered_ms = None if session.delivered_ms is None else session.delivered_ms + gap_ms
    over = replace(session, energy_uwh=energy_uwh, delivered_ms=delivered_ms, closed_at=now.wall_s)
    return over.saved_now(now)


def saved_receipt(session: CableSession) -> Receipt | None:
    """That of ``session``, which was checked before it was saved; None when there is none."""
    if not session.receipt or session.session_id is None:
        return None
    try:
        signed = SignedReceipt(session.receipt, session.receipt_signature)
        return read_receipt(signed, session.node_id, session.session_id)
    except WattlineError:
        return None


@dataclass(frozen=True, slots=True)
class FinalKnown:
    """What the cable knows itself."""

    is_trusted: bool
    """The socket's account was true so far."""
    floor_sat: int
    handed_over_sat: int
    """The largest value that the socket may hold."""
    keysend_msat: int
    """Surely arrived over Lightning."""
    most_charge_msat: int
    """The highest charge that an honest meter can have come to."""


def refusal_of(due: FinalDue, known: FinalKnown) -> str | None:
    """Why such a version is not signed, in one line; None when it is."""
    if not known.is_trusted:
        return "the socket's account was wrong before"
    if due.charged_msat > known.most_charge_msat:
        return (
            f"the socket charges {due.charged_msat} msat; by the cable's own meter and the tolerance it can be "
            f"{known.most_charge_msat} msat at the most"
        )
    if due.keysend_msat < known.keysend_msat:
        return f"the socket counts {due.keysend_msat} msat paid by keysend; {known.keysend_msat} msat have arrived"
    value_sat = final_value_sat(due.charged_msat, due.keysend_msat, known.floor_sat)
    if due.value_sat != value_sat:
        return (
            f"the socket wants {due.value_sat} sat for a charge of {due.charged_msat} msat less {due.keysend_msat} "
            f"msat paid by keysend; that makes {value_sat} sat"
        )
    if not 0 < due.value_sat < known.handed_over_sat:
        return f"the socket wants {due.value_sat} sat in place of {known.handed_over_sat} sat: that is not less"
    return None
