"""Whether the final version that a socket asks for pays what is owed, and no more. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.messages import FinalDue
from wattline.payment.aggregate import final_value_sat


@dataclass(frozen=True, slots=True)
class FinalKnown:
    """What the cable knows itself."""

    is_trusted: bool
    """The socket's account was true so far."""
    floor_sat: int
    handed_over_sat: int
    """The largest value that the socket may hold."""
    keysend_msat: int
    """Surely arrived over Lightning."""
    most_charge_msat: int
    """The highest charge that an honest meter can have come to."""


def refusal_of(due: FinalDue, known: FinalKnown) -> str | None:
    """Why such a version is not signed, in one line; None when it is."""
    if not known.is_trusted:
        return "the socket's account was wrong before"
    if due.charged_msat > known.most_charge_msat:
        return (
            f"the socket charges {due.charged_msat} msat; by the cable's own meter and the tolerance it can be "
            f"{known.most_charge_msat} msat at the most"
        )
    if due.keysend_msat < known.keysend_msat:
        return f"the socket counts {due.keysend_msat} msat paid by keysend; {known.keysend_msat} msat have arrived"
    value_sat = final_value_sat(due.charged_msat, due.keysend_msat, known.floor_sat)
    if due.value_sat != value_sat:
        return (
            f"the socket wants {due.value_sat} sat for a charge of {due.charged_msat} msat less {due.keysend_msat} "
            f"msat paid by keysend; that makes {value_sat} sat"
        )
    if not 0 < due.value_sat < known.handed_over_sat:
        return f"the socket wants {due.value_sat} sat in place of {known.handed_over_sat} sat: that is not less"
    return None
