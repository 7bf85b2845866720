"""Taking up a session where an earlier run left it, or a new one where it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.cable.link.messages import Opened
from wattline.cable.link.offer import OfferError, check_prices
from wattline.cable.link.opening import Agreement, Equipment
from wattline.cable.memory import OutgoingRecord
from wattline.cable.pay.keysend import PURPOSE
from wattline.cable.policy.account import Account, DaySpending
from wattline.cable.policy.buyer import Buyer, Terms
from wattline.cable.policy.delivery import EnergyTrack, resume_energy
from wattline.cable.policy.evidence import unseen_ms
from wattline.cable.policy.failures import Fallback
from wattline.cable.policy.reconciliation import UWH_PER_KWH
from wattline.cable.settings import CableSettings, LimitSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.clock import Moment
from wattline.core.ledger.cable import CableSession
from wattline.core.ledger.outgoing import Intent, IntentStatus
from wattline.core.wire.bounds import MAX_ENERGY_UWH
from wattline.device.meters.reading import Reading


@dataclass(frozen=True, slots=True)
class RestoredPayments:
    """What the ledger knows of a session's payments."""

    settled_msat: int
    sent_msat: int
    payments: int
    in_doubt: tuple[Intent, ...]
    next_sequence: int


def restore(outgoing: OutgoingRecord, session_id: str) -> RestoredPayments:
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


def paid_msat(equipment: Equipment, session_id: str | None) -> int:
    """The most that the socket can have got for a session, payments in doubt included; 0 for one without a name."""
    if session_id is None:
        return 0
    earlier = restore(equipment.outgoing, session_id)
    row = equipment.onchain.memory.of(session_id) if equipment.onchain is not None else None
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


def place(
    remembered: CableSession, opened: Opened, reading: Reading, limits: LimitSettings, paid_msat: int, now: Moment
) -> tuple[CableSession, int]:
    """``remembered`` when the socket has opened or resumed it, and how much energy only the socket has seen. Raises
    OfferError ``price_too_high`` when its tariff is another one than agreed, or too dear."""
    if opened.tariff != remembered.tariff:
        raise OfferError(
            "price_too_high",
            f"the session's tariff {opened.tariff} is not the one of the offer, {remembered.tariff}",
        )
    if remembered.session_id is not None:
        return place_energy(remembered, reading, opened.statement.energy_uwh, paid_msat, now)
    check_prices(opened.tariff, limits)
    begun = replace(
        remembered,
        session_id=opened.session_id,
        opened_at=now.wall_s,
        base_uwh=reading.energy_uwh,
        delivered_ms=0,
    )
    return begun.saved_now(now), 0


def longest_ms(remembered: CableSession, now: Moment) -> int:
    """The longest that a resumed session can have delivered by ``now``: what was on record, and the time since."""
    delivered_ms = remembered.delivered_ms
    if delivered_ms is None:
        delivered_ms = max(0, now.wall_s - (remembered.opened_at or remembered.created_at)) * 1000
    return delivered_ms + unseen_ms(remembered, now)


def held_msat(outgoing: OutgoingRecord, session_id: str | None) -> int:
    """What payments of other sessions than this one would bring to their sockets, msat, of which the own node does not
    know yet what becomes of them: whoever holds one (BOLT #2 gives him hours) may still take it."""
    return sum(
        intent.amount_msat
        for intent in outgoing.pending()
        if intent.purpose == PURPOSE and intent.session_id != session_id
    )


def without_held(settings: CableSettings, held_msat: int) -> CableSettings:
    """The settings of a session beside which so much is still on its way: the caps on what is prepaid hold for all
    sessions together."""
    limits, onchain = settings.limits, settings.onchain
    prepaid_msat = max(0, limits.max_prepaid_msat - held_msat)
    prepaid_sat = max(0, onchain.max_prepaid_sat - -(-held_msat // MSAT_PER_SAT))
    return settings.model_copy(
        update={
            "limits": limits.model_copy(update={"max_prepaid_msat": prepaid_msat}),
            "onchain": onchain.model_copy(update={"max_prepaid_sat": prepaid_sat}),
        }
    )


def make_buyer(
    settings: CableSettings,
    equipment: Equipment,
    agreement: Agreement,
    remembered: CableSession,
    reading: Reading,
    opened_ms: int,
) -> Buyer:
    """The deciding part, with everything that the ledger knows of the session's payments over Lightning already in its
    account; what it knows of on-chain ones, :class:`wattline.cable.pay.onchain_side.OnchainSide` puts there."""
    session_id, offer = remembered.session_id, agreement.opened.offer
    assert session_id is not None
    earlier = restore(equipment.outgoing, session_id)
    track = EnergyTrack(remembered.base_uwh, remembered.extra_uwh)
    track.add(reading.at_ms, reading.energy_uwh)
    terms = Terms(
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
        caps=settings.limits.caps,
        pace=settings.payment.pace,
        tolerance=settings.limits.tolerance,
        max_failures_in_a_row=settings.payment.max_failures_in_a_row,
        account=Account(earlier.settled_msat, earlier.sent_msat, earlier.payments),
        track=track,
        day_sent_msat=DaySpending(
            equipment.sent, session_id, equipment.wall.day_begins_s, lambda: equipment.clock_ms() / 1000
        ),
        next_sequence=earlier.next_sequence,
        opened_ms=opened_ms,
        fallback=_fallback(settings, equipment, agreement),
        min_voltage_mv=settings.limits.min_voltage_mv,
    )
    for intent in earlier.in_doubt:
        buyer.adopt(intent.sequence, intent.amount_msat, intent.maxfee_msat)
    return buyer


def _fallback(settings: CableSettings, equipment: Equipment, agreement: Agreement) -> Fallback | None:
    """With ``auto`` and over Lightning so far, where the socket takes both."""
    is_auto = settings.payment.method == "auto" and agreement.method == "keysend"
    has_both = agreement.opened.offer.onchain is not None and equipment.onchain is not None
    return Fallback() if is_auto and has_both else None
