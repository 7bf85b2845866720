"""What a cable decides in one session: when to pay, how much, and when to stop. No I/O, no clock, no threads.

The service tells it what happened and when (monotonic ms); it answers with payments to begin, and with a stop.
"""

from __future__ import annotations

from collections.abc import Callable

from wattline.cable.policy.budget import PaymentAccount, Room, room
from wattline.cable.policy.delivery import UNSEEN_MS, Charge
from wattline.cable.policy.events import (
    Arrived,
    DoubtsChecked,
    Failed,
    InDoubt,
    MethodName,
    OnchainTerms,
    Payment,
    PaymentEvent,
    PaymentRefused,
    SocketState,
    Statement,
    Stop,
)
from wattline.cable.policy.failures import (
    LEAD_MS,
    OWN_LEDGER,
    SHORT_MS,
    FailurePolicy,
    Fallback,
    Standing,
    Standstill,
    gives_up,
    stop_of,
)
from wattline.cable.policy.offer import BuyerLimits, SessionTerms
from wattline.cable.policy.onchain import OnchainBudget, OnchainLimits
from wattline.cable.policy.reconciliation import EnergyTrack, Mismatch
from wattline.cable.policy.rhythm import (
    RESERVE_MS,
    AskedIncrement,
    Conditions,
    Hold,
    Latency,
    Load,
    Pace,
    Pay,
    next_payment,
)
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.increments import BELOW_MIN_INCREMENT

PAY_BLIND_MS = 5_000
"""For this long payments go on while the stream is cut; the prepaid cap holds all the time."""
METER_STALE_MS = UNSEEN_MS
"""Without an own reading as new as this nothing is paid."""


