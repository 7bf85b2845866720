"""A session's on-chain part, as the deciding thread keeps it: asked for, prepared, paid by, and brought to an end.

It exists in every session that may be paid on-chain. With ``auto`` it sleeps until Lightning fails for the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from wattline.cable.link.stream import SocketStream
from wattline.cable.opening import Agreement, Equipment
from wattline.cable.pay.onchain import LATER, OnchainPayments
from wattline.cable.pay.settlement import Bill, Evidence, ended
from wattline.cable.pay.versions import AggregateMaker
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import (
    FinalDue,
    FinalFailed,
    FinalSigned,
    OnchainEvent,
    OnchainFailed,
    OnchainInvitation,
    OnchainMessage,
    OnchainReady,
    PaymentEvent,
    Receipt,
    RefusedVersion,
    VersionAccepted,
)
from wattline.cable.policy.onchain import FinalKnown, Scope, refusal_of
from wattline.cable.policy.reconciliation import OnchainKnown
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregate
from wattline.core.wire.fields import socket_code

ASK_AGAIN_MS = 2_000
GIVE_UP_MS = 20_000
"""So long the socket may be unable to take anything on-chain before a session that depends on it is given up."""
RENEW_MS = 30_000
END_S = 10.0
LOOK_MS = 250
"""An invitation and a FinalDue are looked at no more often than this; of several that came meanwhile the newest."""
MOST_LINES = 30
"""So many different lines of what a socket does are told in one session."""


class Phase(StrEnum):
    """How far the preparation is."""

    ASLEEP = "asleep"
    ASKED = "asked"
    READY = "ready"
    FAILED = "failed"


class OnchainSide:
    """See the module."""

    def __init__(
        self,
        settings: CableSettings,
        equipment: Equipment,
        tell: Callable[[str], None],
        buyer: Buyer,
        stream: SocketStream,
        put: Callable[[PaymentEvent | OnchainEvent], None],
        left_ms: Callable[[], int | None],
    ) -> None:
        """``left_ms``: how long the run will last; None when that is open."""
        self._settings = settings
        self._equipment = equipment
        self._write = tell
        self._buyer = buyer
        self._left_ms = left_ms
        self._phase = Phase.ASLEEP
        self._asked_ms = 0
        self._first_asked_ms = 0
        self._renewed_ms = equipment.clock_ms()
        self._ready: OnchainReady | None = None
        self._invitation: OnchainInvitation | None = None
        self._due: FinalDue | None = None
        self._looked_ms = equipment.clock_ms() - LOOK_MS
        self._told: set[str] = set()
        self._is_final_known = False
        self._final_sat: int | None = None
        self.objections: list[str] = []
        """Why a final version was not signed."""
        self.row: CableAggregate | None = None
        """How it ended; None before, and where no inputs were reserved."""
        aggregates = equipment.ledger.cable_aggregates
        maker = AggregateMaker(
            equipment.funds,
            aggregates,
            equipment.node,
            settings.onchain.limits,
            buyer.terms.session_id,
            buyer.terms.node_id,
            equipment.wall.clock.moment,
        )
        self.payments = OnchainPayments(maker, stream, put)
        known = aggregates.of(buyer.terms.session_id)
        if known is not None and known.number:
            # An earlier run has handed versions over: what they are worth at the most is counted from now on.
            buyer.account.miner_fee_msat = known.fee_sat * MSAT_PER_SAT
            buyer.account.onchain_signed(known.signed_sat)
            buyer.account.onchain_stands(known.accepted_sat, equipment.clock_ms())
            self._final_sat, self._is_final_known = known.final_sat, known.is_final_taken
            buyer.wait_for_onchain()

    # What happens.

    def on_stream_renewed(self) -> None:
        """The stream was cut and is there again."""
        self.payments.on_stream_renewed()
        if self._phase is Phase.ASKED:
            self.payments.ask()

    def on_message(self, message: OnchainMessage, now_ms: int) -> None:
        """Something of the socket's."""
        match message:
            case OnchainInvitation():
                self._invitation = message
            case RefusedVersion(number=0, code=code):
                told = f"{code}: {message.message}"
                self._on_failed(OnchainFailed(socket_code(code), told, code in LATER))
            case VersionAccepted(is_final=True):
                if message.value_sat == self._final_sat:
                    self._is_final_known = True
                    self.payments.on_final_taken()
                    self._tell(f"final version accepted: {message.value_sat} sat")
            case RefusedVersion() if self._final_sat is not None:
                self._tell(f"version {message.number} refused: {message.code}: {message.message}")
                self.payments.on_answer(message)
            case VersionAccepted() | RefusedVersion():
                if isinstance(message, VersionAccepted) and self._phase is Phase.READY:
                    self._invitation = None  # what it held before that
                self.payments.on_answer(message)
            case FinalDue():
                # The books are closed: nothing is begun any more.
                self._buyer.end("socket_closed", "the socket ended the session")
                self._due = message
        self._look(now_ms)

    def _look(self, now_ms: int) -> None:
        if (self._invitation is None and self._due is None) or now_ms - self._looked_ms < LOOK_MS:
            return
        self._looked_ms = now_ms
        invitation, self._invitation = self._invitation, None
        if invitation is not None and self._phase is not Phase.ASLEEP:
            self.payments.on_invitation(invitation, self._scope())
        due, self._due = self._due, None
        if due is not None:
            self._on_final_due(due, now_ms)

    def _tell(self, line: str) -> None:
        """Something that the socket can have said as often as it likes: told once."""
        if line not in self._told and len(self._told) < MOST_LINES:
            self._told.add(line)
            self._write(line)

    def on_event(self, event: OnchainEvent, now_ms: int) -> None:
        """Something of the own worker's."""
        match event:
            case OnchainReady():
                self._on_ready(event, now_ms)
            case OnchainFailed():
                self._on_failed(event)
            case FinalSigned(value_sat):
                self._tell(f"final version signed: {value_sat} sat")
            case FinalFailed(message):
                self._tell(f"no final version yet: {message}")

    def _on_ready(self, ready: OnchainReady, now_ms: int) -> None:
        account = self._buyer.account
        account.onchain_signed(ready.signed_sat)
        if not account.in_flight_by("onchain")[0] and account.onchain_settled_msat != ready.accepted_sat * MSAT_PER_SAT:
            account.onchain_stands(ready.accepted_sat, now_ms)
        account.increments_stand(ready.number)
        if self._phase is not Phase.READY:
            self._write(f"on-chain payment prepared: up to {ready.terms.most_sat} sat, fee {ready.terms.fee_sat} sat")
        self._ready, self._phase = ready, Phase.READY
        self._go_over_when_due()

    def _on_failed(self, failed: OnchainFailed) -> None:
        if failed.passing:
            self._tell(f"no on-chain payment just now: {failed.code}: {failed.message}")
            return
        self._phase = Phase.FAILED
        if self._buyer.is_paying_onchain:
            distrust = failed.code == "onchain_mismatch"
            self._buyer.end(failed.code, failed.message, distrust=distrust)
        else:
            self._tell(f"this session cannot be paid on-chain: {failed.code}: {failed.message}")
        if self._buyer.fallback is not None:
            self._buyer.fallback.is_possible = False

    # What is done.

    def tick(self, now_ms: int) -> None:
        """As often as the session ticks."""
        self._look(now_ms)
        self.payments.tick()
        # A session that was paid on-chain needs it for its end, too.
        is_open = self._buyer.stop is None or self._buyer.account.onchain_signed_msat > 0
        if is_open and self._phase is Phase.ASLEEP and self._is_wanted:
            self._phase, self._first_asked_ms, self._asked_ms = Phase.ASKED, now_ms, now_ms
            self.payments.ask()
        elif is_open and self._phase is Phase.ASKED and now_ms - self._asked_ms >= ASK_AGAIN_MS:
            self._asked_ms = now_ms
            if now_ms - self._first_asked_ms >= GIVE_UP_MS:
                self._on_failed(OnchainFailed("onchain_unavailable", "the socket names no address to pay to", False))
            else:
                self.payments.ask()
        self._go_over_when_due()
        if self._phase is Phase.READY and now_ms - self._renewed_ms >= RENEW_MS:
            self._renewed_ms = now_ms
            self.payments.keep_reserved()

    @property
    def _is_wanted(self) -> bool:
        fallback = self._buyer.fallback
        return self._buyer.is_paying_onchain or (fallback is not None and fallback.is_near and fallback.is_possible)

    def _go_over_when_due(self) -> None:
        ready, buyer = self._ready, self._buyer
        if ready is None or self._phase is not Phase.READY or buyer.method == "onchain":
            return
        is_due = buyer.fallback is not None and buyer.fallback.is_due
        if buyer.is_paying_onchain or is_due:
            if is_due:
                self._write("Lightning does not carry the session any more; it is paid on-chain from now on")
            buyer.go_onchain(ready.terms, self._settings.onchain.limits)

    def _scope(self) -> Scope:
        limits, buyer = self._settings.limits, self._buyer
        try:
            day_msat = buyer.day_sent_msat
        except WattlineError:
            day_msat = buyer.account.sent_msat  # the cap on a day holds all the same when it comes to paying
        return Scope.within(
            buyer.terms.tariff,
            buyer.terms.rated_power_mw,
            limits.max_session_msat - buyer.account.sent_msat,
            limits.max_day_msat - day_msat,
            self._left_ms(),
        )

    def _on_final_due(self, due: FinalDue, now_ms: int) -> None:
        buyer, ready = self._buyer, self._ready
        account = buyer.account
        if ready is None and account.onchain_signed_msat:
            return  # it is being asked what the socket holds, and the socket asks again
        known = FinalKnown(
            is_trusted=not (buyer.stop is not None and buyer.stop.distrust),
            floor_sat=ready.terms.floor_sat if ready is not None else 0,
            handed_over_sat=(account.onchain_settled_msat + account.in_flight_by("onchain")[1]) // MSAT_PER_SAT,
            keysend_msat=account.keysend_settled_msat,
            most_charge_msat=buyer.charge.most_msat(now_ms),
        )
        why_not = "nothing was handed over on-chain" if ready is None else refusal_of(due, known)
        if why_not is None:
            self._final_sat = due.value_sat
            self.payments.sign_final(due.value_sat)
            return
        line = f"no final version was signed: {why_not}"
        if line not in self.objections and len(self.objections) < MOST_LINES:
            self.objections.append(line)
        self._tell(line)

    # Ending.

    def known(self) -> OnchainKnown | None:
        """What a receipt is held against; None when no version was handed over."""
        account, ready = self._buyer.account, self._ready
        if not account.onchain_signed_msat:
            return None
        return OnchainKnown(
            floor_sat=ready.terms.floor_sat if ready is not None else 0,
            accepted_msat=account.onchain_settled_msat,
            signed_msat=account.onchain_signed_msat,
            txids=dict(self.payments.txids),
            is_final_taken=self._is_final_known,
        )

    def finish(self, receipt: Receipt | None) -> CableAggregate | None:
        """Write down how it ended; None when nothing was reserved. What cannot be written now is done at the next
        start."""
        buyer, bill = self._buyer, None
        if buyer.statement is not None:
            bill = Bill(buyer.charge.most_msat(self._equipment.clock_ms()), buyer.account.keysend_settled_msat)
        evidence = Evidence(bill, receipt, buyer.terms.min_refund_msat)
        now_s, is_taken = int(self._equipment.now()), self._is_final_known
        try:
            self.row = self.payments.end(
                lambda row, held_sat: ended(
                    replace(row, is_final_taken=row.is_final_taken or is_taken), evidence, now_s, held_sat
                ),
                END_S,
            )
        except (WattlineError, TimeoutError) as error:
            self._write(f"the end of the on-chain payment is written down later: {error}")
        if receipt is not None and receipt.onchain_value_sat == 0:
            self._buyer.account.miner_fee_msat = 0  # nothing is broadcast
        return self.row

    def stop(self) -> None:
        self.payments.stop()


def make_onchain_side(
    settings: CableSettings,
    equipment: Equipment,
    agreement: Agreement,
    tell: Callable[[str], None],
    buyer: Buyer,
    stream: SocketStream,
    put: Callable[[PaymentEvent | OnchainEvent], None],
    left_ms: Callable[[], int | None],
) -> OnchainSide | None:
    """For a session that was just opened or resumed; None for one that is never paid on-chain."""
    if agreement.method == "onchain":
        buyer.wait_for_onchain()
    elif buyer.fallback is None and equipment.ledger.cable_aggregates.of(buyer.terms.session_id) is None:
        return None
    return OnchainSide(settings, equipment, tell, buyer, stream, put, left_ms)
