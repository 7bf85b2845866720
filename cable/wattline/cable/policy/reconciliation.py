"""Comparing what the socket claims with what the cable knows: energy, time, charge and credit.

Pure. Every breach ends the session; its code is the stop reason that the socket is told.

How late a socket's word may be: the one source for whatever waits for it or judges by it.

A statement stands in one stream behind all that was said before it, so a network that stalls makes it late without
losing it. The cable bears silence for `Lateness.silence_ms` and then takes the stream up anew, and what was said into
the old one is never heard. So nothing that is heard is older, and the cable's own figures are looked at as far back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wattline.cable.policy.budget import PPM
from wattline.core.tariff import Tariff, cost_msat

UWH_PER_KWH = 10**9
TIME_SLACK_MS = 2_000
CREDIT_GRACE_MS = 15_000
"""A payment that completed this long before a claim was made must be in it; the socket books within a few seconds."""


class Breach(StrEnum):
    """In what the socket's account is wrong."""

    ENERGY = "energy_mismatch"
    TIME = "time_mismatch"
    CHARGE = "charge_mismatch"
    CREDIT = "credit_mismatch"
    NO_VOLTAGE = "no_voltage"
    NO_CURRENT = "no_current"

    @property
    def is_of_the_account(self) -> bool:
        """The account itself is wrong. Without voltage or current it may be right, and the fault in a fuse."""
        return self not in (Breach.NO_VOLTAGE, Breach.NO_CURRENT)


@dataclass(frozen=True, slots=True)
class Mismatch:
    breach: Breach
    message: str
    """One line with both figures."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two honest meters may be apart."""

    ratio_ppm: int
    absolute_uwh: int

    def allowed_uwh(self, energy_uwh: int) -> int:
        """At an own energy of ``energy_uwh``, rounded down."""
        return self.absolute_uwh + self.drift_uwh(energy_uwh)

    def drift_uwh(self, energy_uwh: int) -> int:
        """The part of it that grows with the energy."""
        return energy_uwh * self.ratio_ppm // PPM

    def believed_uwh(self, energy_uwh: int, cap_msat: int, tariff: Tariff) -> int:
        """The most that a socket's meter may have counted, as far as the caps believe it. A cap of ``cap_msat`` on what
        is prepaid bears up to a half of itself, so that as much is left to pay with; only what the absolute part comes
        to beyond that makes room, and once, however many claims and restarts there are."""
        price_msat = tariff.energy_msat_per_kwh
        borne_uwh = cap_msat // 2 * UWH_PER_KWH // price_msat if price_msat else self.absolute_uwh
        return energy_uwh + self.drift_uwh(energy_uwh) + max(0, self.absolute_uwh - borne_uwh)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a statement or a receipt says, cumulative since the open."""

    energy_uwh: int
    delivered_ms: int
    credited_msat: int
    charged_msat: int
    refunded_msat: int
    balance_msat: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the cable knows itself. The claim was made somewhere between the two points in time, so each is a range."""

    least_energy_uwh: int
    """Own energy at the earliest moment the claim may stand for."""
    most_energy_uwh: int
    """Own energy when the claim arrived."""
    elapsed_ms: int
    """Since the session was opened: delivery cannot have lasted longer."""
    surely_credited_msat: int
    """Completed more than CREDIT_GRACE_MS before the claim can have been made."""
    most_delivered_ms: int | None = None
    """Longer there cannot have been voltage, by the own meter; None when that is not known."""


def compare(claim: Claim, known: Known, tariff: Tariff, tolerance: Tolerance) -> Mismatch | None:
    """The first thing that is wrong with a claim, or None."""
    return (
        compare_energy(claim, known, tolerance)
        or _compare_time(claim, known)
        or _compare_voltage(claim, known)
        or _compare_charge(claim, tariff)
        or _compare_credit(claim, known)
    )


