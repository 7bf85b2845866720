"""What was delivered by the own meter and the socket's word: what the caps believe of it, what an honest socket can
charge for it at the most, and what a claim is held against. Pure.

Only the own meter can refute that there is voltage while the socket delivers, and current while it counts. A socket
that cheats, a blown fuse behind its meter and a dead contact look alike: it says that it delivers, and nothing arrives.
What it can charge for that is bounded here, whatever it says:

- time: SLACK_MS over a whole run, SWITCH_MS for each time that the own voltage came up, and 2 % of all the time that
  there was voltage (`Known.most_delivered_ms`); where nobody looked, what was paid for comes instead of all that
  (:class:`Unseen`); the session ends with the first statement beyond that (``no_voltage``), and without waiting for one
  as soon as the own meter has been dark for SLACK_MS where the socket's last word is that it delivers, unless its words
  are late: then nothing is paid for the dark time, and the next one tells;
- energy: what the tolerance grants (``energy_mismatch``), or before that 1/50 of the rated power for as long as no
  current flows (``no_current``).

What can have been delivered while nobody looked (the cable was down, or its machine slept): a socket that keeps the
rules stops at the credit that it holds. So all that it has delivered by the time somebody looks again comes to no more
than was paid by then or was in doubt, energy and time together: that much the caps believe, and what is claimed beyond
it is untrue, as far as two honest meters and a relay's way can be apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from wattline.cable.policy.budget import PaymentAccount
from wattline.cable.policy.events import Claim, SocketState, Statement
from wattline.cable.policy.offer import SessionTerms
from wattline.cable.policy.reconciliation import (
    CREDIT_GRACE_MS,
    Breach,
    EnergyTrack,
    Known,
    Lateness,
    Mismatch,
    Tolerance,
    compare,
    longest_paid_ms,
)
from wattline.core.tariff import FOREVER_MS, Tariff, cost_msat, left_ms

MOST_CLAIMS = 200
"""Statements that wait for an own reading, of which there are ten a second."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """The newest time that nobody looked, and what is believed of it. Before any: nothing was delivered."""

    tariff: Tariff
    most_ms: int = 0
    """What would be believed by its end if all of it was delivery."""
    paid_msat: int = 0
    """The most that the socket can have got by its end, payments in doubt included."""
    own_uwh: int = 0
    """By the own meter at its end, with what two honest meters drift apart."""
    seen_ms: int = 0
    """What the own meter had seen by its end of this run; what it sees later comes on top."""
    underway: frozenset[int] = frozenset()
    """The payments over Lightning that were not resolved at its end."""

    def believed_ms(self, seen_ms: int) -> int:
        """The longest that delivery can have lasted, as far as the caps believe it, when the own meter has seen
        ``seen_ms`` in this run."""
        paid_for_ms = left_ms(self.tariff, self.paid_msat, self.own_uwh, 0, 0)
        return min(self.most_ms, paid_for_ms) + seen_ms - self.seen_ms

    def failed(self, sequence: int, amount_msat: int) -> Unseen:
        """A payment came back: nothing was delivered for it."""
        if sequence not in self.underway:
            return self
        return replace(self, paid_msat=self.paid_msat - amount_msat, underway=self.underway - {sequence})


class Charge:
    """Of one session, fed by its deciding thread."""

    def __init__(
        self,
        terms: SessionTerms,
        tolerance: Tolerance,
        account: PaymentAccount,
        track: EnergyTrack,
        min_voltage_mv: int,
        max_prepaid_msat: int,
        opened_ms: int,
    ) -> None:
        """Below ``min_voltage_mv`` on the own meter nothing is delivered. ``opened_ms`` is when the session was opened,
        on the monotonic clock of all other times here."""
        self.track = track
        self.max_prepaid_msat = max_prepaid_msat
        """The cap on what is prepaid, of which the tolerance may eat up a part only."""
        self.statement: Statement | None = None
        """The socket's newest."""
        self.told_ms = opened_ms
        """When it was heard."""
        self._terms = terms
        self._tolerance = tolerance
        self._account = account
        self._opened_ms = opened_ms
        self.lateness = Lateness(terms.statement_interval_ms)
        self._watch = DeliveryWatch(min_voltage_mv, terms.rated_power_mw, self.lateness)
        self._unseen = Unseen(terms.tariff)
        self._claims: deque[tuple[Statement, int]] = deque()
        """Not compared yet: no own reading is as new."""
        self._believed: Claim | None = None
        """The newest that was compared and found true."""

    # What happened. What is wrong with the socket's account is returned.

    def on_reading(self, at_ms: int, chip_energy_uwh: int, voltage_mv: int) -> list[Mismatch]:
        """The own meter was read."""
        before_ms = self.track.newest_ms
        self.track.add(at_ms, chip_energy_uwh)
        self._watch.on_reading(at_ms, voltage_mv)
        if before_ms is not None and at_ms - before_ms > UNSEEN_MS and self.statement is not None:
            believed_ms = self._unseen.believed_ms(self._watch.seen_ms)
            self._look_again(at_ms, believed_ms + at_ms - before_ms)
        return self._compare_claims()

    def on_statement(self, statement: Statement, at_ms: int) -> list[Mismatch]:
        """The socket has said something newer."""
        if self.statement is None and self._account.exposed_msat:
            self._look_again(at_ms, FOREVER_MS)  # what an earlier run has seen is among what was paid by then
        self.statement = statement
        self.told_ms = at_ms
        self._watch.hear(statement.claim, at_ms, is_delivering=statement.state is SocketState.DELIVERING)
        if len(self._claims) >= MOST_CLAIMS:
            self._claims.pop()  # the newest gives way to one that says all of it, the oldest is compared first
        self._claims.append((statement, at_ms))
        return self._compare_claims()

    def on_failed(self, sequence: int, amount_msat: int) -> None:
        """A payment came back."""
        self._unseen = self._unseen.failed(sequence, amount_msat)

    def dark(self, now_ms: int) -> Mismatch | None:
        """:meth:`wattline.cable.policy.delivery.DeliveryWatch.dark`."""
        return self._watch.dark(now_ms)

    def _look_again(self, at_ms: int, most_ms: int) -> None:
        """Nobody has looked just before; were all of it delivery, it would have lasted for ``most_ms`` by now."""
        terms, paid_msat, own_uwh = self._terms, self._account.exposed_msat, self.track.energy_uwh
        longest_ms = longest_paid_ms(terms.tariff, self._tolerance, terms.rated_power_mw, paid_msat, own_uwh)
        self._opened_ms = max(self._opened_ms, at_ms - longest_ms)
        self._unseen = Unseen(
            tariff=terms.tariff,
            most_ms=most_ms,
            paid_msat=paid_msat,
            own_uwh=self._believed_uwh,
            seen_ms=self._watch.seen_ms,
            underway=self._account.underway_by("keysend"),
        )

    def _compare_claims(self) -> list[Mismatch]:
        """Compare every claim as soon as an own reading as new as its arrival is there."""
        found = []
        while self._claims and self.track.covers(self._claims[0][1]):
            statement, at_ms = self._claims.popleft()
            claim, known = statement.claim, self.known_at(at_ms)
            mismatch = compare(claim, known, self._terms.tariff, self._tolerance) or self._watch.refuted(
                claim, at_ms, known.least_energy_uwh, known.most_energy_uwh
            )
            if mismatch is not None:
                found.append(mismatch)
            else:
                self._believed = claim
        return found

    # What it comes to.

    @property
    def low_msat(self) -> int:
        """What was delivered for the money, as far as the caps believe it: the charge of the newest claim that was held
        against an own reading, and no more than the own energy comes to with what two honest meters may be apart
        (:meth:`wattline.cable.policy.reconciliation.Tolerance.believed_uwh`). An honest socket's meter must not eat up
        the caps; a dishonest one, whatever it claims, gains that much and nothing else. The session fee counts once
        energy flows."""
        believed = self._believed
        if believed is None:
            return 0
        delivered_ms = min(believed.delivered_ms, max(0, self.told_ms - self._opened_ms))
        seen_ms = self._watch.most_delivered_ms()
        delivered_ms = delivered_ms if seen_ms is None else min(delivered_ms, seen_ms)
        delivered_ms = min(delivered_ms, self._unseen.believed_ms(self._watch.seen_ms))
        own = cost_msat(self._terms.tariff, self._believed_uwh, delivered_ms, self.track.energy_uwh > 0)
        return min(own, believed.charged_msat)

    @property
    def _believed_uwh(self) -> int:
        """The most that the socket's meter may have counted, as far as the caps believe it."""
        return self._tolerance.believed_uwh(self.track.energy_uwh, self.max_prepaid_msat, self._terms.tariff)

    def most_msat(self, now_ms: int) -> int:
        """The highest charge that an honest socket can have come to by now: the own energy and all that the tolerance
        grants to the socket's meter, and all the time that delivery can have lasted."""
        delivered_ms = self.most_delivered_ms(now_ms)
        if delivered_ms is None:
            return 0
        energy_uwh = self.track.energy_uwh + self._tolerance.allowed_uwh(self.track.energy_uwh)
        return cost_msat(self._terms.tariff, energy_uwh, delivered_ms, True)

    def most_delivered_ms(self, now_ms: int) -> int | None:
        """The longest that delivery can have lasted by now: by the socket's last word, by the age of the session, and
        by the own meter, each with the time since; None before the socket's first word."""
        seen_ms, newest_ms = self._watch.most_delivered_ms(), self.track.newest_ms
        if self.statement is None:
            return None
        told_ms = self.statement.delivered_ms + max(0, now_ms - self.told_ms)
        if seen_ms is not None and newest_ms is not None:
            told_ms = min(told_ms, seen_ms + max(0, now_ms - newest_ms))
        return min(told_ms, max(0, now_ms - self._opened_ms))

    def high_msat(self, now_ms: int) -> int:
        """The higher of both at this moment: what the credit is kept up against. Of the time since the socket's last
        word only that counts in which there was voltage."""
        if self.statement is None:
            return 0
        delivered_ms = self.statement.delivered_ms
        if self.statement.state is SocketState.DELIVERING:
            delivered_ms += max(0, min(now_ms - self.told_ms, self._watch.live_since_told_ms(now_ms)))
        own = cost_msat(self._terms.tariff, self.track.energy_uwh, delivered_ms, self.has_started)
        return max(own, self.statement.charged_msat)

    @property
    def has_started(self) -> bool:
        """Delivery has begun at least once."""
        statement = self.statement
        return statement is not None and (
            statement.state is SocketState.DELIVERING or statement.delivered_ms > 0 or statement.charged_msat > 0
        )

    def is_silent(self, now_ms: int) -> bool:
        """The socket has said nothing for longer than its stream may stall."""
        return now_ms - self.told_ms > self.lateness.silence_ms

    def known_at(self, at_ms: int) -> Known:
        """What the cable knows itself about a claim that arrived at ``at_ms``."""
        age_ms = self.lateness.claim_age_ms
        return Known(
            least_energy_uwh=self.track.at(at_ms - age_ms),
            most_energy_uwh=self.track.at(at_ms),
            elapsed_ms=max(0, at_ms - self._opened_ms),
            surely_credited_msat=self._account.settled_before(at_ms - age_ms - CREDIT_GRACE_MS),
            most_delivered_ms=self._watch.most_delivered_ms(),
        )


