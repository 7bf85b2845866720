"""Rows that the tests of the ledger are made of."""

from __future__ import annotations

import hashlib
from typing import Any

from wattline.core.ids import encode_session_id
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.ledger.payment import Booking, Kind
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.session.event import BooksClosed, CableClosed, CreditArrived, MeterValue, RefundOwed
from wattline.core.session.machine import step
from wattline.core.session.session import Session, Terms, opened
from wattline.core.session.state import Method
from wattline.core.tariff import Tariff

TERMS = Terms(
    tariff=Tariff.of(300_000, 1_000, 10),
    rated_power_mw=1_000_000,
    meter_interval_ms=100,
    pause_max_s=30,
    open_timeout_s=20,
    cable_lost_s=10,
    credit_cap_msat=100_000,
    min_refund_msat=1000,
)
NODE_ID = "02" + "ab" * 32


def session_id(number: int) -> str:
    return encode_session_id(number.to_bytes(16, "big"))


def new_session(number: int = 1) -> Session:
    return opened(session_id(number), "A1", Method.KEYSEND, TERMS, 0)


def record(number: int = 1, session: Session | None = None, **changes: Any) -> SessionRecord:
    values: dict[str, Any] = {
        "session": session or new_session(number),
        "token_sha256": f"{number:064x}",
        "cable_node_id": NODE_ID,
        "opened_at": 1000 + number,
    }
    return SessionRecord(**values | changes)


def owing_session(number: int = 1, credit_msat: int = 5000) -> Session:
    """CLOSED, and its refund could not be sent."""
    session = new_session(number)
    for event in (MeterValue(0, 0), CreditArrived(credit_msat), CableClosed(), BooksClosed(), RefundOwed()):
        session, _ = step(session, event, 0)
    return session


def payment_hash(number: int) -> str:
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()


def booking(number: int, session: int = 1, amount_msat: int = 100, kind: Kind = Kind.CREDIT) -> Booking:
    return Booking(
        payment_hash=payment_hash(number),
        kind=kind,
        session_id=session_id(session),
        sequence=number,
        amount_msat=amount_msat,
        pay_index=number,
        updated_index=2 * number,
        paid_at=5000 + number,
    )


def intent(number: int, sequence: int | None = None, **changes: Any) -> Intent:
    preimage = hashlib.sha256(b"preimage %d" % number).digest()
    values: dict[str, Any] = {
        "payment_hash": hashlib.sha256(preimage).hexdigest(),
        "preimage": preimage.hex(),
        "purpose": Purpose.INCREMENT,
        "session_id": session_id(1),
        "sequence": number if sequence is None else sequence,
        "destination": NODE_ID,
        "amount_msat": 1000,
        "maxfee_msat": 50,
        "record": f"wattline:1:{session_id(1)}:{number}",
        "label": "a label",
        "created_at": 100 + number,
    }
    return Intent(**values | changes)