def compare_energy(claim: Claim, known: Known, tolerance: Tolerance) -> Mismatch | None:
    """The socket's energy against the cable's own, in both directions: either way one of the two meters is wrong."""
    over = claim.energy_uwh - known.most_energy_uwh
    under = known.least_energy_uwh - claim.energy_uwh
    if over > tolerance.allowed_uwh(known.most_energy_uwh) or under > tolerance.allowed_uwh(known.least_energy_uwh):
        own = known.most_energy_uwh if over > 0 else known.least_energy_uwh
        return Mismatch(
            Breach.ENERGY,
            f"the socket counts {claim.energy_uwh} uWh, the cable's own meter {own} uWh; "
            f"allowed difference: {tolerance.allowed_uwh(own)} uWh",
        )
    return None


def _compare_time(claim: Claim, known: Known) -> Mismatch | None:
    most = known.elapsed_ms + known.elapsed_ms * 2 // 100 + TIME_SLACK_MS
    if claim.delivered_ms > most:
        return Mismatch(
            Breach.TIME,
            f"the socket counts {claim.delivered_ms} ms of delivery, but the session is {known.elapsed_ms} ms old",
        )
    return None


def _compare_voltage(claim: Claim, known: Known) -> Mismatch | None:
    most_ms = known.most_delivered_ms
    if most_ms is not None and claim.delivered_ms > most_ms:
        return Mismatch(
            Breach.NO_VOLTAGE,
            f"the socket counts {claim.delivered_ms} ms of delivery; by the own meter there was voltage for at most"
            f" {most_ms} ms",
        )
    return None


def _compare_charge(claim: Claim, tariff: Tariff) -> Mismatch | None:
    most = cost_msat(tariff, claim.energy_uwh, claim.delivered_ms, True)
    if claim.charged_msat > most:
        return Mismatch(
            Breach.CHARGE,
            f"the socket charges {claim.charged_msat} msat; its own energy and time cost {most} msat by the tariff",
        )
    balance = claim.credited_msat - claim.charged_msat - claim.refunded_msat
    if claim.balance_msat != balance:
        return Mismatch(
            Breach.CHARGE, f"the socket's balance is {claim.balance_msat} msat; its own figures make {balance} msat"
        )
    return None


def _compare_credit(claim: Claim, known: Known) -> Mismatch | None:
    if claim.credited_msat < known.surely_credited_msat:
        return Mismatch(
            Breach.CREDIT,
            f"the socket credits {claim.credited_msat} msat; it has received {known.surely_credited_msat} msat",
        )
    return None


SILENT_INTERVALS = 5
SILENT_MS = 5_000
MOST_SILENT_MS = 150_000
"""Two and a half of the longest interval between two statements."""
LEAST_LOST_S, MOST_LOST_S = 5, 600
NOTICED_MS = 60_000
"""A socket may take so long to see that its cable is gone: it asks every 10 s, and nobody need answer for 5 s more."""
MAKING_MS = 3_000
"""A statement may be this old before it leaves the socket and after it has arrived: meter intervals, a busy machine."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """By the interval between two statements that a socket's offer names."""

    statement_interval_ms: int

    @property
    def silence_ms(self) -> int:
        """So long without a word while energy flows, and the stream is taken up anew."""
        return min(max(SILENT_MS, SILENT_INTERVALS * self.statement_interval_ms), MOST_SILENT_MS)

    @property
    def claim_age_ms(self) -> int:
        """What a statement says was true at most so long before it was read."""
        return self.silence_ms + MAKING_MS


def lost_s(cable_lost_s: int) -> int:
    """So long, as far as it is believed, a session outlives its connection where the socket's offer says
    ``cable_lost_s``: a cut stream is tried to be taken up again, and the cable, back after that, finds it over."""
    return min(max(LEAST_LOST_S, cable_lost_s), MOST_LOST_S)


def unheard_ms(cable_lost_s: int) -> int:
    """So long such a socket may deliver without a word of its cable."""
    return cable_lost_s * 1000 + NOTICED_MS


LONGEST_CLAIM_AGE_MS = MOST_SILENT_MS + MAKING_MS
