"""What the socket claims held against what the cable knows: energy, time, charge and credit, in a running session and
in its final receipt; and the cable's own energy, with a short memory so that it can be compared in time. Pure.

Every breach ends the session; its code is the stop reason that the socket is told.

How late a socket's word may be has one source here, for whatever waits for it or judges by it. A statement stands in
one stream behind all that was said before it, so a network that stalls makes it late without losing it. The cable bears
silence for `Lateness.silence_ms` and then takes the stream up anew, and what was said into the old one is never heard.
So nothing that is heard is older, and the cable's own figures are looked at as far back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from wattline.cable.policy.budget import PPM
from wattline.cable.policy.events import Claim, Receipt
from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.tariff import Tariff, cost_msat, left_ms, worth_msat

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


WAY_BACK_MSAT = 3_000
"""What was not used may stay with the socket where its way back would eat it up, or be spent on that way. So much is
believed in any case (the common base fee of 1 sat at three channels), else as much as WAY_BACK_TIMES the way there."""


WAY_BACK_TIMES = 3


@dataclass(frozen=True, slots=True)
class OnchainKnown:
    """What the cable knows of a session's aggregate."""

    floor_sat: int
    accepted_msat: int
    """The value of the newest version that the socket has credited."""
    signed_msat: int
    """The largest value of any version that was handed over."""
    txids: Mapping[int, str]
    """Those of the versions that this run has made, by value_sat."""
    is_final_taken: bool = False
    """The socket has said that it has the final version."""


def objections(
    receipt: Receipt,
    known: Known,
    tariff: Tariff,
    tolerance: Tolerance,
    settled_msat: int,
    min_refund_msat: int,
    way_msat: int,
    onchain: OnchainKnown | None = None,
) -> list[str]:
    """What in a receipt contradicts the cable's own account, a line each; nothing when it is true.

    ``settled_msat`` is what the cable knows to have arrived; here there is no grace, the account is final. Below
    ``min_refund_msat`` the socket keeps what was not used; ``way_msat`` is what the way of a payment to the socket has
    cost. ``onchain`` is None when nothing was handed over on-chain.

    One that was made from a restored ledger may lack what happened since the copy: energy, and versions that were
    accepted. It may not say more than any other.
    """
    lines = []
    if receipt.from_restored_ledger:
        lacks_msat = max(0, onchain.accepted_msat - receipt.onchain_credited_msat) if onchain is not None else 0
        settled_msat -= lacks_msat
        known = replace(
            known,
            least_energy_uwh=min(known.least_energy_uwh, receipt.energy_uwh),
            surely_credited_msat=max(0, known.surely_credited_msat - lacks_msat),
        )
    if receipt.tariff != tariff:
        lines.append(f"the receipt is by tariff {receipt.tariff.tariff_id}, the session by {tariff.tariff_id}")
    mismatch = compare(receipt.claim, known, tariff, tolerance)
    if mismatch is not None:
        lines.append(mismatch.message)
    if receipt.credited_msat < settled_msat:
        lines.append(f"the receipt credits {receipt.credited_msat} msat; {settled_msat} msat were paid")
    unused = receipt.credited_msat - receipt.charged_msat
    if receipt.refunded_msat + receipt.refund_fee_msat > max(0, unused):
        lines.append(
            f"the receipt refunds {receipt.refunded_msat} msat and {receipt.refund_fee_msat} msat of fee "
            f"out of {unused} msat of unused credit"
        )
    missing_msat = unused - receipt.refunded_msat
    if receipt.refund_status not in ("sent", "owed", "kept") and missing_msat > 0:
        lines.append(f"the receipt leaves {missing_msat} msat of unused credit without a word")
    believed_msat = max(WAY_BACK_MSAT, WAY_BACK_TIMES * way_msat)
    if receipt.refund_status == "kept":
        believed_msat = max(believed_msat, min_refund_msat)
    if receipt.refund_status in ("sent", "kept") and missing_msat >= believed_msat:
        lines.append(
            f"by the receipt {missing_msat} msat of {unused} msat of unused credit do not come back; it has to be less "
            f"than {believed_msat} msat"
        )
    return lines + _onchain_objections(receipt, onchain)


