"""What a cable decides in one session: when to pay, how much, and when to stop. No I/O, no clock, no threads.

The service tells it what happened and when (monotonic ms); it answers with payments to begin, and with a stop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from wattline.cable.link.messages import PaymentRefused, SocketState, Statement
from wattline.cable.policy.account import Account
from wattline.cable.policy.budget import Caps, Room, room
from wattline.cable.policy.delivery import UNSEEN_MS, DeliveryWatch, EnergyTrack, Unseen, longest_paid_ms
from wattline.cable.policy.events import Arrived, DoubtsChecked, Failed, InDoubt, MethodName, OnchainTerms, PaymentEvent
from wattline.cable.policy.failures import LEAD_MS, SHORT_MS, Fallback, Setbacks, Standing
from wattline.cable.policy.onchain_limits import OnchainLimits, WantedVersion
from wattline.cable.policy.reconciliation import CREDIT_GRACE_MS, Claim, Known, Lateness, Tolerance, compare
from wattline.cable.policy.rhythm import MAX_BOOST, RESERVE_MS, Conditions, Hold, Latency, Load, Pace, Pay, next_payment
from wattline.cable.settings import OnchainSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.increments import BELOW_MIN_INCREMENT, ToldIncrements
from wattline.core.tariff import FOREVER_MS, Tariff, cost_msat
from wattline.device.meters.reading import MIN_VOLTAGE_MV

STARVED_MS = 2_000
"""The session stands still for want of a payment that may not be made: after this long it is given up."""
UNSTARTED_MS = 1_500
"""Enough is paid, yet the socket does not begin: after this long it is offered more."""
PAY_BLIND_MS = 5_000
"""For this long payments go on while the stream is cut; the prepaid cap holds all the time."""
MOST_CLAIMS = 200
"""Statements that wait for an own reading, of which there are ten a second."""
HELD_TO_S = 30.0
"""What the socket asked for so lately it takes: half of the time for which it does, for the way there."""
METER_STALE_MS = UNSEEN_MS
"""Without an own reading as new as this nothing is paid."""

_STOP_OF_HOLD = {
    Hold.PREPAID: ("prepaid_limit", "what the socket wants in advance exceeds max_prepaid_msat"),
    Hold.SESSION: ("budget_spent", "max_session_msat is used up"),
    Hold.DAY: ("budget_spent", "max_day_msat is used up"),
    Hold.FEE: ("fee_too_high", "no allowed payment is large enough to keep its routing fee within max_fee_ratio"),
    Hold.MINIMUM: (
        "channel_minimum",
        "a channel on the way carries nothing as small as max_increment_msat and max_prepaid_msat allow",
    ),
    Hold.NO_ROUTE: ("payment_failed", "no single route carries even the smallest payment"),
    Hold.BELOW_MINIMUM: (BELOW_MIN_INCREMENT, "the socket takes no payment as small as payment.max_increment_msat"),
    Hold.EXPOSURE: ("onchain_limit", "the socket's exposure cap or the value of the cable's inputs is used up"),
}
_ONCHAIN_STOP_OF_HOLD = _STOP_OF_HOLD | {
    Hold.PREPAID: ("prepaid_limit", "what the socket wants in advance exceeds onchain.max_prepaid_sat or its own cap"),
    Hold.BELOW_MINIMUM: (
        BELOW_MIN_INCREMENT,
        "the socket takes no version that pays only onchain.max_increment_sat more",
    ),
}
_OWN_LEDGER = frozenset({"ledger_busy", "ledger_full", "ledger_not_writable", "ledger_damaged", "ledger_failed"})
"""Failures before anything was sent, for want of a record."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the session ends; ``reason`` is the stable code that the socket is told."""

    reason: str
    message: str
    distrust: bool = False
    """The socket's account is wrong."""
    at_once: bool = False
    """Close without waiting for what is under way."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session was opened under."""

    session_id: str
    node_id: str
    outlet_id: str
    tariff: Tariff
    rated_power_mw: int
    credit_cap_msat: int
    """Of the socket; 0 when it names none."""
    statement_interval_ms: int
    min_increment_msat: int
    min_refund_msat: int
    """Unused credit below this the socket keeps."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment to begin now; it is counted already."""

    sequence: int
    amount_msat: int
    maxfee_msat: int
    method: MethodName = "keysend"
    version: WantedVersion | None = None
    """On-chain: the one that makes it."""


