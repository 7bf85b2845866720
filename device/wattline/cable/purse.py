"""Payments under way: each is made by a worker thread, and its end is told as an event to the deciding thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from wattline.errors import WattlineError
from wattline.ledger import Intent, IntentStatus, Purpose
from wattline.lightning.node import SendStatus
from wattline.lightning.record import format_record
from wattline.payment.payer import BelowMinimum, FeeTooHigh, Order, Outcome

PURPOSE = Purpose.INCREMENT
MethodName = Literal["keysend", "onchain"]
"""How one payment is made; the names of :data:`wattline.cable.offer.METHODS`."""


class OrderPayer(Protocol):
    """Makes payments; :class:`wattline.payment.payer.Payer`."""

    def pay(self, order: Order, timeout_s: float = ...) -> Outcome: ...

    def resolve(self, resend: bool) -> list[Outcome]: ...


class Intents(Protocol):
    """The durable record of what was to be paid; ``Ledger.outgoing``."""

    def of(self, purpose: str, session_id: str, sequence: int) -> Intent | None: ...


@dataclass(frozen=True, slots=True)
class Arrived:
    """The socket's node has it."""

    sequence: int
    amount_msat: int
    amount_sent_msat: int
    duration_ms: int | None
    """None when it was in doubt for a while."""
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now."""
    accepted_sat: int | None = None
    """On-chain: the value of the version that the socket holds by its own word, now that this one is resolved."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It came back, or was never sent."""

    sequence: int
    amount_msat: int
    code: str
    message: str
    at_destination: bool = False
    final: bool = False
    """Trying again is useless."""
    fee_msat: int | None = None
    """The fee that was too high."""
    least_msat: int | None = None
    """The amount was too small; this much would pass."""
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now, this one included unless it never left."""
    accepted_sat: int | None = None
    """As above."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """It may arrive yet; it stays in flight until the node knows."""

    sequence: int
    amount_msat: int
    message: str
    signed_sat: int | None = None
    """On-chain: the largest value that was handed over by now."""


@dataclass(frozen=True, slots=True)
class DoubtsChecked:
    """An attempt to resolve doubts has ended; those resolved were told before."""

    error: str = ""
    method: MethodName = "keysend"


PaymentEvent = Arrived | Failed | InDoubt | DoubtsChecked


class Purse:
    """Pays one session. All methods return at once; ``emit`` is called from the workers."""

    def __init__(
        self,
        payer: OrderPayer,
        intents: Intents,
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
        order = Order(
            purpose=PURPOSE,
            session_id=self._session_id,
            sequence=sequence,
            destination=self._destination,
            amount_msat=amount_msat,
            maxfee_msat=maxfee_msat,
            record=record,
            label=record,
        )
        self._begin("cable-pay", self._pay, order)

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

    def _pay(self, order: Order) -> None:
        try:
            outcome = self._payer.pay(order, self._timeout_s)
        except FeeTooHigh as error:
            self._emit(self._not_sent(order, error, fee_msat=error.fee_msat))
        except BelowMinimum as error:
            self._emit(self._not_sent(order, error, least_msat=error.least_msat))
        except WattlineError as error:
            self._emit(self._not_sent(order, error))
        except Exception as error:  # noqa: BLE001 - whatever happened, this payment must not be forgotten
            self._emit(self._unless_recorded(order, f"{type(error).__name__}: {error}") or self._broken(order, error))
        else:
            self._emit(_event(order.sequence, outcome))

    def _not_sent(
        self, order: Order, error: WattlineError, fee_msat: int | None = None, least_msat: int | None = None
    ) -> PaymentEvent:
        return self._unless_recorded(order, error.message) or Failed(
            order.sequence,
            order.amount_msat,
            error.code,
            error.message,
            fee_msat=fee_msat,
            least_msat=least_msat,
        )

    def _unless_recorded(self, order: Order, message: str) -> InDoubt | None:
        """In doubt when an intent is on record: then the error may have come after the money had left."""
        try:
            intent = self._intents.of(PURPOSE, order.session_id, order.sequence)
        except Exception:  # noqa: BLE001 - a record that cannot be read is a doubt, too
            return InDoubt(order.sequence, order.amount_msat, message)
        if intent is not None and intent.status is IntentStatus.PENDING:
            return InDoubt(order.sequence, order.amount_msat, message)
        return None

    @staticmethod
    def _broken(order: Order, error: Exception) -> Failed:
        return Failed(order.sequence, order.amount_msat, "payer_broken", f"{type(error).__name__}: {error}", final=True)

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
