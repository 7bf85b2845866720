"""Paying over Lightning: each payment is made by a worker thread, and its end is told as an event to the deciding
thread.

Whether unused credit could come back at the end, and whether it did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Set

from wattline.cable.policy.events import Arrived, DoubtsChecked, Failed, InDoubt, MethodName, PaymentEvent
from wattline.cable.policy.offer import Offer
from wattline.core.errors import WattlineError
from wattline.core.ledger.outgoing import Intent, IntentStatus, Outgoing, Purpose
from wattline.core.lightning.node import Journal, SendStatus
from wattline.core.payer import BelowMinimum, FeeTooHigh, Outcome, Payer
from wattline.core.record import DESCRIPTION_PREFIX, format_record
from wattline.core.text import sat

PURPOSE = Purpose.INCREMENT


RESOLVE_MS = 3_000
"""Between two looks at payments in doubt."""


class Doubts:
    """When the payments in doubt of either method are looked at again."""

    def __init__(self) -> None:
        self._under_way: set[MethodName] = set()
        self._due_ms: dict[MethodName, int] = {}

    def may_resolve(self, method: MethodName, doubts: Set[int], now_ms: int) -> bool:
        """Whether to look now, which is begun then."""
        if not doubts or method in self._under_way or now_ms < self._due_ms.get(method, 0):
            return False
        self._under_way.add(method)
        return True

    def checked(self, method: MethodName, at_ms: int) -> None:
        """A look has ended."""
        self._under_way.discard(method)
        self._due_ms[method] = at_ms + RESOLVE_MS


class KeysendPayments:
    """Pays one session. All methods return at once; ``emit`` is called from the workers."""

    def __init__(
        self,
        payer: Payer,
        intents: Outgoing,
        session_id: str,
        destination: str,
        emit: Callable[[PaymentEvent], None],
        timeout_s: float,
    ) -> None:
        self._payer = payer
        self._intents = intents
        self._session_id = session_id
        self._destination = destination
        self._emit = emit
        self._timeout_s = timeout_s
        self._is_stopped = False

    def pay(self, sequence: int, amount_msat: int, maxfee_msat: int) -> None:
        """Begin a payment; its end is told once."""
        record = format_record(self._session_id, sequence)
        intent = Intent(
            purpose=PURPOSE,
            session_id=self._session_id,
            sequence=sequence,
            destination=self._destination,
            amount_msat=amount_msat,
            maxfee_msat=maxfee_msat,
            record=record,
            label=record,
        )
        self._begin("cable-pay", self._pay, intent)

    def resolve(self, sequences: Iterable[int], resend: bool) -> None:
        """Ask the node about payments in doubt. ``resend`` makes a payment that never left leave now."""
        self._begin("cable-resolve", self._resolve, tuple(sequences), resend)

    def stop(self) -> None:
        """Begin nothing any more. What is under way goes on in lightningd and stays recorded as in doubt."""
        self._is_stopped = True

    def _begin(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        """In a thread that the end of the process does not wait for: whoever receives a payment may hold it for as long
        as it likes. How many there are, the buyer's limit of payments under way says."""
        if not self._is_stopped:
            threading.Thread(target=work, args=arguments, name=name, daemon=True).start()

    def _pay(self, intent: Intent) -> None:
        try:
            outcome = self._payer.pay(intent, self._timeout_s)
        except FeeTooHigh as error:
            self._emit(self._not_sent(intent, error, fee_msat=error.fee_msat))
        except BelowMinimum as error:
            self._emit(self._not_sent(intent, error, least_msat=error.least_msat))
        except WattlineError as error:
            self._emit(self._not_sent(intent, error))
        except Exception as error:  # noqa: BLE001 - whatever happened, this payment must not be forgotten
            self._emit(self._unless_recorded(intent, f"{type(error).__name__}: {error}") or self._broken(intent, error))
        else:
            self._emit(_event(intent.sequence, outcome))

    def _not_sent(
        self, intent: Intent, error: WattlineError, fee_msat: int | None = None, least_msat: int | None = None
    ) -> PaymentEvent:
        return self._unless_recorded(intent, error.message) or Failed(
            intent.sequence,
            intent.amount_msat,
            error.code,
            error.message,
            fee_msat=fee_msat,
            least_msat=least_msat,
        )

    def _unless_recorded(self, intent: Intent, message: str) -> InDoubt | None:
        """In doubt when an intent is on record: then the error may have come after the money had left."""
        try:
            known = self._intents.of(PURPOSE, intent.session_id, intent.sequence)
        except Exception:  # noqa: BLE001 - a record that cannot be read is a doubt, too
            return InDoubt(intent.sequence, intent.amount_msat, message)
        if known is not None and known.status is IntentStatus.PENDING:
            return InDoubt(intent.sequence, intent.amount_msat, message)
        return None

    @staticmethod
    def _broken(intent: Intent, error: Exception) -> Failed:
        return Failed(
            intent.sequence, intent.amount_msat, "payer_broken", f"{type(error).__name__}: {error}", final=True
        )

    def _resolve(self, sequences: tuple[int, ...], resend: bool) -> None:
        problem = ""
        try:
            self._payer.resolve(resend)
            for sequence in sequences:
                intent = self._intents.of(PURPOSE, self._session_id, sequence)
                if intent is None:
                    self._emit(Failed(sequence, 0, "never_recorded", "the payment was never begun"))
                elif intent.status is IntentStatus.COMPLETE:
                    self._emit(Arrived(sequence, intent.amount_msat, intent.amount_sent_msat, None))
                elif intent.status is IntentStatus.FAILED:
                    self._emit(Failed(sequence, intent.amount_msat, "failed", "the payment came back"))
        except WattlineError as error:
            problem = error.message
        except Exception as error:  # noqa: BLE001 - doubts stay doubts, the session goes on
            problem = f"{type(error).__name__}: {error}"
        self._emit(DoubtsChecked(problem))