class Buyer:
    """See the module. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        terms: Terms,
        caps: Caps,
        pace: Pace,
        tolerance: Tolerance,
        max_failures_in_a_row: int,
        account: Account,
        track: EnergyTrack,
        day_sent_msat: Callable[[Account], int],
        next_sequence: int,
        opened_ms: int,
        fallback: Fallback | None = None,
        min_voltage_mv: int = MIN_VOLTAGE_MV,
    ) -> None:
        """``opened_ms`` is when the session was opened, on the monotonic clock of all other times here. ``fallback``
        tells when to go over to on-chain; None: never. Below ``min_voltage_mv`` nothing is delivered."""
        self.terms = terms
        self.account = account
        self.track = track
        self._lateness = Lateness(terms.statement_interval_ms)
        self._delivery = DeliveryWatch(min_voltage_mv, terms.rated_power_mw, self._lateness.claim_age_ms)
        self._unseen = Unseen(terms.tariff)
        self.statement: Statement | None = None
        self.hold: Hold | None = None
        self.stop: Stop | None = None
        self.power_mw = 0
        self.in_doubt: set[int] = set()
        self.last_refusal: PaymentRefused | None = None
        self.max_prepaid_seen_msat = 0
        self.latency = Latency()
        self._caps = _within_socket_cap(caps, terms.credit_cap_msat)
        self.fallback = fallback
        self._onchain: OnchainLimits | None = None
        self._is_waiting_for_onchain = False
        self._pace = pace
        self._tolerance = tolerance
        self._setbacks = Setbacks(
            pace.min_increment_msat, pace.max_increment_msat, caps.max_fee_ppm, max_failures_in_a_row
        )
        self._max_failures_in_a_row = max_failures_in_a_row
        self._day_sent_msat = day_sent_msat
        self._next_sequence = next_sequence
        self._opened_ms = opened_ms
        self._statement_ms = opened_ms
        self._claims: deque[tuple[Statement, int]] = deque()
        """Not compared yet: no own reading is as new."""
        self._believed: Claim | None = None
        """The newest that was compared and found true."""
        self._cut_since_ms: int | None = None
        self._begun_ms: dict[int, int] = {}
        self._boost = 0
        self._starved_since_ms: int | None = None
        self._unstarted_since_ms: int | None = None
        self._asked = ToldIncrements()
        self._is_held_to_asked = False
        """A payment was failed for being smaller than the socket asks for."""
        self._arrived_ms = opened_ms
        """When the last payment arrived."""

    # What happened.

    def on_reading(self, at_ms: int, chip_energy_uwh: int, power_mw: int, voltage_mv: int) -> None:
        before_ms = self.track.newest_ms
        self.track.add(at_ms, chip_energy_uwh)
        self._delivery.on_reading(at_ms, voltage_mv)
        if before_ms is not None and at_ms - before_ms > UNSEEN_MS and self.statement is not None:
            believed_ms = self._unseen.believed_ms(self._delivery.seen_ms)
            self._look_again(at_ms, believed_ms + at_ms - before_ms)
        self.power_mw = power_mw
        self._reconcile()

    def on_statement(self, statement: Statement, at_ms: int) -> None:
        """The newest one counts; an older one that comes late is dropped."""
        if self.statement is not None and statement.sequence < self.statement.sequence:
            return
        if self.statement is None and self.account.exposed_msat:
            self._look_again(at_ms, FOREVER_MS)  # what an earlier run has seen is among what was paid by then
        self.statement = statement
        self._statement_ms = at_ms
        self._cut_since_ms = None
        self._delivery.begin(statement.claim)
        if len(self._claims) >= MOST_CLAIMS:
            self._claims.pop()  # the newest gives way to one that says all of it, the oldest is compared first
        self._asked.tell(statement.min_increment_msat or self.terms.min_increment_msat, at_ms / 1000)
        self._claims.append((statement, at_ms))
        self._reconcile()

    def _look_again(self, at_ms: int, most_ms: int) -> None:
        """Nobody has looked just before; were all of it delivery, it would have lasted for ``most_ms`` by now."""
        terms, paid_msat, own_uwh = self.terms, self.account.exposed_msat, self.track.energy_uwh
        longest_ms = longest_paid_ms(terms.tariff, self._tolerance, terms.rated_power_mw, paid_msat, own_uwh)
        self._opened_ms = max(self._opened_ms, at_ms - longest_ms)
        self._unseen = Unseen(
            tariff=terms.tariff,
            most_ms=most_ms,
            paid_msat=paid_msat,
            own_uwh=self._believed_uwh,
            seen_ms=self._delivery.seen_ms,
            underway=self.account.underway_by("keysend"),
        )

    def on_cut(self, at_ms: int) -> None:
        if self._cut_since_ms is None:
            self._cut_since_ms = at_ms

    def on_refused(self, refused: PaymentRefused) -> None:
        """The socket's reason for failing a payment; the failure itself is told by the own node."""
        self.last_refusal = refused
        if refused.code == BELOW_MIN_INCREMENT:
            self._is_held_to_asked = True
            self._ask_anew(refused.min_increment_msat)

    def _ask_anew(self, min_increment_msat: int) -> None:
        """What was asked for before counts no more, whatever this side's clock says."""
        self._asked = ToldIncrements()
        self._asked.tell(min_increment_msat, self._statement_ms / 1000)

    def on_payment(self, event: PaymentEvent, at_ms: int) -> None:
        method = self.account.method_of(event.sequence) if not isinstance(event, DoubtsChecked) else None
        if not isinstance(event, DoubtsChecked) and event.signed_sat is not None:
            self.account.onchain_signed(event.signed_sat)
        match event:
            case Arrived(sequence, amount_msat, amount_sent_msat, duration_ms):
                self._forget(sequence)
                if self.account.arrived(sequence, amount_sent_msat, at_ms, duration_ms):
                    self._arrived_ms = at_ms
                    if method == self.method:
                        self._setbacks.on_arrival(amount_msat)
                    if self.fallback is not None:
                        self.fallback.on_arrival()
                    if duration_ms is not None:
                        self.latency.observe(duration_ms)
            case Failed():
                begun_ms = self._begun_ms.get(event.sequence, at_ms)
                self._forget(event.sequence)
                self._unseen = self._unseen.failed(event.sequence, event.amount_msat)
                if self.account.came_back(event.sequence) and method == self.method:
                    self._on_failure(event, begun_ms, at_ms)
            case InDoubt(sequence):
                if self.account.is_underway(sequence):
                    self.in_doubt.add(sequence)
            case DoubtsChecked():
                pass
        if isinstance(event, Arrived | Failed) and event.accepted_sat is not None:
            self.account.onchain_stands(event.accepted_sat, at_ms)

    def adopt(self, sequence: int, amount_msat: int, maxfee_msat: int) -> None:
        """Take over a payment in doubt from an earlier run."""
        self.account.begin(sequence, amount_msat, maxfee_msat)
        self.in_doubt.add(sequence)
        self._next_sequence = max(self._next_sequence, sequence + 1)

    def wait_for_onchain(self) -> None:
        """The session is paid on-chain, but how is not known yet: nothing is paid before :meth:`go_onchain`."""
        self._is_waiting_for_onchain = True

    def go_onchain(self, terms: OnchainTerms, settings: OnchainSettings) -> None:
        """From now on versions of an aggregate are handed over, and nothing goes over Lightning any more. What does
        already stays in the account, and is resolved."""
        if self._onchain is None:
            self._setbacks = Setbacks(MSAT_PER_SAT, MSAT_PER_SAT, 0, self._max_failures_in_a_row)
            self.hold = None
            self._boost = 0
            self._starved_since_ms = self._unstarted_since_ms = None
        self._onchain = OnchainLimits(terms, settings, self._caps.max_session_msat, self._caps.max_day_msat)
        self._is_waiting_for_onchain = False
        self.account.miner_fee_msat = terms.fee_sat * MSAT_PER_SAT

    def end(self, reason: str, message: str, *, distrust: bool = False, at_once: bool = False) -> None:
        """Stop paying for good; the first reason stands."""
        if self.stop is None:
            self.stop = Stop(reason, message, distrust, at_once or distrust)

    # What it comes to.

    @property
    def charged_low_msat(self) -> int:
        """What was delivered for the money, as far as the caps believe it: the charge of the newest claim that was held
        against an own reading, and no more than the own energy comes to with what two honest meters may be apart
        (:meth:`wattline.cable.policy.reconciliation.Tolerance.believed_uwh`). An honest socket's meter must not eat up
        the caps; a dishonest one, whatever it claims, gains that much and nothing else. The session fee counts once
        energy flows."""
        believed = self._believed
        if believed is None:
            return 0
        delivered_ms = min(believed.delivered_ms, max(0, self._statement_ms - self._opened_ms))
        seen_ms = self._delivery.most_delivered_ms()
        delivered_ms = delivered_ms if seen_ms is None else min(delivered_ms, seen_ms)
        delivered_ms = min(delivered_ms, self._unseen.believed_ms(self._delivery.seen_ms))
        own = cost_msat(self.terms.tariff, self._believed_uwh, delivered_ms, self.track.energy_uwh > 0)
        return min(own, believed.charged_msat)

    @property
    def _believed_uwh(self) -> int:
        """The most that the socket's meter may have counted, as far as the caps believe it."""
        cap_msat = self._caps.max_prepaid_msat if self._onchain is None else self._onchain.max_prepaid_msat
        return self._tolerance.believed_uwh(self.track.energy_uwh, cap_msat, self.terms.tariff)

    def most_charge_msat(self, now_ms: int) -> int:
        """The highest charge that an honest socket can have come to by now: the own energy and all that the tolerance
        grants to the socket's meter, and all the time that delivery can have lasted."""
        delivered_ms = self.most_delivered_ms(now_ms)
        if delivered_ms is None:
            return 0
        energy_uwh = self.track.energy_uwh + self._tolerance.allowed_uwh(self.track.energy_uwh)
        return cost_msat(self.terms.tariff, energy_uwh, delivered_ms, True)

    def most_delivered_ms(self, now_ms: int) -> int | None:
        """The longest that delivery can have lasted by now: by the socket's last word, by the age of the session, and
        by the own meter, each with the time since; None before the socket's first word."""
        seen_ms, newest_ms = self._delivery.most_delivered_ms(), self.track.newest_ms
        if self.statement is None:
            return None
        told_ms = self.statement.delivered_ms + max(0, now_ms - self._statement_ms)
        if seen_ms is not None and newest_ms is not None:
            told_ms = min(told_ms, seen_ms + max(0, now_ms - newest_ms))
        return min(told_ms, max(0, now_ms - self._opened_ms))

    def charged_high_msat(self, now_ms: int) -> int:
        """The higher of both at this moment: what the credit is kept up against."""
        if self.statement is None:
            return 0
        delivered_ms = self.statement.delivered_ms
        if self.statement.state is SocketState.DELIVERING:
            delivered_ms += max(0, now_ms - self._statement_ms)
        own = cost_msat(self.terms.tariff, self.track.energy_uwh, delivered_ms, self.has_started)
        return max(own, self.statement.charged_msat)

    @property
    def has_started(self) -> bool:
        """Delivery has begun at least once."""
        statement = self.statement
        return statement is not None and (
            statement.state is SocketState.DELIVERING or statement.delivered_ms > 0 or statement.charged_msat > 0
        )

    @property
    def day_sent_msat(self) -> int:
        """Left or may leave the wallet within 24 hours, all sessions together."""
        return self._day_sent_msat(self.account)

    @property
    def method(self) -> MethodName:
        """By which the next payment is made."""
        return "keysend" if self._onchain is None else "onchain"

    @property
    def is_paying_onchain(self) -> bool:
        """Or about to."""
        return self._onchain is not None or self._is_waiting_for_onchain

    @property
    def prepaid_msat(self) -> int:
        """What the socket has or could have, and has not delivered for."""
        return self.account.exposed_msat - self.charged_low_msat

    @property
    def max_prepaid_msat(self) -> int:
        """The cap on it. What was prepaid over Lightning before comes on top of the on-chain one."""
        if self._onchain is None:
            return self._caps.max_prepaid_msat
        keysend_msat = max(0, self.account.keysend_handed_over_msat - self.charged_low_msat)
        return self._onchain.max_prepaid_msat + keysend_msat

    def is_silent(self, now_ms: int) -> bool:
        """The socket has said nothing for longer than its stream may stall."""
        return now_ms - self._statement_ms > self._lateness.silence_ms

    def known_at(self, at_ms: int) -> Known:
        """What the cable knows itself about a claim that arrived at ``at_ms``."""
        age_ms = self._lateness.claim_age_ms
        return Known(
            least_energy_uwh=self.track.at(at_ms - age_ms),
            most_energy_uwh=self.track.at(at_ms),
            elapsed_ms=max(0, at_ms - self._opened_ms),
            surely_credited_msat=self.account.settled_before(at_ms - age_ms - CREDIT_GRACE_MS),
            most_delivered_ms=self._delivery.most_delivered_ms(),
        )

    @property
    def why_nothing(self) -> str:
        """For people: what a session that has delivered nothing was waiting for."""
        if self.statement is None:
            return "the socket said nothing"
        if self.last_refusal is not None:
            return f"the socket refused a payment: {self.last_refusal.code}: {self.last_refusal.message}"
        if self.account.in_flight:
            return "the first payment was still under way"
        if self.hold in _STOP_OF_HOLD:
            return _STOP_OF_HOLD[self.hold][1]
        if not self.account.payments:
            return "no payment was made" + (" that arrived" if self.account.failed_payments else "")
        return f"it was paid, and the socket did not begin (its session was {self.statement.state})"

    # What to do.

    def decide(self, now_ms: int) -> list[Payment]:
        """The payments to begin now. May set :attr:`stop`."""
        statement = self.statement
        if self.stop is not None or statement is None or self._is_waiting_for_onchain:
            return []
        if not statement.state.is_live:
            return []
        if self._cut_since_ms is not None and now_ms - self._cut_since_ms > PAY_BLIND_MS:
            return []
        newest_ms = self.track.newest_ms
        if newest_ms is None or now_ms - newest_ms > METER_STALE_MS:
            return []
        payments: list[Payment] = []
        if now_ms < self._setbacks.next_try_ms:
            self.hold = None  # what held before the last payment failed says nothing of what would hold now
        else:
            # Asked for before anything is begun: it may fail.
            other_msat = self.day_sent_msat - self.account.sent_msat
            while isinstance(decision := self._next(statement, now_ms, other_msat), Pay):
                payments.append(self._begin(decision.amount_msat, now_ms, other_msat))
            self.hold = decision
        self.max_prepaid_seen_msat = max(self.max_prepaid_seen_msat, self.prepaid_msat)
        self._watch_lightning(statement, now_ms)
        self._watch_standstill(statement, now_ms, bool(payments))
        return payments

    def _next(self, statement: Statement, now_ms: int, other_msat: int) -> Pay | Hold:
        """``other_msat``: what left within a day besides this session's."""
        tariff = self.terms.tariff
        load = Load(
            tariff=tariff,
            power_mw=self.power_mw,
            rated_power_mw=self.terms.rated_power_mw,
            # No socket begins before something was paid, be its prices as low as nothing.
            due_msat=0 if self.has_started else max(1, tariff.session_fee_msat),
        )
        conditions = Conditions(
            latency_ms=self.latency.estimate_ms,
            statement_interval_ms=self.terms.statement_interval_ms,
            socket_min_increment_msat=statement.min_increment_msat or self.terms.min_increment_msat,
            fee_floor_msat=self._setbacks.fee_floor_msat(now_ms),
            route_floor_msat=self._setbacks.route_floor_msat(now_ms),
            route_ceiling_msat=self._setbacks.route_ceiling_msat,
            boost=self._boost,
            lead_ms=LEAD_MS if self.fallback is not None and self._onchain is None else 0,
            least_taken_msat=self._least_taken_msat(now_ms),
        )
        credit_msat = self.account.handed_over_msat - self.charged_high_msat(now_ms)
        in_flight, _ = self.account.in_flight_by(self.method)
        return next_payment(self._present_pace, load, conditions, credit_msat, in_flight, self._room(other_msat))

    def _least_taken_msat(self, now_ms: int) -> int:
        """Unknown is 0: what a socket asks for is followed anyway, as far as the caps allow. A version that is refused
        has been signed all the same, so none is made that may be; the first one is taken as it is."""
        is_free = not self._is_held_to_asked if self._onchain is None else not self.account.onchain_settled_msat
        if is_free:
            return 0
        return self._asked.least_msat(now_ms / 1000, HELD_TO_S)

    @property
    def _present_pace(self) -> Pace:
        if self._onchain is None:
            return self._pace
        return self._onchain.pace(self.account)

    def _day_msat(self, other_msat: int) -> int:
        # Of a session older than a day, what was paid before counts no more: then the difference is negative.
        return max(0, other_msat + self.account.sent_msat)

    def _room(self, other_msat: int) -> Room:
        day_msat = self._day_msat(other_msat)
        if self._onchain is not None:
            return self._onchain.room(self.account, self.charged_low_msat, day_msat)
        spending = self.account.spending(self.charged_low_msat, day_msat)
        return room(self._caps, spending)

    def _begin(self, amount_msat: int, now_ms: int, other_msat: int) -> Payment:
        maxfee_msat, version = self._caps.maxfee_msat(amount_msat), None
        if self._onchain is not None:
            day_msat = self._day_msat(other_msat)
            version = self._onchain.version(self.account, amount_msat, self.charged_low_msat, day_msat)
            maxfee_msat = 0  # the miner's fee is the same for every version
        payment = Payment(self._next_sequence, amount_msat, maxfee_msat, self.method, version)
        self._next_sequence += 1
        self.account.begin(payment.sequence, payment.amount_msat, payment.maxfee_msat, payment.method)
        self._begun_ms[payment.sequence] = now_ms
        return payment

    def _forget(self, sequence: int) -> None:
        self.in_doubt.discard(sequence)
        self._begun_ms.pop(sequence, None)

    def _on_failure(self, failed: Failed, begun_ms: int, at_ms: int) -> None:
        if failed.final:
            self.end("payment_failed", f"payment {failed.sequence} cannot be made: {failed.message}")
            return
        if failed.code == BELOW_MIN_INCREMENT and self.statement is not None:
            self._ask_anew(self.statement.min_increment_msat)
        self._setbacks.on_failure(failed, begun_ms, at_ms)
        if self.fallback is not None and self._onchain is None and self.fallback.on_failure(failed, begun_ms, at_ms):
            return
        if self._setbacks.is_too_many:
            why = failed.message
            if failed.at_destination and self.last_refusal is not None:
                why = f"the socket refuses it: {self.last_refusal.code}: {self.last_refusal.message}"
            reason = failed.code if failed.code in _OWN_LEDGER else "payment_failed"
            self.end(reason, f"{self._setbacks.in_a_row} payments in a row failed; the last one: {why}")

    def _reconcile(self) -> None:
        """Compare every claim as soon as an own reading as new as its arrival is there."""
        while self._claims and self.track.covers(self._claims[0][1]):
            statement, at_ms = self._claims.popleft()
            claim, known = statement.claim, self.known_at(at_ms)
            mismatch = compare(claim, known, self.terms.tariff, self._tolerance) or self._delivery.refuted(
                claim,
                at_ms,
                known.least_energy_uwh,
                known.most_energy_uwh,
                is_delivering=statement.state is SocketState.DELIVERING,
            )
            if mismatch is not None:
                distrust = mismatch.breach.is_of_the_account
                self.end(mismatch.breach, mismatch.message, distrust=distrust, at_once=True)
            else:
                self._believed = claim

    def _watch_lightning(self, statement: Statement, now_ms: int) -> None:
        """Whether it is time to go over to on-chain."""
        if self.fallback is None or self._onchain is not None:
            return
        load = Load(self.terms.tariff, self.power_mw, self.terms.rated_power_mw)
        spare_msat = self.account.settled_msat - self.charged_high_msat(now_ms) - load.rated_worth_msat(RESERVE_MS)
        self.fallback.look(
            Standing(
                is_delivering=statement.state is SocketState.DELIVERING,
                is_short=spare_msat < load.worth_msat(SHORT_MS),
                is_at_reserve=spare_msat < 0,
                hold=self.hold,
                is_narrow=self._setbacks.route_ceiling_msat is not None,
            )
        )

    def _knows_payments(self, statement: Statement, now_ms: int) -> bool:
        """The socket has said this after the last payment; it answers each one, however late the answer may be."""
        is_newer = self._statement_ms >= self._arrived_ms or statement.credited_msat >= self.account.settled_msat
        return is_newer or now_ms - self._arrived_ms > self._lateness.silence_ms

    def _watch_standstill(self, statement: Statement, now_ms: int, paid_now: bool) -> None:
        """A session that does not move although nothing is under way is helped on, or given up."""
        waiting = statement.state in (SocketState.OPEN, SocketState.PAUSED) and self._knows_payments(statement, now_ms)
        if self.fallback is not None and self._onchain is None and self.fallback.is_awaited:
            waiting = False
        if not waiting or paid_now or self.account.in_flight or self._cut_since_ms is not None or self.hold is None:
            self._starved_since_ms = self._unstarted_since_ms = None
            return
        if self.hold in _STOP_OF_HOLD:
            if self._starved_since_ms is None:
                self._starved_since_ms = now_ms
            elif now_ms - self._starved_since_ms >= STARVED_MS:
                self.end(*(_ONCHAIN_STOP_OF_HOLD if self._onchain is not None else _STOP_OF_HOLD)[self.hold])
            return
        self._starved_since_ms = None
        if self.hold is Hold.ENOUGH:
            if self._unstarted_since_ms is None:
                self._unstarted_since_ms = now_ms
            elif now_ms - self._unstarted_since_ms >= UNSTARTED_MS and self._boost < MAX_BOOST:
                self._boost += 1
                self._unstarted_since_ms = None


def _within_socket_cap(caps: Caps, credit_cap_msat: int) -> Caps:
    """The socket refuses more unused credit than its own cap, so nothing beyond it is sent."""
    if credit_cap_msat <= 0 or credit_cap_msat >= caps.max_prepaid_msat:
        return caps
    return Caps(credit_cap_msat, caps.max_session_msat, caps.max_day_msat, caps.max_fee_ppm)
