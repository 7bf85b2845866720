"""The state machine of a session: a pure function from what was and what happened to what is and what to do.

How credit and the relay's lease keep together: the energy up to the latest meter value is known, and since then no more
than max(rated, measured) power can have flowed. So from that point on the credit surely lasts `Session.left_ms`, and no
lease is longer. Whatever stops this program, and whenever, the relay opens before the credit is used up; only what a
reading or a hold comes late is unpaid, and that is far less than a meter interval.
"""

from __future__ import annotations

from dataclasses import replace

from wattline.core.session.event import (
    BooksClosed,
    CableClosed,
    CableLost,
    CableSeen,
    CreditArrived,
    CreditChecked,
    CreditReturned,
    CreditTooLateError,
    DeliveryFault,
    Displaced,
    Effect,
    Event,
    HoldRelay,
    MeterValue,
    OnchainCredited,
    OpenRelay,
    OperatorStopped,
    Refund,
    RefundKept,
    RefundNotDueError,
    RefundOwed,
    RefundSent,
    SendStatement,
    Settle,
    Tick,
    WriteReceipt,
)
from wattline.core.session.session import MAX_LEASE_MS, Account, Session
from wattline.core.session.state import RefundStatus, State, StopReason
from wattline.core.tariff import cost_msat

Step = tuple[Session, tuple[Effect, ...]]

OVER_POWER_PERCENT = 105
"""A measured power above this share of the rated one stops delivery."""
LEAK_PERCENT = 5
"""Power above this share of the rated one through an open relay is not an offset of the meter."""
NO_VOLTAGE_MS = 3_000
"""Without the supply's voltage for so long a session ends: a relay closes in 50 ms, a power supply that it switches
starts within two seconds. Time without voltage is not charged."""


def step(session: Session, event: Event, now_ms: int) -> Step:
    """What ``event`` at ``now_ms`` (monotonic) makes of ``session``, and what is to be done, in order.

    Total: an event that makes no sense in a state is ignored. The only errors are those of money, and nothing changes
    when one is raised: CreditTooLateError (a credit for a CLOSED session, or after its refund was issued),
    RefundTooLargeError (more was sent back than is unused) and RefundNotDueError (something went back although
    nothing was due). A ``now_ms`` before that of the latest event counts as the same moment.
    """
    if session.state is not State.CLOSED:
        session = _at(session, max(now_ms, session.at_ms))
    match event:
        case CreditArrived(amount_msat):
            return _credit(session, session.account.credit(amount_msat))
        case OnchainCredited(total_msat):
            if total_msat <= session.account.onchain_msat:
                return session, ()  # told again
            return _credit(session, session.account.credit_onchain(total_msat))
        case CreditChecked():
            return _deliver_if_possible(replace(session, is_withheld=False))
        case MeterValue():
            return _measure(session, event)
        case Tick():
            return _tick(session)
        case CableSeen():
            return (replace(session, cable_lost_since_ms=None) if session.state is not State.CLOSED else session), ()
        case CableLost():
            return _lose_cable(session), ()
        case CableClosed():
            return _stop(session, StopReason.CABLE_CLOSED)
        case OperatorStopped():
            return _stop(session, StopReason.OPERATOR_STOPPED)
        case DeliveryFault(stop_reason):
            return _stop(session, stop_reason)
        case Displaced(stop_reason):
            return (session, ()) if session.started else _stop(session, stop_reason)
        case BooksClosed():
            return _close_books(session)
        case CreditReturned(total_msat):
            return _credit_returned(session, total_msat)
        case RefundSent(amount_msat, fee_msat):
            return _refund_sent(session, amount_msat, fee_msat)
        case RefundOwed():
            return _refund_unsent(session, RefundStatus.OWED)
        case RefundKept():
            return _refund_unsent(session, RefundStatus.KEPT)