def _event(sequence: int, outcome: Outcome) -> PaymentEvent:
    if outcome.status is SendStatus.COMPLETE:
        return Arrived(sequence, outcome.amount_msat, outcome.amount_sent_msat, outcome.duration_ms)
    if outcome.status is SendStatus.PENDING:
        return InDoubt(sequence, outcome.amount_msat, "the payment is not resolved yet")
    failure = outcome.failure
    if failure is None:
        return Failed(sequence, outcome.amount_msat, "unknown", "the payment failed")
    return Failed(sequence, outcome.amount_msat, failure.code, failure.message, failure.at_destination)


NO_WAY_BACK = "no_way_back"
"""A problem of ``wattline cable check``, whose purpose is to find such things; a warning of ``wattline cable run``,
since no more than the prepaid cap can be owed."""
KEYSEND_OFF = (
    "keysend_off: the own node's keysend plugin does not run, so no refund can arrive: "
    "start lightningd without disable-plugin=keysend"
)
"""So is this."""


def can_come_back(receivable_msat: int, offer: Offer) -> bool:
    """Whether the smallest refund that the socket makes fits through the channels of the cable's node, the best of
    which can receive ``receivable_msat`` now."""
    return receivable_msat >= max(1, offer.min_refund_msat)


def owed(max_prepaid_msat: int) -> str:
    """What it means, in one line."""
    return (
        f"nothing can come back through the node's channels yet; unused credit, at most {sat(max_prepaid_msat)}, stays "
        "owed until the socket's side of one has grown"
    )


REFUND_SEQUENCE = 0
"""The number in the record of a session's refund; the cable's own payments begin at 1."""


PAGE = 500


class RefundSearch:
    """Looks for a refund in the own node's paid invoices; every look goes on where the last one ended."""

    def __init__(self, journal: Journal, session_id: str, amount_msat: int) -> None:
        """``amount_msat``: what it has to be at the least."""
        self._journal = journal
        self._description = f"{DESCRIPTION_PREFIX}{format_record(session_id, REFUND_SEQUENCE)}"
        self._amount_msat = amount_msat
        self._cursor = 0

    def found(self) -> bool:
        """Whether it is there by now. Raises NodeUnavailable, NodeRefused."""
        while rows := self._journal.paid_since(self._cursor, PAGE):
            for row in rows:
                if (
                    row.is_paid
                    and row.description == self._description
                    and row.amount_received_msat >= self._amount_msat
                ):
                    return True
            self._cursor = rows[-1].updated_index
        return False
