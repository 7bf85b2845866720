"""The cable service: one run, from whatever the last one left behind to a summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from wattline.cable.closing import StopWish, Summary
from wattline.cable.link.transport import details_of, verify_receipt
from wattline.cable.opening import (
    Agreement,
    Equipment,
    Listener,
    PaymentUnknown,
    agree,
    agree_again,
    held_msat,
    recollect,
    without_held,
)
from wattline.cable.pay.keysend import KEYSEND_OFF, NO_WAY_BACK, RefundSearch, can_come_back, owed
from wattline.cable.pay.settlement import Aftermath, Evidence, agreed_sat, warning_of
from wattline.cable.policy.events import SignedReceipt
from wattline.cable.policy.offer import OfferError, clocks_apart
from wattline.cable.restoring import (
    SessionOver,
    found_over,
    objections_of_found,
    restore,
    saved_evidence,
    saved_receipt,
    with_receipt,
)
from wattline.cable.session_run import SessionRun
from wattline.cable.settings import CableSettings
from wattline.core.errors import RetryError, StopError, UsageError, WattlineError
from wattline.core.ledger.cable import CableAggregateStatus, CableSession
from wattline.core.wire.reading import admitted
from wattline.device.meters.reading import Reading
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc as pb_grpc

MAX_OFFERS = 3
"""So often a new offer is asked for when the price changed between offer and open."""
RECEIPT_TIMEOUT_S = 5.0
FIND_AGAIN_MS = 60_000
FIND_AGAIN_PAUSE_S = 1.0
CHANNEL_MS = 5_000
CHANNEL_PAUSE_S = 0.2
MOST_LOOKED_AT = 20
"""Earlier sessions at a socket."""
MINED_WAIT_S = 3.0
"""How long the end of a run waits for a block."""


class CableService:
    """Buys electricity until it is told to stop, or until something is wrong."""

    def __init__(self, settings: CableSettings, equipment: Equipment, listener: Listener, wish: StopWish) -> None:
        self._settings = settings
        self._equipment = equipment
        self._listener = listener
        self._tell = listener.event
        self._wish = wish
        self._aftermath = make_aftermath(settings, equipment, listener.event)

    def run(self) -> Summary:
        """One session to its end, resumed when the last run left one. Whatever ends it is in the summary; raises
        UsageError only."""
        self._wish.begin(self._equipment.clock_ms())
        try:
            remembered = self._equipment.ledger.cable_sessions.unfinished()
            self._recollect(remembered)
            self._aftermath.look_at_all(remembered.session_id if remembered is not None else None)
            if remembered is not None and self._is_mined(remembered):
                self._tell(f"the transaction of session {remembered.session_id} is in a block: it is over")
                self._forget_over(remembered, "session_closed")
                remembered = None
            if remembered is not None:
                summary = self._resume(remembered)
                if summary is not None:
                    return summary
            else:
                self._equipment.payer.resolve(resend=False)
            return self._buy()
        except UsageError:
            raise
        except WattlineError as error:
            return Summary(error.code, error.message).achieved()

    def _recollect(self, remembered: CableSession | None) -> None:
        """What the node has paid is in the ledger when this returns. A node that is just restarting, or a payment that
        is under way, is waited for where a session goes on. Raises WattlineError."""
        equipment = self._equipment
        if equipment.sent_since is None:
            return
        deadline = equipment.clock_ms() + FIND_AGAIN_MS
        while True:
            try:
                day_begins = equipment.ledger.outgoing.day_begins_s(equipment.wall.now())
                count = recollect(equipment.sent_since, equipment.ledger, remembered, day_begins)
            except RetryError as error:
                is_doubt = isinstance(error, PaymentUnknown)
                may_wait = is_doubt or remembered is not None
                if not may_wait or self._wish.reason or equipment.clock_ms() >= deadline:
                    raise
                self._tell(f"waiting for the own node: {error.message}")
                if is_doubt:
                    equipment.payer.resolve(resend=False)
                time.sleep(FIND_AGAIN_PAUSE_S)
            else:
                break
        if count:
            self._tell(
                f"warning: the ledger is an older copy: {count} payment(s) that the own node has made are added to it"
            )

    def _buy(self) -> Summary:
        self._wait_for_channel()
        settings = self._less_what_is_held(None)
        for attempt in range(1, MAX_OFFERS + 1):
            agreement = agree(settings, self._equipment, self._wish.left_ms(self._equipment.clock_ms()))
            self._tell_trust(agreement)
            self._tell_clocks(agreement)
            self._tell_refund(agreement)
            self._tell_owed(agreement)
            self._tell_unreceipted(agreement)
            run = SessionRun(settings, self._equipment, agreement, self._listener, self._wish)
            try:
                return self._with_aftermath(run.run(), run)
            except WattlineError as error:
                if run.buyer is not None:
                    raise
                # The session has not come about, so nothing was paid: its token is forgotten.
                self._forget(agreement.remembered, error.code)
                if error.code != "tariff_changed" or attempt == MAX_OFFERS:
                    raise
                self._tell("the socket has changed its price; asking for a new offer")
        raise AssertionError("not reached")

    def _less_what_is_held(self, session_id: str | None) -> CableSettings:
        """The settings for that session (None: a new one), less what others still have on its way. Raises StopError
        ``prepaid_limit`` when that leaves nothing to a new one."""
        msat, cap_msat = held_msat(self._equipment.ledger.outgoing, session_id), self._settings.limits.max_prepaid_msat
        if not msat:
            return self._settings
        held = f"{msat} msat that other sessions have sent are still on their way, and limits.max_prepaid_msat"
        if session_id is None and msat >= cap_msat:
            raise StopError("prepaid_limit", f"{held} allows {cap_msat} msat; wattline cable resolve lists them")
        self._tell(f"warning: {held} is lower by that for this session")
        return without_held(self._settings, msat)

    def _with_aftermath(self, summary: Summary, run: SessionRun) -> Summary:
        """``summary`` with what was mined, should that be known so soon."""
        row = run.aggregate
        if row is None or not row.status.is_live:
            return summary
        row = self._aftermath.wait(row, MINED_WAIT_S)
        if row.mined_txid is None:
            return summary
        lines = summary.objections
        if row.status is CableAggregateStatus.CHEATED:
            lines = (*lines, f"the socket had {row.mined_sat} sat mined; {agreed_sat(row)} sat were agreed")
        return replace(summary, txid=row.mined_txid, onchain_value_sat=row.mined_sat, objections=lines)

    def _wait_for_channel(self) -> None:
        """A node that has just been started is still connecting to its peers. Raises StopError ``no_channel``, unless
        the session can be paid on-chain, too."""
        if self._settings.payment.method == "onchain":
            return
        deadline = self._equipment.clock_ms() + CHANNEL_MS
        while not self._equipment.node.channels():
            if self._wish.reason or self._equipment.clock_ms() >= deadline:
                if self._settings.payment.method == "auto":
                    return
                raise StopError(
                    "no_channel",
                    "the cable's node has no usable channel (open, peer connected), so nothing can be paid; "
                    "lightning-cli fundchannel opens one",
                )
            time.sleep(CHANNEL_PAUSE_S)

    def _resume(self, remembered: CableSession) -> Summary | None:
        """Go on with the session of the last run; None when it turned out to be over and a new one may begin."""
        if remembered.address != self._settings.socket.parsed.target:
            self._tell(f"the last session was at {remembered.address}; it is left to end there")
            self._forget(remembered, "abandoned")
            return None
        self._tell(f"taking up session {remembered.session_id or '(not yet named)'} of the last run")
        settings = self._less_what_is_held(remembered.session_id)
        agreement = self._find_again(remembered)
        run = SessionRun(settings, self._equipment, agreement, self._listener, self._wish)
        try:
            return self._with_aftermath(run.run(), run)
        except SessionOver as over:
            self._tell(f"that session is over: {over.message}")
            self._forget_over(remembered, over.code)
            return None
        except OfferError as error:
            if run.buyer is not None or self._wish.reason:
                raise
            if remembered.session_id is None:
                self._forget(remembered, error.code)
                return None  # it was never named, so nothing was paid for it
            self._forget_over(remembered, error.code)
            raise

    def _find_again(self, remembered: CableSession) -> Agreement:
        """The socket of the last run, which may be just restarting, too: asked again for a while."""
        deadline = self._equipment.clock_ms() + FIND_AGAIN_MS
        while True:
            try:
                return agree_again(self._settings, self._equipment, remembered)
            except RetryError as error:
                if self._wish.reason or self._equipment.clock_ms() >= deadline:
                    raise
                self._tell(f"waiting for the socket: {error.message}")
            time.sleep(FIND_AGAIN_PAUSE_S)

    def _is_mined(self, remembered: CableSession) -> bool:
        """Its inputs are spent, so nobody can pay for it any more."""
        session_id = remembered.session_id
        return session_id is not None and self._aftermath.is_over(session_id)

    def _with_receipt(self, remembered: CableSession) -> CableSession:
        """``remembered`` with the socket's receipt, when it still has one and it is genuine. Raises nothing."""
        if remembered.session_id is None or remembered.receipt:
            return remembered
        try:
            agreement = agree_again(self._settings, self._equipment, remembered)
        except WattlineError as error:
            self._tell(f"no receipt for it: {error.message}")
            return remembered
        try:
            request = pb.GetReceiptRequest(session_id=remembered.session_id, token=bytes.fromhex(remembered.token))
            stub = pb_grpc.ChargingServiceStub(agreement.opened.channel)
            answer = admitted(stub.GetReceipt(request, timeout=RECEIPT_TIMEOUT_S)).receipt
            signed = SignedReceipt(answer.receipt, answer.signature)
            verify_receipt(signed, self._equipment.node, remembered.node_id, remembered.session_id)
        except grpc.RpcError as error:
            self._tell(f"no receipt for it: {details_of(error)}")
            return remembered
        except WattlineError as error:
            self._tell(f"no receipt for it: {error.message}")
            return remembered
        finally:
            agreement.opened.channel.close()
        return with_receipt(remembered, signed)

    def _forget_over(self, remembered: CableSession, reason: str) -> None:
        """Close the record of a session that ended while no run watched it: by the socket's receipt, and by the own
        meter as it stands now."""
        reading = self._reading(remembered)
        session = found_over(self._with_receipt(remembered), reading, self._equipment.wall.now())
        self._forget(session, remembered.stop_reason or reason)
        for line in self._objections(session, remembered.energy_uwh):
            self._tell(f"warning: session {session.session_id}: {line}")

    def _objections(self, session: CableSession, last_uwh: int) -> list[str]:
        """What in the receipt of a session that was found over contradicts the own account."""
        receipt, session_id = saved_receipt(session), session.session_id
        if receipt is None or session_id is None:
            return []
        row = self._equipment.ledger.cable_aggregates.of(session_id)
        payments = restore(self._equipment.ledger.outgoing, session_id)
        lines = objections_of_found(session, last_uwh, receipt, payments, row, self._settings.limits.tolerance)
        if receipt.refund_status == "sent" and receipt.refunded_by_payment_msat:
            search = RefundSearch(self._equipment.node, session_id, receipt.refunded_by_payment_msat)
            if not search.found():
                lines.append(
                    f"the own node has not got the {receipt.refunded_by_payment_msat} msat that were sent back"
                )
        return lines

    def _reading(self, remembered: CableSession) -> Reading | None:
        try:
            meter = self._equipment.open_meter(remembered.rated_power_mw or None)
            try:
                return meter.read()
            finally:
                meter.close()
        except WattlineError as error:
            self._tell(f"the own meter cannot be read: {error.message}")
            return None

    def _forget(self, remembered: CableSession, reason: str) -> None:
        """Close the record; payments still in doubt are settled without being sent again."""
        closed_at = int(self._equipment.now()) if remembered.closed_at is None else remembered.closed_at
        self._equipment.ledger.cable_sessions.save(replace(remembered, stop_reason=reason, closed_at=closed_at))
        self._equipment.payer.resolve(resend=False)
        self._aftermath.look_at_all(None)

    def _tell_refund(self, agreement: Agreement) -> None:
        """A warning only: what could be owed at the end is no more than the cable chose to risk. On-chain, what is not
        used is never taken."""
        if agreement.method == "onchain":
            return
        receivable_msat = max((channel.receivable_msat for channel in self._equipment.node.channels()), default=0)
        if not self._equipment.node.takes_keysend():
            self._tell(f"warning: {KEYSEND_OFF}; unused credit stays owed until then")
        elif not can_come_back(receivable_msat, agreement.opened.offer):
            self._tell(f"warning: {NO_WAY_BACK}: {owed(self._settings.limits.max_prepaid_msat)}")

    def _tell_owed(self, agreement: Agreement) -> None:
        warning = warning_of(self._equipment.ledger.cable_aggregates, agreement.opened.offer.node_id)
        if warning is not None:
            self._tell(f"warning: {warning}")

    def _tell_unreceipted(self, agreement: Agreement) -> None:
        """What this socket may have kept of earlier sessions: said before it is paid again."""
        sessions = self._equipment.ledger.cable_sessions.without_receipt(agreement.opened.offer.node_id, MOST_LOOKED_AT)
        paid = [restore(self._equipment.ledger.outgoing, session.session_id or "").settled_msat for session in sessions]
        count = sum(1 for msat in paid if msat)
        if count:
            self._tell(
                f"warning: this socket gave no receipt for {count} earlier session(s), for which it got {sum(paid)} "
                "msat: what they had not used of that may be lost"
            )

    def _tell_clocks(self, agreement: Agreement) -> None:
        apart = clocks_apart(agreement.opened.offer, self._equipment.now())
        if apart is not None:
            self._tell(f"{apart}: records are dated differently, nothing is measured by either")

    def _tell_trust(self, agreement: Agreement) -> None:
        if self._settings.socket.parsed.node_id is None:
            self._tell(
                f"warning: any_node is on: paying node {agreement.opened.offer.node_id} only because it answered"
            )


def make_aftermath(settings: CableSettings, equipment: Equipment, tell: Callable[[str], None]) -> Aftermath:
    """What was mined of earlier sessions, judged by all that the ledger holds of them."""
    ledger = equipment.ledger

    def evidence(session_id: str) -> Evidence:
        session = ledger.cable_sessions.of(session_id)
        if session is None:
            return Evidence()
        keysend_msat = restore(ledger.outgoing, session_id).settled_msat
        return saved_evidence(session, keysend_msat, settings.limits.tolerance, equipment.wall.now())

    return Aftermath(equipment.funds, ledger.cable_aggregates, equipment.node, tell, equipment.now, evidence)
