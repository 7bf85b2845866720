"""How much may be paid on-chain: the caps of both sides, in whole satoshi. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.cable.account import Account
from wattline.cable.budget import Bound, Room
from wattline.cable.onchain_event import OnchainTerms
from wattline.cable.rhythm import Pace
from wattline.cable.settings import OnchainSettings
from wattline.payment.aggregate import MSAT_PER_SAT


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that is to be signed, by what it pays in all: whatever the socket says of earlier ones does
    not change that."""

    value_sat: int
    most_sat: int
    """The largest value that the cable's own caps allow any version now; whoever signs holds the value against it."""


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

    def ceiling(self, account: Account, charged_low_msat: int, day_msat: int) -> Room:
        """The largest value of any version now (msat, 0 when none may be signed), and the cap that says so. Nothing
        that the socket says of versions is in it: they take each other's place, so a larger one needs no more room by
        what the smaller ones paid.

        ``charged_low_msat`` is the charge as far as the cable believes it, ``day_msat`` what left or may leave the
        wallet within a day."""
        owed_msat = max(0, charged_low_msat - account.keysend_handed_over_msat)
        # What was sent has the miner's fee in it; routing fees there are none.
        besides_msat = account.sent_msat - account.onchain_exposed_msat
        # Of a session older than a day, what was paid before counts no more.
        day_besides_msat = max(day_msat - account.onchain_exposed_msat, -account.onchain_handed_over_msat)
        ceilings = (
            Room(owed_msat + self.max_prepaid_msat, Bound.PREPAID),
            Room(self.max_session_msat - besides_msat, Bound.SESSION),
            Room(self.max_day_msat - day_besides_msat, Bound.DAY),
        )
        lowest = min(ceilings, key=lambda item: item.amount_msat)
        return Room(max(0, lowest.amount_msat), lowest.bound)

    def room(self, account: Account, charged_low_msat: int, day_msat: int) -> Room:
        """By how much the value may grow now, by the same figures."""
        handed_over_msat = account.onchain_handed_over_msat
        ceiling = self.ceiling(account, charged_low_msat, day_msat)
        by_cable = Room(max(0, ceiling.amount_msat - handed_over_msat), ceiling.bound)
        # The socket's cap is on all unused credit, whatever it was paid by.
        unused_msat = account.handed_over_msat - charged_low_msat
        by_socket = Room(max(0, self.terms.credit_cap_sat * MSAT_PER_SAT - unused_msat), Bound.PREPAID)
        by_value = Room(max(0, self.terms.most_sat * MSAT_PER_SAT - handed_over_msat), Bound.EXPOSURE)
        return min(by_cable, by_socket, by_value, key=lambda item: item.amount_msat)

    def version(self, account: Account, amount_msat: int, charged_low_msat: int, day_msat: int) -> WantedVersion:
        """The one that pays ``amount_msat`` more than what is handed over; by the same figures."""
        most_sat = self.ceiling(account, charged_low_msat, day_msat).amount_msat // MSAT_PER_SAT
        return WantedVersion((account.onchain_handed_over_msat + amount_msat) // MSAT_PER_SAT, most_sat)
