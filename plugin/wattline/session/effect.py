"""What the shell has to do after a step, in the order given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HoldRelay:
    """Keep the relay closed for ``lease_ms`` from the ``now_ms`` of the step, no longer unless told again. Carry it out
    at once: what it is late delivers unpaid energy."""

    lease_ms: int
    """1 to MAX_LEASE_MS; never longer than the credit lasts at rated power."""


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Open the relay now. Also sent when it should be open already."""


@dataclass(frozen=True, slots=True)
class SendStatement:
    """Tell the cable now, beside the shell's own periodic statements."""


@dataclass(frozen=True, slots=True)
class Settle:
    """SETTLING began: wait until the relay is confirmed open and nothing is in flight, read the journal to its end,
    take a last meter value, then say BooksClosed."""


@dataclass(frozen=True, slots=True)
class Refund:
    """Send unused credit back, then say RefundSent, RefundOwed or RefundKept (it is not worth it); before that, say
    CreditReturned for what need never be taken. May come again for the same refund after
    a restart: the sender's durable intents see to it that it is paid once."""

    budget_msat: int
    """Amount and routing fee together must not exceed this."""


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """The session is CLOSED, or its refund has changed since: write, sign and send a (new) receipt."""


Effect = HoldRelay | OpenRelay | SendStatement | Settle | Refund | WriteReceipt
