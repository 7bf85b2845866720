"""Taking up a session where an earlier run left it, or a new one where it begins, with what the ledger holds of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.cable.link.stream import Happening, Unbelievable
from wattline.cable.link.transport import read_receipt
from wattline.cable.opening import Agreement, Equipment
from wattline.cable.pay.keysend import PURPOSE
from wattline.cable.pay.settlement import Bill, Evidence
from wattline.cable.policy.budget import DaySpending, PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import Opened, Receipt, Refusal, SignedReceipt
from wattline.cable.policy.failures import Fallback
from wattline.cable.policy.offer import BuyerLimits, OfferError, PriceLimits, SessionTerms, check_prices
from wattline.cable.policy.reconciliation import (
    UWH_PER_KWH,
    EnergyTrack,
    Known,
    OnchainKnown,
    Tolerance,
    objections,
    unheard_ms,
)
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.clock import Moment
from wattline.core.errors import RetryError, WattlineError
from wattline.core.lastday import EARLIEST_S
from wattline.core.ledger.cable import CableAggregate, CableSession
from wattline.core.ledger.outgoing import Intent, IntentStatus, Outgoing
from wattline.core.tariff import cost_msat
from wattline.core.wire.bounds import MAX_ENERGY_UWH
from wattline.core.wire.fields import socket_code
from wattline.device.meters.reading import Reading

UNBELIEVABLE = "message_invalid"


class SessionOver(WattlineError):
    """The socket does not know (any more) the session that was to be resumed."""


class NotOpened(RetryError):
    """The socket answers, but not to the open or resume."""


def refusal_of_open(happening: Happening | None, remembered: CableSession) -> WattlineError | None:
    """What the socket's answer to the open or resume of ``remembered`` means; None when it is no refusal."""
    is_resumed = remembered.session_id is not None
    match happening:
        case Refusal(code=code, message=message):
            error = SessionOver if is_resumed else OfferError
            return error(socket_code(code), f"the socket refuses: {code}: {message}")
        case Unbelievable(detail):
            return OfferError(UNBELIEVABLE, f"the socket's answer cannot be: {detail}")
        case SignedReceipt():
            return SessionOver("session_closed", "the session was closed meanwhile")
        case _:
            return None


def with_receipt(session: CableSession, signed: SignedReceipt) -> CableSession:
    """``session`` with the socket's receipt, which was checked."""
    return replace(session, receipt=signed.receipt, receipt_signature=signed.signature)


def save(session: CableSession, reading: Reading | None, equipment: Equipment) -> None:
    """Write ``session`` down; ``reading`` is the newest of the own meter. Raises the ledger's errors."""
    # What a chip without a sign counted of backflow, the next process finds in its count, too.
    backflow_uwh = reading.backflow_uwh if reading is not None else 0
    equipment.ledger.cable_sessions.save(replace(session, base_uwh=session.base_uwh + backflow_uwh))


@dataclass(frozen=True, slots=True)
class RestoredPayments:
    """What the ledger knows of a session's payments."""

    settled_msat: int
    sent_msat: int
    payments: int
    in_doubt: tuple[Intent, ...]
    next_sequence: int


def restore(outgoing: Outgoing, session_id: str) -> RestoredPayments:
    """The payments of earlier runs; all zero for a new session. Sequence 0 is the socket's refund, ours begin at 1."""
    settled = sent = payments = last = 0
    in_doubt = []
    for intent in outgoing.of_session(PURPOSE, session_id):
        last = max(last, intent.sequence)
        if intent.status is IntentStatus.COMPLETE:
            settled += intent.amount_msat
            sent += intent.amount_sent_msat
            payments += 1
        elif intent.status is IntentStatus.PENDING:
            in_doubt.append(intent)
    return RestoredPayments(settled, sent, payments, tuple(in_doubt), last + 1)


def paid_msat(equipment: Equipment, session_id: str) -> int:
    """The most that the socket can have got for a session, payments in doubt included."""
    earlier = restore(equipment.ledger.outgoing, session_id)
    row = equipment.ledger.cable_aggregates.of(session_id)
    in_doubt_msat = sum(intent.amount_msat for intent in earlier.in_doubt)
    return earlier.settled_msat + in_doubt_msat + (row.signed_sat * MSAT_PER_SAT if row is not None else 0)


