"""The words for what a session does, why it ended and what became of unused credit. All values are stable text: they
stand in ledgers, statements and receipts."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a session stands. The relay is closed exactly in DELIVERING."""

    OPEN = "open"  # waiting for the first credit
    DELIVERING = "delivering"  # relay closed
    PAUSED = "paused"  # credit used up, relay open, waiting for the next payment
    SETTLING = "settling"  # relay open for good; last payments and the last energy are counted, a refund is under way
    CLOSED = "closed"  # final; only an owed refund may still be sent

    @property
    def is_live(self) -> bool:
        """OPEN, DELIVERING or PAUSED: energy may (again) flow."""
        return self in (State.OPEN, State.DELIVERING, State.PAUSED)


class Method(StrEnum):
    """How a session is paid; nothing in this package depends on it."""

    KEYSEND = "keysend"
    ONCHAIN = "onchain"


class RefundStatus(StrEnum):
    """What became of the credit that was left at the end."""

    NONE = "none"  # the session is not closed yet, or no credit was left
    SENT = "sent"  # sent and arrived
    OWED = "owed"  # could not be sent yet; tried again
    KEPT = "kept"  # below min_refund_msat, what was lost on the chain taken off, or its fee would exceed it


class StopReason(StrEnum):
    """Why a session ended: set when it enters SETTLING and never changed."""

    CABLE_CLOSED = "cable_closed"  # the cable said that it is done
    CABLE_LOST = "cable_lost"  # the cable's stream was cut and did not come back within cable_lost_s
    PAUSE_TIMEOUT = "pause_timeout"  # no sufficient payment within pause_max_s after the credit was used up
    NOT_PAID = "not_paid"  # no sufficient first payment within open_timeout_s
    OPERATOR_STOPPED = "operator_stopped"  # the socket's operator ended it
    OUTLET_TAKEN = "outlet_taken"  # another cable's first payment took the outlet, this one's had not come
    CROWDED_OUT = "crowded_out"  # it had paid nothing, and too many such sessions were open
    OVER_POWER = "over_power"  # the load took more than 5 % above the outlet's rated power
    METER_BUS_ERROR = "meter_bus_error"  # the meter does not answer, or no meter value came in time
    METER_WRONG_CHIP = "meter_wrong_chip"  # another chip answers at the meter's address
    METER_SATURATED = "meter_saturated"  # the meter is at the end of its range: the true value may be larger
    METER_FROZEN = "meter_frozen"  # the meter's values stand still although they cannot
    METER_BACKWARDS = "meter_backwards"  # cumulative energy became smaller
    METER_RESET = "meter_reset"  # the meter lost its configuration or its count while in use
    BACKFLOW = "backflow"  # current went on flowing from the load into the socket
    NO_VOLTAGE = "no_voltage"  # the relay is held, but the meter sees no supply voltage
    RELAY_FAULT = "relay_fault"  # the relay cannot be switched, or power flows although it is open
    GUARD_LOST = "guard_lost"  # the process that holds the relays cannot be reached
    DOUBLE_SPENT = "double_spent"  # what the cable paid with was seen spent elsewhere
    INPUT_GONE = "input_gone"  # what the cable paid with is not there any more, and nothing is seen to spend it
    OLDER_VERSION = "older_version"  # the cable broadcast a version that pays less than the newest one
    PAID_EARLY = "paid_early"  # the cable broadcast the newest version before the end: it can pay no more
    EXPOSURE_CAP = "exposure_cap"  # no more is credited before a confirmation, and the credit is used up
    FEERATE_LOW = "feerate_low"  # the mempool is about to ask for more than the payment's fee rate
    PAYMENT_AGED = "payment_aged"  # the payment was kept back for as long as the socket allows
    LEDGER_RESTORED = "ledger_restored"  # the socket runs on an older copy of its ledger: the account is not complete
    OUTLET_REMOVED = "outlet_removed"  # after a restart the configuration no longer has the session's outlet
    INTERNAL_ERROR = "internal_error"  # the socket's own software failed; the log says how


DISPLACEMENTS = frozenset({StopReason.OUTLET_TAKEN, StopReason.CROWDED_OUT})
"""The reasons that a Displaced event may carry."""

FAULTS = frozenset(
    {
        StopReason.OVER_POWER,
        StopReason.METER_BUS_ERROR,
        StopReason.METER_WRONG_CHIP,
        StopReason.METER_SATURATED,
        StopReason.METER_FROZEN,
        StopReason.METER_BACKWARDS,
        StopReason.METER_RESET,
        StopReason.BACKFLOW,
        StopReason.NO_VOLTAGE,
        StopReason.RELAY_FAULT,
        StopReason.GUARD_LOST,
        StopReason.DOUBLE_SPENT,
        StopReason.INPUT_GONE,
        StopReason.OLDER_VERSION,
        StopReason.PAID_EARLY,
        StopReason.EXPOSURE_CAP,
        StopReason.FEERATE_LOW,
        StopReason.PAYMENT_AGED,
        StopReason.LEDGER_RESTORED,
        StopReason.OUTLET_REMOVED,
        StopReason.INTERNAL_ERROR,
    }
)
"""The reasons that a DeliveryFault event may carry; the others have an event or a timeout of their own."""