SLACK_MS = 3_000
"""A relay closes within 50 ms; a power supply that is switched with it may take two seconds to start."""
SWITCH_MS = 250
"""Between a socket that begins to count and the voltage, each time that the relay closes: a relay takes up to 50 ms, a
contactor 200. The own interval in which voltage shows counts as a whole, and the socket's intervals do not matter: a
meter that sees no voltage counts no time."""
LATE_MS = 1_000
"""A statement that comes so much later than its interval is late: a network stalls, and what is heard is old."""
CLOCK_DIVISOR = 50
IDLE_DIVISOR = 50
"""Less than 1/50 of the rated power may be the offset of the socket's meter."""
UNSEEN_MS = 2_000
"""Of what was between two own readings that are further apart, nothing is known: there are ten a second."""
LEAST_IDLE_MW = 5_000
"""The same where the rated power is small: 100 mA at 48 V, the offset of an INA219 over 1 milliohm."""
MW_MS_PER_UWH = 3_600


@dataclass(frozen=True, slots=True)
class _Point:
    """A claim from which on the socket's count is held against the own one."""

    at_ms: int
    claimed_uwh: int
    own_uwh: int
    """The own energy at the earliest moment that the claim may stand for."""


class DeliveryWatch:
    """Of one run, fed by its deciding thread. What an earlier run of the session left is not judged again: of it the
    socket's word is taken, as far as :func:`wattline.cable.policy.reconciliation.compare` grants it."""

    def __init__(self, min_voltage_mv: int, rated_power_mw: int, lateness: Lateness) -> None:
        """``min_voltage_mv``: below, there is no voltage. ``lateness``: how late the socket's words may be."""
        self._min_voltage_mv = min_voltage_mv
        self._idle_mw = max(LEAST_IDLE_MW, rated_power_mw // IDLE_DIVISOR)
        self._claim_age_ms = lateness.claim_age_ms
        self._due_ms = lateness.statement_interval_ms + LATE_MS
        """So long after a statement the next one is late."""
        self._told_ms: int | None = None
        self._late_ms: int | None = None
        """When the newest statement was heard, and the newest that was late."""
        self._live_told_ms = 0
        """For how long there had been voltage when it was heard."""
        self._newest: tuple[int, bool] | None = None
        """When the own meter was read last, and whether there was voltage."""
        self._live_ms = 0
        self._unseen_ms = 0
        """The part of it in which nobody looked."""
        self._switchings = 0
        self._dark_since_ms: int | None = None
        self._delivering_since_ms: int | None = None
        """When the first of an unbroken row of statements that say so was heard."""
        self._begun_ms: int | None = None
        """What the socket had counted at its first word."""
        self._point: _Point | None = None

    def on_reading(self, at_ms: int, voltage_mv: int) -> None:
        """Between two readings of which one shows voltage there was voltage, and there may have been where nobody
        looked for longer than UNSEEN_MS."""
        has_voltage = voltage_mv >= self._min_voltage_mv
        if self._newest is not None:
            before_ms, had_voltage = self._newest
            passed_ms = max(0, at_ms - before_ms)
            if passed_ms > UNSEEN_MS:
                self._unseen_ms += passed_ms
                self._dark_since_ms = self._delivering_since_ms = None
            if has_voltage or had_voltage or passed_ms > UNSEEN_MS:
                self._live_ms += passed_ms
            self._switchings += has_voltage and not had_voltage
        if has_voltage:
            self._dark_since_ms = None
        elif self._dark_since_ms is None:
            self._dark_since_ms = at_ms
        self._newest = (at_ms, has_voltage)

    def most_delivered_ms(self) -> int | None:
        """More time than this cannot have been delivered; None before the socket's first word."""
        if self._begun_ms is None:
            return None
        return self._begun_ms + self.seen_ms + self._unseen_ms + self._unseen_ms // CLOCK_DIVISOR

    @property
    def seen_ms(self) -> int:
        """What was delivered of it in this run while somebody looked."""
        live_ms = self._live_ms - self._unseen_ms
        return live_ms + SLACK_MS + SWITCH_MS * self._switchings + live_ms // CLOCK_DIVISOR

    def hear(self, claim: Claim, at_ms: int, *, is_delivering: bool) -> None:
        """A statement comes. The first one of the run is what later ones are held against."""
        if self._begun_ms is None:
            self._begun_ms = claim.delivered_ms
        if self._told_ms is not None and at_ms - self._told_ms > self._due_ms:
            self._late_ms = at_ms
        self._told_ms, self._live_told_ms = at_ms, self._live_by(at_ms)
        if not is_delivering:
            self._delivering_since_ms = None
        elif self._delivering_since_ms is None:
            self._delivering_since_ms = at_ms

    def live_since_told_ms(self, now_ms: int) -> int:
        """For how long there has been voltage since the newest statement."""
        return self._live_by(now_ms) - self._live_told_ms

    def dark(self, now_ms: int) -> Mismatch | None:
        """What the own meter says against the socket's last word, whenever the next one is due. Not where words are
        late: then the socket may have said long ago that it pauses."""
        is_late = self._told_ms is None or now_ms - self._told_ms > self._due_ms
        is_late = is_late or (self._late_ms is not None and now_ms - self._late_ms <= LATE_MS)
        return None if is_late else self._dark_for(now_ms, SLACK_MS)

    def refuted(self, claim: Claim, at_ms: int, own_before_uwh: int, own_now_uwh: int) -> Mismatch | None:
        """What the own meter says against a claim that arrived at ``at_ms``: the own energy was ``own_now_uwh`` then
        and ``own_before_uwh`` at the earliest moment that the claim may stand for."""
        # When this was said, both had lasted for SLACK_MS, however late it was heard.
        return self._dark_for(at_ms, self._claim_age_ms + SLACK_MS) or self._without_current(
            _Point(at_ms, claim.energy_uwh, own_before_uwh), own_now_uwh
        )

    def _live_by(self, now_ms: int) -> int:
        if self._newest is None or not self._newest[1]:
            return self._live_ms
        return self._live_ms + max(0, now_ms - self._newest[0])

    def _dark_for(self, now_ms: int, limit_ms: int) -> Mismatch | None:
        if self._dark_since_ms is None or self._delivering_since_ms is None:
            return None
        dark_ms = now_ms - max(self._dark_since_ms, self._delivering_since_ms)
        if dark_ms < limit_ms:
            return None
        return Mismatch(
            Breach.NO_VOLTAGE, f"the socket says that it delivers; the own meter sees no voltage for {dark_ms} ms"
        )

    def _without_current(self, now: _Point, own_now_uwh: int) -> Mismatch | None:
        """The socket's count grows, and the own one by not even half of it: measured from the last claim at which it
        was otherwise."""
        point = self._point
        if point is None or 2 * (own_now_uwh - point.own_uwh) >= now.claimed_uwh - point.claimed_uwh:
            self._point = now
            return None
        claimed_uwh, own_uwh = now.claimed_uwh - point.claimed_uwh, own_now_uwh - point.own_uwh
        lasted_ms = now.at_ms - point.at_ms + self._claim_age_ms
        if claimed_uwh <= self._idle_mw * lasted_ms // MW_MS_PER_UWH:
            return None
        return Mismatch(
            Breach.NO_CURRENT,
            f"the socket has counted {claimed_uwh} uWh more, the own meter {own_uwh} uWh: no current arrives",
        )
