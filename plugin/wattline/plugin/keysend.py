"""Keysend payments on the socket's side: what the ``htlc_accepted`` hook refuses, and what is in flight.

The hook only refuses. A payment that it lets pass is *reserved* (it counts against the session's credit cap) until its
credit has reached the session; the money itself is counted from lightningd's paid invoices alone (the journal), never
from the hook. Everything here is quick, since lightningd waits for the answer: it is in memory, and besides the ledger
is asked once whether it has the payment_hash (one row by its key).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wattline.core.record import (
    PREIMAGE_TLV_TYPE,
    RECORD_TLV_TYPE,
    PayloadError,
    RecordError,
    invoice_description,
    parse_payload,
    parse_record,
    quick_test,
)

DESCRIPTION_PREFIX = "keysend: "
LIFETIME_S = 60.0
"""How long a payment that passed the hook counts as in flight without being credited."""
CLAIM_S = 5.0
"""How long the first payment of a session may be in flight and keep others from its outlet. lightningd goes on within
milliseconds; what is not credited by then it has failed."""
CLAIM_REST_S = 60.0
"""So long after a claim that brought no credit no payment of a session claims that outlet: whoever sends payments that
lightningd fails, from however many addresses, keeps others from it for ``CLAIM_S`` of that time at the most."""
MOST_REMEMBERED = 4096
"""So many sessions that have claimed, and payments that have passed, are remembered."""
AMOUNT_TLV_TYPE = 2
CLTV_TLV_TYPE = 4
PAYMENT_DATA_TLV_TYPE = 8
"""``payment_data`` of a final hop (BOLT #4): payment_secret (32 bytes) and total_msat (tu64)."""
BLINDED_TLV_TYPES = (10, 12)
"""``encrypted_recipient_data`` and ``current_path_key`` (BOLT #4): of blinded paths, on which no keysend comes."""
PAYMENT_METADATA_TLV_TYPE = 16
MIN_FINAL_CLTV = 18
"""Blocks that must be left (BOLT #11, and lightningd's own ``cltv-final``)."""


@dataclass(frozen=True, slots=True)
class Htlc:
    """An incoming htlc as the hook shows it."""

    payment_hash: str
    amount_msat: int
    payload: str
    """The decrypted per-hop payload, hex, with its length prefix."""
    is_forward: bool
    cltv_expiry: int | None = None
    """Of the htlc itself; None: not known."""
    blocks_left: int | None = None
    """Until then, from the newest block on; None: not known."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Let lightningd go on with it."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail it: the payer keeps the money. ``session_id`` is None when the record does not name a known session."""

    code: str
    message: str
    session_id: str | None = None


class CreditDesk(Protocol):
    """Who knows the sessions: says whether one can use a payment now."""

    def refusal(self, session_id: str, amount_msat: int, in_flight_msat: int) -> tuple[str, str] | None:
        """None when ``amount_msat`` more, on top of ``in_flight_msat`` not yet credited, can be used; else code and
        message."""

    def outlet_id_of(self, session_id: str) -> str:
        """Of a live session; empty when there is none of that id."""

    def was_received(self, payment_hash: str) -> bool:
        """A payment with this hash is in the ledger already."""


class Reservations:
    """Payments that passed the hook and are not yet credited, by payment_hash; and which sessions claim their outlets
    with the first of them. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Condition()
        self._amounts: dict[str, tuple[str, int]] = {}
        self._since: dict[str, float] = {}
        self._totals: dict[str, int] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        """By session: the outlet that it claims while something of it is in flight, and since when."""
        self._rests: dict[str, tuple[str, float]] = {}
        """By outlet: the session that claimed it last and has not been credited, and until when nobody claims it."""
        self._claimed: OrderedDict[str, None] = OrderedDict()
        """Sessions that have claimed: none does so twice."""

    def reserve(
        self,
        payment_hash: str,
        session_id: str,
        amount_msat: int,
        test: Callable[[int], bool],
        outlet_id: str = "",
        *,
        is_proven: bool = False,
    ) -> bool:
        """Reserve when ``test(in_flight_msat)`` of the session's other payments agrees, in one step. The first time the
        session claims ``outlet_id`` with it, unless a claim has just failed there; always with what ``is_proven``.

        The same hash again (lightningd replays htlcs at its start) is not counted twice."""
        with self._lock:
            self._expire()
            known = self._amounts.get(payment_hash)
            if known is not None and known[0] != session_id:
                return False
            others = self._totals.get(session_id, 0) - (known[1] if known else 0)
            if not test(others):
                return False
            self._amounts[payment_hash] = (session_id, amount_msat)
            self._since.pop(payment_hash, None)  # a hash that comes again goes to the end: the oldest stands in front
            self._since[payment_hash] = self._clock()
            self._totals[session_id] = others + amount_msat
            self._claim(session_id, outlet_id, is_proven=is_proven)
            return True

    def _claim(self, session_id: str, outlet_id: str, *, is_proven: bool) -> None:
        now = self._clock()
        if session_id in self._claims:
            return
        if not is_proven:
            _, rests_until = self._rests.get(outlet_id, ("", now))
            if session_id in self._claimed or now < rests_until:
                return
            self._rests[outlet_id] = (session_id, now + CLAIM_S + CLAIM_REST_S)  # until its credit is here
        self._claimed[session_id] = None
        while len(self._claimed) > MOST_REMEMBERED:
            self._claimed.popitem(last=False)
        self._claims[session_id] = (outlet_id, now)

    def is_claiming(self, session_id: str) -> bool:
        """Something of the session is in flight, keeps others from its outlet, and has not done so for so long that it
        cannot come in any more."""
        with self._lock:
            return self._is_claiming(session_id)

    def _is_claiming(self, session_id: str) -> bool:
        claim = self._claims.get(session_id)
        return claim is not None and self._clock() < claim[1] + CLAIM_S

    def when_unclaimed(self, session_id: str, work: Callable[[], None]) -> bool:
        """Do ``work``, which must be quick, unless the session claims its outlet just now; what else of it is in flight
        is forgotten."""
        with self._lock:
            if self._is_claiming(session_id):
                return False
            work()
            self._forget(session_id)
            return True

    def when_idle(self, session_id: str, work: Callable[[], None]) -> bool:
        """Do ``work``, which must be quick, unless something of the session is in flight; nothing is reserved
        meanwhile, by anybody."""
        with self._lock:
            self._expire()
            if session_id in self._totals:
                return False
            work()
            return True

    def session_of(self, payment_hash: str) -> str | None:
        with self._lock:
            known = self._amounts.get(payment_hash)
            return known[0] if known else None

    def release(self, payment_hash: str) -> None:
        """Its credit has arrived (or it never will)."""
        with self._lock:
            session_id, _ = self._amounts.get(payment_hash, ("", 0))
            outlet_id, _ = self._claims.get(session_id, ("", 0.0))
            if self._rests.get(outlet_id, ("", 0.0))[0] == session_id:
                self._rests.pop(outlet_id, None)
            self._release(payment_hash)

    def forget(self, session_id: str) -> None:
        """Drop what is left of a session that is over."""
        with self._lock:
            self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        for payment_hash in [h for h, (owner, _) in self._amounts.items() if owner == session_id]:
            self._release(payment_hash)

    def _release(self, payment_hash: str) -> None:
        known = self._amounts.pop(payment_hash, None)
        if known is None:
            return
        del self._since[payment_hash]
        session_id, amount_msat = known
        left = self._totals[session_id] - amount_msat
        if left:
            self._totals[session_id] = left
        else:
            del self._totals[session_id]
            self._claims.pop(session_id, None)
        self._lock.notify_all()

    def _expire(self) -> None:
        """lightningd itself has failed what was neither credited nor released for so long (an expiry too near, say)."""
        oldest = self._clock() - LIFETIME_S
        while self._since and (first := next(iter(self._since.items())))[1] < oldest:
            self._release(first[0])

    def in_flight_msat(self, session_id: str) -> int:
        with self._lock:
            return self._totals.get(session_id, 0)

    def wait_drained(self, session_id: str, timeout_s: float) -> bool:
        """Wait until nothing of the session is in flight; False when the time ran out."""
        with self._lock:
            return self._lock.wait_for(lambda: session_id not in self._totals, timeout_s)


class KeysendGate:
    """The refusing side of the hook."""

    def __init__(self, desk: CreditDesk, reservations: Reservations) -> None:
        self._desk = desk
        self._reservations = reservations
        self._passed: OrderedDict[str, None] = OrderedDict()
        """Hashes of payments that were let pass, the newest at the end."""

    def speaks_of_wattline(self, payload: str) -> bool:
        """The quick test on the hex: False lets a stranger's payment pass without another look."""
        return quick_test(payload)

    def judge(self, htlc: Htlc) -> Pass | Refuse:
        """Whether the session that an htlc names can use it; reserves the amount when it can."""
        if htlc.is_forward or not quick_test(htlc.payload):
            return Pass()
        try:
            payload = bytes.fromhex(htlc.payload)
            fields = parse_payload(payload)
        except (PayloadError, ValueError) as error:
            return Refuse("malformed_record", f"the payload cannot be read: {error}")
        own = fields.get(RECORD_TLV_TYPE)
        description = invoice_description(payload) if PREIMAGE_TLV_TYPE in fields else None
        text = (description or "").removeprefix(DESCRIPTION_PREFIX)
        if own is None and not text.startswith("wattline:"):
            return Pass()
        if own is None or own != text.encode():
            return Refuse(
                "malformed_record",
                f"the record must be the longest text of the payment and stand under type {RECORD_TLV_TYPE}",
            )
        try:
            record = parse_record(text)
        except RecordError as error:
            return Refuse("malformed_record", str(error))
        if hashlib.sha256(fields.get(PREIMAGE_TLV_TYPE, b"")).hexdigest() != htlc.payment_hash:
            return Refuse("wrong_preimage", "the preimage does not belong to the payment_hash", record.session_id)
        if _total_msat(fields, htlc.amount_msat) != htlc.amount_msat:
            return Refuse("in_parts", "a payment for a session must come in one part", record.session_id)
        reason = _would_fail(fields, htlc)
        if reason:
            return Refuse("malformed_record", f"lightningd would not take it: {reason}", record.session_id)
        if self._is_used_up(htlc.payment_hash):
            return Refuse("malformed_record", "lightningd would not take it: its preimage is known", record.session_id)
        return self._reserve(htlc, record.session_id)

    def _is_used_up(self, payment_hash: str) -> bool:
        """It came before, and is not on its way any more."""
        if self._reservations.session_of(payment_hash) is not None:
            return False
        return payment_hash in self._passed or self._desk.was_received(payment_hash)

    def _reserve(self, htlc: Htlc, session_id: str) -> Pass | Refuse:
        refusals: list[tuple[str, str]] = []

        def can_use(in_flight_msat: int) -> bool:
            refusal = self._desk.refusal(session_id, htlc.amount_msat, in_flight_msat)
            if refusal is not None:
                refusals.append(refusal)
            return refusal is None

        outlet_id = self._desk.outlet_id_of(session_id)
        if self._reservations.reserve(htlc.payment_hash, session_id, htlc.amount_msat, can_use, outlet_id):
            self._passed[htlc.payment_hash] = None
            while len(self._passed) > MOST_REMEMBERED:
                self._passed.popitem(last=False)
            return Pass()
        code, message = refusals[0] if refusals else ("wrong_session", "this payment_hash pays another session")
        return Refuse(code, message, session_id)


def _would_fail(fields: dict[int, bytes], htlc: Htlc) -> str:
    """Why lightningd fails a payment of which its payload says so (handle_localpay, BOLT #4); empty when it takes it.
    What would fail anyway must not be in flight meanwhile: it would cost its sender nothing."""
    if AMOUNT_TLV_TYPE not in fields or CLTV_TLV_TYPE not in fields:
        return "the payload names no amount or no expiry"
    if int.from_bytes(fields[AMOUNT_TLV_TYPE], "big") > htlc.amount_msat:
        return "it is less than its payload says"
    if htlc.cltv_expiry is not None and int.from_bytes(fields[CLTV_TLV_TYPE], "big") > htlc.cltv_expiry:
        return "it expires earlier than its payload says"
    if htlc.blocks_left is not None and htlc.blocks_left < MIN_FINAL_CLTV:
        return f"it expires in {htlc.blocks_left} blocks, and {MIN_FINAL_CLTV} must be left"
    if PAYMENT_METADATA_TLV_TYPE in fields:
        return "it carries payment_metadata"
    if any(kind in fields for kind in BLINDED_TLV_TYPES):
        return "it came on a blinded path"
    return ""


def _total_msat(fields: dict[int, bytes], amount_msat: int) -> int:
    """What the whole payment is to be: ``payment_data.total_msat``, or the htlc itself where there is none."""
    data = fields.get(PAYMENT_DATA_TLV_TYPE)
    return amount_msat if data is None else int.from_bytes(data[32:], "big")
