"""A session from a cable's open to the final receipt: pure values and one pure function, :func:`step`.

Nothing here does I/O, reads a clock or knows how a payment travels. The shell feeds events with its own monotonic
time and carries out the effects, in their order.
"""

from wattline.session.account import Account
from wattline.session.effect import Effect, HoldRelay, OpenRelay, Refund, SendStatement, Settle, WriteReceipt
from wattline.session.error import CreditTooLateError, RefundNotDueError, RefundTooLargeError
from wattline.session.event import (
    BooksClosed,
    CableClosed,
    CableLost,
    CableSeen,
    CreditArrived,
    CreditChecked,
    CreditReturned,
    Displaced,
    Event,
    Fault,
    MeterValue,
    OperatorStopped,
    RefundKept,
    RefundOwed,
    RefundSent,
    Tick,
)
from wattline.session.identity import decode_session_id, encode_session_id
from wattline.session.machine import restored, step
from wattline.session.occupancy import Occupancy, OutletTakenError, needs_outlet
from wattline.session.session import Session, opened
from wattline.session.state import Method, RefundStatus, State, StopReason
from wattline.session.terms import MAX_LEASE_MS, Terms

__all__ = [
    "MAX_LEASE_MS",
    "Account",
    "BooksClosed",
    "CableClosed",
    "CableLost",
    "CableSeen",
    "CreditArrived",
    "CreditChecked",
    "CreditReturned",
    "CreditTooLateError",
    "Displaced",
    "Effect",
    "Event",
    "Fault",
    "HoldRelay",
    "MeterValue",
    "Method",
    "Occupancy",
    "OpenRelay",
    "OperatorStopped",
    "OutletTakenError",
    "Refund",
    "RefundKept",
    "RefundNotDueError",
    "RefundOwed",
    "RefundSent",
    "RefundStatus",
    "RefundTooLargeError",
    "SendStatement",
    "Session",
    "Settle",
    "State",
    "StopReason",
    "Terms",
    "Tick",
    "WriteReceipt",
    "decode_session_id",
    "encode_session_id",
    "needs_outlet",
    "opened",
    "restored",
    "step",
]