def place_energy(
    remembered: CableSession, reading: Reading, socket_uwh: int, paid_msat: int, now: Moment
) -> tuple[CableSession, int]:
    """Where own energy of a resumed session goes on from, and how much of it only the socket has seen: no more than was
    paid for, since what is taken for delivered makes room for new payments."""
    price_msat = remembered.tariff.energy_msat_per_kwh
    paid_uwh = paid_msat * UWH_PER_KWH // price_msat if price_msat else MAX_ENERGY_UWH
    resumption = resume_energy(
        base_uwh=remembered.base_uwh,
        extra_uwh=remembered.extra_uwh,
        last_own_uwh=remembered.energy_uwh,
        chip_now_uwh=reading.energy_uwh,
        socket_uwh=socket_uwh,
        most_in_gap_uwh=min(
            remembered.rated_power_mw * unseen_ms(remembered, now) // 3600, max(0, paid_uwh - remembered.energy_uwh)
        ),
    )
    return replace(remembered, base_uwh=resumption.base_uwh, extra_uwh=resumption.extra_uwh), resumption.gap_uwh


@dataclass(frozen=True, slots=True)
class Placed:
    """A session that the socket has opened or resumed."""

    session: CableSession
    gap_uwh: int
    """Energy that only the socket has seen."""
    most_ms: int
    """The longest that it can have delivered by now."""
    age_ms: int
    """How long ago it was opened, as far as the clocks tell; for people."""


def place(
    remembered: CableSession, opened: Opened, reading: Reading, limits: PriceLimits, equipment: Equipment
) -> Placed:
    """``remembered`` now that the socket has opened or resumed it. Raises OfferError ``price_too_high`` when its tariff
    is another one than agreed, or too dear."""
    now = equipment.wall.now()
    if opened.tariff != remembered.tariff:
        raise OfferError(
            "price_too_high",
            f"the session's tariff {opened.tariff} is not the one of the offer, {remembered.tariff}",
        )
    if remembered.session_id is not None:
        paid = paid_msat(equipment, remembered.session_id)
        session, gap_uwh = place_energy(remembered, reading, opened.statement.energy_uwh, paid, now)
        most_ms = longest_ms(session, now)
        return Placed(session, gap_uwh, most_ms, session.lasted_ms + away_ms(session, now))
    check_prices(opened.tariff, limits)
    begun = replace(
        remembered,
        session_id=opened.session_id,
        opened_at=now.wall_s,
        base_uwh=reading.energy_uwh,
    )
    return Placed(begun.saved_now(now), 0, 0, 0)


def longest_ms(remembered: CableSession, now: Moment) -> int:
    """The longest that a resumed session can have delivered by ``now``: what was on record, and the time since."""
    return remembered.delivered_ms + unseen_ms(remembered, now)


def as_it_stands(remembered: CableSession, buyer: Buyer, equipment: Equipment, opened_ms: int) -> CableSession:
    """``remembered`` with what the running session has come to, to be written now. ``opened_ms``: for people."""
    delivered_ms = buyer.charge.most_delivered_ms(equipment.clock_ms())
    return replace(
        remembered,
        energy_uwh=buyer.track.energy_uwh,
        delivered_ms=remembered.delivered_ms if delivered_ms is None else delivered_ms,
        lasted_ms=equipment.clock_ms() - opened_ms,
    ).saved_now(equipment.wall.now())


def make_buyer(
    settings: CableSettings,
    equipment: Equipment,
    agreement: Agreement,
    remembered: CableSession,
    reading: Reading,
    opened_ms: int,
) -> Buyer:
    """The deciding part, with everything that the ledger knows of the session's payments over Lightning already in its
    account; what it knows of on-chain ones, :class:`wattline.cable.onchain_side.OnchainSide` puts there."""
    session_id, offer = remembered.session_id, agreement.opened.offer
    assert session_id is not None
    earlier = restore(equipment.ledger.outgoing, session_id)
    track = EnergyTrack(remembered.base_uwh, remembered.extra_uwh)
    track.add(reading.at_ms, reading.energy_uwh)
    terms = SessionTerms(
        session_id=session_id,
        node_id=remembered.node_id,
        outlet_id=remembered.outlet_id,
        tariff=remembered.tariff,
        rated_power_mw=remembered.rated_power_mw,
        credit_cap_msat=offer.credit_cap_msat,
        statement_interval_ms=offer.statement_interval_ms,
        min_increment_msat=offer.min_increment_msat,
        # Of a session that goes on, the offer may be another one by now.
        min_refund_msat=min(offer.min_refund_msat, settings.limits.most_kept_msat),
    )
    buyer = Buyer(
        terms=terms,
        limits=BuyerLimits(
            settings.limits.caps,
            settings.payment.pace,
            settings.limits.tolerance,
            settings.payment.max_failures_in_a_row,
            settings.limits.min_voltage_mv,
        ),
        account=PaymentAccount(earlier.settled_msat, earlier.sent_msat, earlier.payments),
        track=track,
        day_sent_msat=DaySpending(
            lambda: equipment.session_sent_msat(session_id),
            equipment.day_sent_msat,
            lambda: equipment.clock_ms() / 1000,
        ),
        next_sequence=earlier.next_sequence,
        opened_ms=opened_ms,
        fallback=_fallback(settings, agreement),
    )
    for intent in earlier.in_doubt:
        buyer.adopt(intent.sequence, intent.amount_msat, intent.maxfee_msat)
    return buyer


