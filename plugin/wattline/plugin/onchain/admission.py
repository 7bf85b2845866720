"""What a version of an aggregate must satisfy before it is stored and credited: its shape, its inputs, and the room
that is left for it.

The sessions that pay on the chain, each with what two threads must not do at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, AggregateInput, VersionRefused
from wattline.core.aggregate_step import Held, check_inputs, check_value
from wattline.core.bitcoin.chain import Chain, ChainUnavailable, Outpoint, Tip, Tx, Unspent
from wattline.core.clock import DAY_S
from wattline.core.increments import BELOW_MIN_INCREMENT
from wattline.core.ledger.ledger import Ledger
from wattline.core.session.session import Session
from wattline.core.version_check import Proven, check_signatures, prove
from wattline.plugin.settings import OnchainSettings

MOST_GIVEN_BACK = 10
"""In a day one coin is taken for so many sessions that end without owing anything."""


class Admission:
    """Every method raises VersionRefused, ChainUnavailable and ChainRefused."""

    def __init__(self, settings: OnchainSettings, ledger: Ledger, chain: Chain) -> None:
        self._settings = settings
        self._ledger = ledger
        self._chain = chain

    def proven(self, held: Held, tx: Tx) -> Proven:
        """The shape of the version, what its signatures cover, and that its inputs are there for it."""
        aggregate = held.aggregate
        check_inputs(held, tx.outpoints)
        outpoints = sorted(tx.outpoints)
        if len(outpoints) > aggregate.rules.max_inputs:
            raise VersionRefused("other_inputs", f"at most {aggregate.rules.max_inputs} inputs are taken")
        unspent: dict[Outpoint, Unspent | None] = {
            outpoint: self._chain.unspent(outpoint, include_mempool=False) for outpoint in outpoints
        }
        proven = prove(tx, aggregate.script, aggregate.rules, unspent, self._chain.floor().feerate_per_kw)
        check_signatures(tx, unspent)
        spenders = self._chain.mempool_spenders(outpoints)
        if spenders:
            raise VersionRefused(
                "input_spent", f"input {next(iter(spenders))} is being spent by {next(iter(spenders.values()))}"
            )
        return proven

    def check_policy(self, tx: Tx) -> None:
        """The mempool would take it, signatures included."""
        verdict = self._chain.verdict(tx.raw)
        if verdict.is_unsigned:
            raise VersionRefused("not_signed", f"the mempool would not take it: {verdict.reason}")
        if not verdict.allowed:
            raise VersionRefused("policy", f"the mempool would not take it: {verdict.reason}")

    def tip_for(self, aggregate: Aggregate) -> Tip:
        """The newest block. A bitcoind that is behind (restarted after a crash, or just catching up) may take an input
        for unspent that it has shown us spent before."""
        tip = self._chain.tip()
        check_height(tip, [aggregate])
        return tip

    def first_inputs(self, proven: Proven) -> list[AggregateInput]:
        """The inputs of the first version, when nobody spends them elsewhere."""
        inputs = []
        for outpoint in sorted(proven.tx.outpoints):
            unspent = self._chain.unspent(outpoint, include_mempool=True)
            if unspent is None:
                raise VersionRefused("input_spent", f"input {outpoint} is being spent elsewhere")
            inputs.append(AggregateInput(outpoint, unspent.value_sat))
        return inputs

    def check_claims(self, session_id: str, inputs: Sequence[AggregateInput], now: int) -> None:
        """Nobody else has a claim to the inputs of a first version, and none came for nothing too often: what is
        written of such sessions stays, so they must cost their cable a coin. ``now``: Unix seconds."""
        for item in inputs:
            refused = self._ledger.refused_input(item.outpoint)
            if refused is not None:
                raise VersionRefused("input_refused", f"input {item.outpoint} was part of a fraud: {refused}")
            if self._ledger.input_in_use(item.outpoint, but_not=session_id) is not None:
                raise VersionRefused("input_refused", f"input {item.outpoint} pays another session already")
            if self._ledger.given_back(item.outpoint, now - DAY_S) >= MOST_GIVEN_BACK:
                raise VersionRefused(
                    "input_refused",
                    f"input {item.outpoint} paid {MOST_GIVEN_BACK} sessions of a day nothing; try later",
                )

    def check_room(self, session: Session, value_sat: int, held: Held, least_msat: int) -> None:
        """The version is larger than the newest by ``least_msat`` or more, and no cap is exceeded. The first version
        may be smaller, and so may a step that leaves nothing of a cap."""
        rules, before_sat = held.aggregate.rules, held.value_sat
        check_value(held, value_sat, is_final=False)
        if value_sat > rules.exposure_cap_sat:
            raise VersionRefused(
                "exposure_cap",
                f"{value_sat} sat are more than the {rules.exposure_cap_sat} sat taken without a confirmation",
            )
        increment_sat = value_sat - before_sat
        total_room_sat = self._settings.total_exposure_cap_sat - self._ledger.exposure_sat()
        if increment_sat > total_room_sat:
            raise VersionRefused("exposure_cap", "the socket waits for confirmations of other payments; try later")
        unused_msat = session.account.balance_msat
        if unused_msat + increment_sat * MSAT_PER_SAT > rules.credit_cap_sat * MSAT_PER_SAT:
            raise VersionRefused(
                "credit_cap",
                f"{increment_sat} sat and {unused_msat} msat unused exceed the cap of {rules.credit_cap_sat} sat",
            )
        room_sat = min(
            rules.exposure_cap_sat - before_sat, total_room_sat, rules.credit_cap_sat - -(-unused_msat // MSAT_PER_SAT)
        )
        if held.newest is not None and increment_sat * MSAT_PER_SAT < least_msat and increment_sat < room_sat:
            raise VersionRefused(
                BELOW_MIN_INCREMENT,
                f"{increment_sat} sat more are less than the {least_msat} msat that this session was asked for",
            )


def check_height(tip: Tip, aggregates: Sequence[Aggregate]) -> None:
    """Raises ChainUnavailable when bitcoind is behind the block at which it has shown us inputs of these."""
    known = max((each.first_height for each in aggregates), default=0)
    if tip.height < known:
        raise ChainUnavailable("bitcoind_unavailable", f"bitcoind is at block {tip.height}, and was at {known}")


@dataclass(slots=True)
class OpenAggregate:
    """One session. Its lock is taken before the ledger's, never within a unit of work."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    is_closed: bool = False
    """Nothing is credited any more."""
    final_sat: int = 0
    """What the final version has to pay; 0 while none is wanted."""
    final_came: threading.Event = field(default_factory=threading.Event)


class OpenAggregates:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, OpenAggregate] = {}

    def of(self, session_id: str) -> OpenAggregate:
        with self._lock:
            return self._open.setdefault(session_id, OpenAggregate())

    def forget(self, session_id: str) -> None:
        """The session is over."""
        with self._lock:
            self._open.pop(session_id, None)
