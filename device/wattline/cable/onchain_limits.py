"""How much may be paid on-chain: the caps of both sides, in whole satoshi. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.account import Account
from wattline.cable.budget import Bound, Caps, Room, room
from wattline.cable.onchain_event import OnchainTerms
from wattline.cable.rhythm import Pace
from wattline.cable.settings import OnchainSettings
from wattline.payment.aggregate import MSAT_PER_SAT


@dataclass(frozen=True, slots=True)
class OnchainLimits:
    """Of one session. Together they hold what the socket could have, refused versions included, to what it has
    delivered for, the floor and max_prepaid_sat; what was prepaid over Lightning before is used up first, and has its
    own cap."""

    terms: OnchainTerms
    settings: OnchainSettings
    max_session_msat: int
    max_day_msat: int

    @property
    def max_prepaid_msat(self) -> int:
        """The floor, which the first version pays in advance, and max_prepaid_sat beside it."""
        return (self.terms.floor_sat + self.settings.max_prepaid_sat) * MSAT_PER_SAT

    def pace(self, account: Account) -> Pace:
        """The first version pays the floor at least."""
        return self.settings.pace(0 if account.onchain_settled_msat else self.terms.floor_sat)

    def room(self, account: Account, charged_low_msat: int, day_msat: int) -> Room:
        """By how much the value may grow now. ``charged_low_msat`` is the charge as far as the cable believes it,
        ``day_msat`` what left or may leave the wallet within a day."""
        # The miner's fee is in what was sent already, and routing fees there are none.
        caps = Caps(self.max_prepaid_msat, self.max_session_msat, self.max_day_msat, 0)
        by_cable = room(caps, account.onchain_spending(charged_low_msat, day_msat))
        # The socket's cap is on all unused credit, whatever it was paid by.
        unused_msat = account.handed_over_msat - charged_low_msat
        by_socket = Room(max(0, self.terms.credit_cap_sat * MSAT_PER_SAT - unused_msat), Bound.PREPAID)
        left_msat = self.terms.most_sat * MSAT_PER_SAT - account.onchain_settled_msat
        by_value = Room(max(0, left_msat - account.in_flight_by("onchain")[1]), Bound.EXPOSURE)
        return min(by_cable, by_socket, by_value, key=lambda item: item.amount_msat)