def _onchain_objections(receipt: Receipt, known: OnchainKnown | None) -> list[str]:
    credited_msat, value_sat = receipt.onchain_credited_msat, receipt.onchain_value_sat
    if known is None:
        if credited_msat or value_sat or receipt.returned_msat:
            return ["the receipt tells of an on-chain payment; none was made"]
        return []
    lines = []
    least_msat = 0 if receipt.from_restored_ledger else known.accepted_msat
    if not least_msat <= credited_msat <= known.signed_msat:
        lines.append(
            f"the receipt credits {credited_msat} msat on-chain; {known.accepted_msat} msat were accepted and "
            f"{known.signed_msat} msat signed"
        )
    owed_sat = final_value_sat(receipt.charged_msat, receipt.credited_msat - credited_msat, known.floor_sat)
    # Without a final version the newest is taken, and what that is too much goes back or is too little to.
    is_newest = value_sat * MSAT_PER_SAT == credited_msat and receipt.refund_status in ("owed", "sent", "kept")
    # What a restored ledger finds on the chain may be the final version, for a charge that it has lost.
    is_found = receipt.from_restored_ledger and value_sat in known.txids
    if value_sat > owed_sat and not is_found and (known.is_final_taken or not is_newest):
        lines.append(f"the receipt takes {value_sat} sat on-chain; {owed_sat} sat are owed")
    if receipt.returned_msat != credited_msat - value_sat * MSAT_PER_SAT:
        lines.append(
            f"the receipt gives {receipt.returned_msat} msat back; of {credited_msat} msat handed over on-chain it "
            f"takes {value_sat} sat"
        )
    txid = known.txids.get(value_sat, receipt.onchain_txid) if value_sat else ""
    if receipt.onchain_txid != txid or (value_sat and not txid):
        lines.append(
            f"the receipt names transaction {receipt.onchain_txid or '-'}; the version signed is {txid or '-'}"
        )
    return lines


OVERDRAFT_MS = 5_000
"""By so much, at the rated power, an honest socket may overdraw: a meter interval, or the lease of a remote relay."""


def longest_paid_ms(tariff: Tariff, tolerance: Tolerance, rated_power_mw: int, paid_msat: int, own_uwh: int) -> int:
    """Longer an honest socket cannot have delivered for ``paid_msat``, when the own meter has counted ``own_uwh``."""
    least_uwh = max(0, own_uwh - tolerance.allowed_uwh(own_uwh))
    return left_ms(tariff, paid_msat + worth_msat(tariff, rated_power_mw, OVERDRAFT_MS), least_uwh, 0, 0)


MEMORY_MS = LONGEST_CLAIM_AGE_MS + 10_000
"""Every claim can be compared with the moment that it stands for, and those wait until a reading is as new."""


@dataclass(frozen=True, slots=True)
class EnergyPoint:
    at_ms: int
    """Of a monotonic clock."""
    energy_uwh: int
    """Since the open of the session, never negative."""


class EnergyTrack:
    """Own readings turned into energy since the open.

    The chip counts on its own from wherever it stands. ``base_uwh`` is its count at the open; ``extra_uwh`` is energy
    that belongs to the session but is no longer in the chip (it lost its supply while the cable was down).
    """

    def __init__(self, base_uwh: int, extra_uwh: int = 0) -> None:
        self._base_uwh = base_uwh
        self._extra_uwh = extra_uwh
        self._points: deque[EnergyPoint] = deque()

    @property
    def energy_uwh(self) -> int:
        """At the newest reading; 0 before the first."""
        return self._points[-1].energy_uwh if self._points else 0

    @property
    def newest_ms(self) -> int | None:
        """When the newest reading was taken."""
        return self._points[-1].at_ms if self._points else None

    def add(self, at_ms: int, chip_energy_uwh: int) -> EnergyPoint:
        """Take a reading. Energy that flows back below the count at the open counts as none."""
        point = EnergyPoint(at_ms, max(0, chip_energy_uwh - self._base_uwh + self._extra_uwh))
        self._points.append(point)
        while len(self._points) > 2 and self._points[1].at_ms < at_ms - MEMORY_MS:
            self._points.popleft()
        return point

    def covers(self, at_ms: int) -> bool:
        """Whether a reading as new as ``at_ms`` is there."""
        newest = self.newest_ms
        return newest is not None and newest >= at_ms

    def at(self, at_ms: int) -> int:
        """Energy at a point in time, interpolated between readings; the nearest one's outside of what is remembered."""
        if not self._points:
            return 0
        later = self._points[-1]
        if at_ms >= later.at_ms:
            return later.energy_uwh
        for point in reversed(self._points):
            if point.at_ms <= at_ms:
                span = later.at_ms - point.at_ms
                if span == 0:
                    return point.energy_uwh
                return point.energy_uwh + (later.energy_uwh - point.energy_uwh) * (at_ms - point.at_ms) // span
            later = point
        return later.energy_uwh