def restored(session: Session, now_ms: int) -> Step:
    """A saved session in a new process, whose monotonic time is ``now_ms``, and what is to be done first.

    DELIVERING becomes PAUSED: the relay has opened meanwhile, and closes again after the first meter value if the
    credit lasts; what was delivered before the first reading counts as delivered. Timeouts begin anew, and the cable
    counts as lost until its stream is back. A settlement begins again where it stood. A CLOSED session stays as it is.
    What was credited on the chain is withheld until CreditChecked: nothing is delivered before.
    """
    if session.state is State.CLOSED:
        return session, ()
    state = State.PAUSED if session.state is State.DELIVERING else session.state
    was_delivering = session.state is State.DELIVERING
    session = replace(
        session,
        state=state,
        started=session.started or was_delivering,
        power_mw=0,
        at_ms=now_ms,
        state_since_ms=now_ms,
        dark_since_ms=None,
        metered_at_ms=None,
        held_until_ms=now_ms,
        is_withheld=session.account.onchain_msat > 0,
        cable_lost_since_ms=now_ms,
    )
    if state is not State.SETTLING:
        return _charged(session) if was_delivering else session, (OpenRelay(),)
    if session.refund_issued:
        return session, (OpenRelay(), Refund(session.refund_budget_msat))
    return session, (OpenRelay(), Settle())


def _at(session: Session, now_ms: int) -> Session:
    """Time goes on. Delivered time ends with the lease (after a stall of the shell the relay was open), and stands
    still while the supply is gone."""
    if session.state is State.DELIVERING and session.dark_since_ms is None:
        delivered_ms = max(0, min(now_ms, session.held_until_ms) - session.at_ms)
        session = _charged(replace(session, delivered_ms=session.delivered_ms + delivered_ms))
    return replace(session, at_ms=now_ms)


def _charged(session: Session) -> Session:
    """The charge follows energy and time. Before delivery began nothing is owed."""
    if not session.started:
        return session
    total_msat = cost_msat(session.terms.tariff, session.energy_uwh, session.delivered_ms, started=True)
    return replace(session, account=session.account.charge_to(total_msat))


def _credit(session: Session, account: Account) -> Step:
    if not session.takes_credit:
        raise CreditTooLateError(session.session_id, account.credited_msat - session.account.credited_msat)
    session = replace(session, account=account)
    if session.state not in (State.OPEN, State.PAUSED):
        return session, ()
    session, effects = _deliver_if_possible(session)
    return session, effects or (SendStatement(),)


def _measure(session: Session, value: MeterValue) -> Step:
    energy_uwh, power_mw = value.energy_uwh, value.power_mw
    if session.state is State.CLOSED or session.refund_issued:
        return session, ()
    if energy_uwh < session.energy_uwh:
        # While SETTLING the value is left out and the last good one stands; the stop reason is taken already.
        return _stop(session, StopReason.METER_BACKWARDS)
    # Without a reading in between the last energy of a short delivery shows only when it is over.
    has_flowed = session.delivered_ms > 0 and energy_uwh > session.energy_uwh
    dark_since_ms = session.at_ms if session.dark_since_ms is None else session.dark_since_ms
    session = _charged(
        replace(
            session,
            started=session.started or has_flowed or (session.state is State.DELIVERING and value.has_voltage),
            dark_since_ms=None if value.has_voltage else dark_since_ms,
            energy_uwh=energy_uwh,
            power_mw=power_mw,
            metered_ms=session.delivered_ms,
            metered_at_ms=session.at_ms,
        )
    )
    if session.dark_since_ms is not None and session.at_ms - session.dark_since_ms >= NO_VOLTAGE_MS:
        return _stop(session, StopReason.NO_VOLTAGE)
    share = 100 * abs(power_mw)
    if session.state is State.DELIVERING:
        if share > OVER_POWER_PERCENT * session.terms.rated_power_mw:
            return _stop(session, StopReason.OVER_POWER)
        return _renew(session)
    open_long_enough = session.at_ms - session.state_since_ms > session.terms.stale_ms
    if open_long_enough and share > LEAK_PERCENT * session.terms.rated_power_mw:
        return _stop(session, StopReason.RELAY_FAULT)
    return _deliver_if_possible(session)


def _tick(session: Session) -> Step:
    if not session.state.is_live:
        return session, ()
    terms, now_ms = session.terms, session.at_ms
    lost_ms = session.cable_lost_since_ms
    if lost_ms is not None and now_ms - lost_ms >= 1000 * terms.cable_lost_s:
        return _stop(session, StopReason.CABLE_LOST)
    if session.state is State.DELIVERING:
        return _renew(session) if _freshly_metered(session) else _stop(session, StopReason.METER_BUS_ERROR)
    waited_ms = now_ms - session.state_since_ms
    limit_s = terms.open_timeout_s if session.state is State.OPEN else terms.pause_max_s
    if waited_ms >= 1000 * limit_s:
        if _is_paid(session) and not _freshly_metered(session):
            return _stop(session, StopReason.METER_BUS_ERROR)  # the cable did its part
        return _stop(session, StopReason.NOT_PAID if session.state is State.OPEN else StopReason.PAUSE_TIMEOUT)
    return _deliver_if_possible(session)