class Buyer:
    """See the module. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        terms: SessionTerms,
        limits: BuyerLimits,
        account: PaymentAccount,
        track: EnergyTrack,
        day_sent_msat: Callable[[PaymentAccount], int],
        next_sequence: int,
        opened_ms: int,
        fallback: Fallback | None = None,
    ) -> None:
        """``opened_ms`` is when the session was opened, on the monotonic clock of all other times here. ``fallback``
        tells when to go over to on-chain; None: never."""
        self.terms = terms
        self.account = account
        self._limits = limits
        self._caps = limits.caps.within(terms.credit_cap_msat)
        self.charge = Charge(
            terms,
            limits.tolerance,
            account,
            track,
            limits.min_voltage_mv,
            max_prepaid_msat=self._caps.max_prepaid_msat,
            opened_ms=opened_ms,
        )
        self.hold: Hold | None = None
        self.stop: Stop | None = None
        self.power_mw = 0
        self.in_doubt: set[int] = set()
        self.last_refusal: PaymentRefused | None = None
        self.max_prepaid_seen_msat = 0
        self.latency = Latency()
        self.fallback = fallback
        self._onchain: OnchainBudget | None = None
        self._is_waiting_for_onchain = False
        self._failures = FailurePolicy(
            limits.pace.min_increment_msat,
            limits.pace.max_increment_msat,
            limits.caps.max_fee_ppm,
            limits.max_failures_in_a_row,
        )
        self._day_sent_msat = day_sent_msat
        self._next_sequence = next_sequence
        self._cut_since_ms: int | None = None
        self._begun_ms: dict[int, int] = {}
        self._standstill = Standstill()
        self._asked = AskedIncrement()
        self._arrived_ms = opened_ms
        """When the last payment arrived."""

    # What happened.

    def on_reading(self, at_ms: int, chip_energy_uwh: int, power_mw: int, voltage_mv: int) -> None:
        self.power_mw = power_mw
        self._end_for(self.charge.on_reading(at_ms, chip_energy_uwh, voltage_mv))
        dark = self.charge.dark(at_ms) if self._cut_since_ms is None else None
        if dark is not None:
            self.end(dark.breach, dark.message, at_once=True)

    def on_statement(self, statement: Statement, at_ms: int) -> None:
        """The newest one counts; an older one that comes late is dropped."""
        if self.statement is not None and statement.sequence < self.statement.sequence:
            return
        self._cut_since_ms = None
        self._asked.tell(statement.min_increment_msat or self.terms.min_increment_msat, at_ms)
        self._end_for(self.charge.on_statement(statement, at_ms))

    def _end_for(self, mismatches: list[Mismatch]) -> None:
        for mismatch in mismatches:
            distrust = mismatch.breach.is_of_the_account
            self.end(mismatch.breach, mismatch.message, distrust=distrust, at_once=True)

    def on_cut(self, at_ms: int) -> None:
        if self._cut_since_ms is None:
            self._cut_since_ms = at_ms

    def on_refused(self, refused: PaymentRefused) -> None:
        """The socket's reason for failing a payment; the failure itself is told by the own node."""
        self.last_refusal = refused
        if refused.code == BELOW_MIN_INCREMENT:
            self._asked.is_enforced = True
            self._asked.tell_anew(refused.min_increment_msat, self.charge.told_ms)

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
                        self._failures.on_arrival(amount_msat)
                    if self.fallback is not None:
                        self.fallback.on_arrival()
                    if duration_ms is not None:
                        self.latency.observe(duration_ms)
            case Failed():
                begun_ms = self._begun_ms.get(event.sequence, at_ms)
                self._forget(event.sequence)
                self.charge.on_failed(event.sequence, event.amount_msat)
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

    def go_onchain(self, terms: OnchainTerms, limits: OnchainLimits) -> None:
        """From now on versions of an aggregate are handed over, and nothing goes over Lightning any more. What does
        already stays in the account, and is resolved."""
        if self._onchain is None:
            self._failures = FailurePolicy(MSAT_PER_SAT, MSAT_PER_SAT, 0, self._limits.max_failures_in_a_row)
            self.hold = None
            self._standstill = Standstill()
        self._onchain = OnchainBudget(terms, limits, self._caps.max_session_msat, self._caps.max_day_msat)
        self.charge.max_prepaid_msat = self._onchain.max_prepaid_msat
        self._is_waiting_for_onchain = False
        self.account.miner_fee_msat = terms.fee_sat * MSAT_PER_SAT

    def end(self, reason: str, message: str, *, distrust: bool = False, at_once: bool = False) -> None:
        """Stop paying for good; the first reason stands."""
        if self.stop is None:
            self.stop = Stop(reason, message, distrust, at_once or distrust)

    # What it comes to.

    @property
    def statement(self) -> Statement | None:
        """The socket's newest."""
        return self.charge.statement

    @property
    def track(self) -> EnergyTrack:
        """The own energy."""
        return self.charge.track

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
        return self.account.exposed_msat - self.charge.low_msat

    @property
    def max_prepaid_msat(self) -> int:
        """The cap on it. What was prepaid over Lightning before comes on top of the on-chain one."""
        if self._onchain is None:
            return self._caps.max_prepaid_msat
        keysend_msat = max(0, self.account.keysend_handed_over_msat - self.charge.low_msat)
        return self._onchain.max_prepaid_msat + keysend_msat

    @property
    def why_nothing(self) -> str:
        """For people: what a session that has delivered nothing was waiting for."""
        if self.statement is None:
            return "the socket said nothing"
        if self.last_refusal is not None:
            return f"the socket refused a payment: {self.last_refusal.code}: {self.last_refusal.message}"
        if self.account.in_flight:
            return "the first payment was still under way"
        if self.hold is not None and gives_up(self.hold):
            return stop_of(self.hold, "keysend")[1]
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
        if now_ms < self._failures.next_try_ms:
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
            due_msat=0 if self.charge.has_started else max(1, tariff.session_fee_msat),
        )
        conditions = Conditions(
            latency_ms=self.latency.estimate_ms,
            statement_interval_ms=self.terms.statement_interval_ms,
            socket_min_increment_msat=statement.min_increment_msat or self.terms.min_increment_msat,
            fee_floor_msat=self._failures.fee_floor_msat(now_ms),
            route_floor_msat=self._failures.route_floor_msat(now_ms),
            route_ceiling_msat=self._failures.route_ceiling_msat,
            boost=self._standstill.boost,
            lead_ms=LEAD_MS if self.fallback is not None and self._onchain is None else 0,
            least_taken_msat=self._least_taken_msat(now_ms),
        )
        credit_msat = self.account.handed_over_msat - self.charge.high_msat(now_ms)
        in_flight, _ = self.account.in_flight_by(self.method)
        return next_payment(self._present_pace, load, conditions, credit_msat, in_flight, self._room(other_msat))

    def _least_taken_msat(self, now_ms: int) -> int:
        """Unknown is 0: what a socket asks for is followed anyway, as far as the caps allow. A version that is refused
        has been signed all the same, so none is made that may be; the first one is taken as it is."""
        is_free = not self._asked.is_enforced if self._onchain is None else not self.account.onchain_settled_msat
        if is_free:
            return 0
        return self._asked.least_msat(now_ms)

    @property
    def _present_pace(self) -> Pace:
        if self._onchain is None:
            return self._limits.pace
        return self._onchain.pace(self.account)

    def _day_msat(self, other_msat: int) -> int:
        # Of a session older than a day, what was paid before counts no more: then the difference is negative.
        return max(0, other_msat + self.account.sent_msat)

    def _room(self, other_msat: int) -> Room:
        day_msat = self._day_msat(other_msat)
        if self._onchain is not None:
            return self._onchain.room(self.account, self.charge.low_msat, day_msat)
        spending = self.account.spending(self.charge.low_msat, day_msat)
        return room(self._caps, spending)

    def _begin(self, amount_msat: int, now_ms: int, other_msat: int) -> Payment:
        maxfee_msat, version = self._caps.maxfee_msat(amount_msat), None
        if self._onchain is not None:
            day_msat = self._day_msat(other_msat)
            version = self._onchain.version(self.account, amount_msat, self.charge.low_msat, day_msat)
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
            self._asked.tell_anew(self.statement.min_increment_msat, self.charge.told_ms)
        self._failures.on_failure(failed, begun_ms, at_ms)
        if self.fallback is not None and self._onchain is None and self.fallback.on_failure(failed, begun_ms, at_ms):
            return
        if self._failures.is_too_many:
            why = failed.message
            if failed.at_destination and self.last_refusal is not None:
                why = f"the socket refuses it: {self.last_refusal.code}: {self.last_refusal.message}"
            reason = failed.code if failed.code in OWN_LEDGER else "payment_failed"
            self.end(reason, f"{self._failures.in_a_row} payments in a row failed; the last one: {why}")

    def _watch_lightning(self, statement: Statement, now_ms: int) -> None:
        """Whether it is time to go over to on-chain."""
        if self.fallback is None or self._onchain is not None:
            return
        load = Load(self.terms.tariff, self.power_mw, self.terms.rated_power_mw)
        spare_msat = self.account.settled_msat - self.charge.high_msat(now_ms) - load.rated_worth_msat(RESERVE_MS)
        self.fallback.look(
            Standing(
                is_delivering=statement.state is SocketState.DELIVERING,
                is_short=spare_msat < load.worth_msat(SHORT_MS),
                is_at_reserve=spare_msat < 0,
                hold=self.hold,
                is_narrow=self._failures.route_ceiling_msat is not None,
            )
        )

    def _knows_payments(self, statement: Statement, now_ms: int) -> bool:
        """The socket has said this after the last payment; it answers each one, however late the answer may be."""
        is_newer = self.charge.told_ms >= self._arrived_ms or statement.credited_msat >= self.account.settled_msat
        return is_newer or now_ms - self._arrived_ms > self.charge.lateness.silence_ms

    def _watch_standstill(self, statement: Statement, now_ms: int, paid_now: bool) -> None:
        """A session that does not move although nothing is under way is helped on, or given up."""
        waiting = statement.state in (SocketState.OPEN, SocketState.PAUSED) and self._knows_payments(statement, now_ms)
        if self.fallback is not None and self._onchain is None and self.fallback.is_awaited:
            waiting = False
        if not waiting or paid_now or self.account.in_flight or self._cut_since_ms is not None or self.hold is None:
            self._standstill.ends()
            return
        if self._standstill.is_starved(self.hold, now_ms):
            reason, message = stop_of(self.hold, self.method)
            self.end(reason, message)