def _fallback(settings: CableSettings, agreement: Agreement) -> Fallback | None:
    """With ``auto`` and over Lightning so far, where the socket takes both."""
    is_auto = settings.payment.method == "auto" and agreement.method == "keysend"
    return Fallback() if is_auto and agreement.opened.offer.onchain is not None else None


DOWN_MARGIN_MS = 2_000
"""Times of the record are whole seconds."""


def saved_evidence(session: CableSession, keysend_msat: int, tolerance: Tolerance, now: Moment) -> Evidence:
    """By what the ledger holds of ``session``. Where its end was not seen, as much counts as delivered as the outlet's
    rated power can have delivered since the last write."""
    energy_uwh, delivered_ms = session.energy_uwh, session.delivered_ms
    if not session.is_end_seen:
        gap_ms = unseen_ms(session, now)
        energy_uwh += session.rated_power_mw * gap_ms // 3600
        delivered_ms += gap_ms
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
    over = replace(
        session,
        energy_uwh=energy_uwh,
        delivered_ms=session.delivered_ms + gap_ms,
        closed_at=now.wall_s,
        is_end_seen=True,
    )
    return over.saved_now(now)


def away_ms(session: CableSession, now: Moment) -> int:
    """How long ago ``session`` was written down, as far as the clocks tell; for people."""
    passed_ms = session.saved.passed_ms(now)
    if passed_ms is not None:
        return passed_ms
    are_set = min(session.saved_at, now.wall_s) >= EARLIEST_S
    return max(now.boot_ms, (now.wall_s - session.saved_at) * 1000 if are_set else 0)


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
class Resumption:
    """How own energy goes on after the cable was down."""

    base_uwh: int
    extra_uwh: int
    gap_uwh: int
    """Energy that only the socket has seen; 0 when the chip counted through."""


def resume_energy(
    base_uwh: int, extra_uwh: int, last_own_uwh: int, chip_now_uwh: int, socket_uwh: int, most_in_gap_uwh: int
) -> Resumption:
    """Where to count on from. ``last_own_uwh`` is the newest own energy on record, ``socket_uwh`` the socket's claim at
    the resumption, ``most_in_gap_uwh`` what can at most have flowed meanwhile (rated power, and what was paid).

    A chip that counted through is believed. One that starts anew (lost supply, was reset) cannot tell what flowed: then
    the socket's claim is taken for the gap, as far as it is possible at all."""
    if chip_now_uwh - base_uwh + extra_uwh >= last_own_uwh:
        return Resumption(base_uwh, extra_uwh, 0)
    gap = min(max(0, socket_uwh - last_own_uwh), most_in_gap_uwh)
    return Resumption(chip_now_uwh, last_own_uwh + gap, gap)


def objections_of_found(
    session: CableSession,
    last_uwh: int,
    receipt: Receipt,
    payments: RestoredPayments,
    row: CableAggregate | None,
    tolerance: Tolerance,
) -> list[str]:
    """The same for a session that no run saw the end of: ``session`` as it was found over, with the longest that it can
    have delivered, ``last_uwh`` the own energy that was on record before, ``row`` its aggregate."""
    onchain, onchain_msat = None, 0
    if row is not None and row.signed_sat:
        onchain_msat = row.accepted_sat * MSAT_PER_SAT
        onchain = OnchainKnown(row.floor_sat, onchain_msat, row.signed_sat * MSAT_PER_SAT, {}, row.is_final_taken)
    settled_msat = payments.settled_msat + onchain_msat
    return objections(
        receipt,
        Known(last_uwh, session.energy_uwh, session.delivered_ms, settled_msat),
        session.tariff,
        tolerance,
        settled_msat,
        session.min_refund_msat,
        (payments.sent_msat - payments.settled_msat) // max(1, payments.payments),
        onchain,
    )