def _freshly_metered(session: Session) -> bool:
    metered_at_ms = session.metered_at_ms
    return metered_at_ms is not None and session.at_ms - metered_at_ms <= session.terms.stale_ms


def _is_paid(session: Session) -> bool:
    """Something was paid, and the credit (less the session fee) may be used and lasts long enough to close the
    relay."""
    return session.account.payments > 0 and not session.is_withheld and session.left_ms >= session.terms.start_ms


def _deliver_if_possible(session: Session) -> Step:
    """From OPEN or PAUSED, when the credit lasts and the meter has just been read, and not without voltage."""
    if session.state not in (State.OPEN, State.PAUSED) or not _is_paid(session) or not _freshly_metered(session):
        return session, ()
    if session.dark_since_ms is not None:
        return session, ()
    session, effects = _renew(replace(session, state=State.DELIVERING, state_since_ms=session.at_ms))
    return session, (*effects, SendStatement())


def _renew(session: Session) -> Step:
    """While DELIVERING: hold the relay on, or pause while the credit still pays for what may flow until it opens."""
    left_ms = session.left_ms
    if left_ms < session.terms.pause_ms:
        started = session.started or session.dark_since_ms is None
        session = replace(
            session, state=State.PAUSED, started=started, state_since_ms=session.at_ms, held_until_ms=session.at_ms
        )
        return _charged(session), (OpenRelay(), SendStatement())
    lease_ms = min(MAX_LEASE_MS, left_ms)
    return replace(session, held_until_ms=session.at_ms + lease_ms), (HoldRelay(lease_ms),)


def _lose_cable(session: Session) -> Session:
    if not session.state.is_live or session.cable_lost_since_ms is not None:
        return session
    return replace(session, cable_lost_since_ms=session.at_ms)


def _stop(session: Session, reason: StopReason) -> Step:
    """SETTLING, unless the session has ended before: the first reason stands."""
    if not session.state.is_live:
        return session, ()
    session = replace(
        session,
        state=State.SETTLING,
        stop_reason=reason,
        state_since_ms=session.at_ms,
        held_until_ms=min(session.held_until_ms, session.at_ms),
    )
    return session, (OpenRelay(), SendStatement(), Settle())


def _close_books(session: Session) -> Step:
    if session.state is not State.SETTLING or session.refund_issued:
        return session, ()
    unused_msat = session.account.balance_msat
    if unused_msat <= 0:
        return _close(session, RefundStatus.NONE)
    return replace(session, refund_budget_msat=unused_msat), (Refund(unused_msat),)


def _credit_returned(session: Session, total_msat: int) -> Step:
    if session.returned_msat == total_msat:
        return session, ()  # told twice
    if session.returned_msat or session.state is not State.SETTLING or not session.refund_issued:
        raise RefundNotDueError(session.session_id, total_msat)
    session = replace(session, account=session.account.refund(total_msat, 0), returned_msat=total_msat)
    unused_msat = session.account.balance_msat
    if unused_msat >= session.terms.min_refund_msat:
        return session, ()  # the rest is still under way
    return _close(session, RefundStatus.KEPT if unused_msat else RefundStatus.NONE)


def _refund_sent(session: Session, amount_msat: int, fee_msat: int) -> Step:
    if session.refund_status is RefundStatus.SENT:
        sent_msat = session.account.refunded_msat - session.returned_msat
        if (sent_msat, session.refund_fee_msat) == (amount_msat, fee_msat):
            return session, ()  # told twice of the same refund
        raise RefundNotDueError(session.session_id, amount_msat)
    if not _refund_is_due(session):
        raise RefundNotDueError(session.session_id, amount_msat)
    account = session.account.refund(amount_msat, fee_msat)
    return _close(replace(session, account=account, refund_fee_msat=fee_msat), RefundStatus.SENT)


def _refund_unsent(session: Session, status: RefundStatus) -> Step:
    if not _refund_is_due(session) or session.refund_status is status:
        return session, ()
    return _close(session, status)


def _refund_is_due(session: Session) -> bool:
    return session.refund_status is RefundStatus.OWED or (session.state is State.SETTLING and session.refund_issued)


def _close(session: Session, status: RefundStatus) -> Step:
    return replace(session, state=State.CLOSED, refund_status=status), (WriteReceipt(),)
