"""The state machine of an aggregate: which versions it takes, which one is chosen, and what becomes of it. Pure.

Each rule stands here once: the number follows, the value grows, the inputs stay, the first choice stands. Whoever asks
before the chain is looked at (``check_*``) asks the same rules as :func:`step`, which has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.core.aggregate import Aggregate, AggregateInput, AggregateStatus, Version, VersionRefused
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.errors import StopError


@dataclass(frozen=True, slots=True)
class Held:
    """An aggregate, and what can still be broadcast of it."""

    aggregate: Aggregate
    versions: tuple[Version, ...] = ()
    """The newest ones, the highest number first: the last two that are whole, and the final one."""

    @property
    def newest(self) -> Version | None:
        """The largest version that is not final: its value is what the session is credited on-chain."""
        return next((version for version in self.versions if not version.is_final), None)

    @property
    def value_sat(self) -> int:
        """Of the newest version; 0 before the first."""
        return self.newest.value_sat if self.newest else 0

    @property
    def final(self) -> Version | None:
        """The version that pays exactly what is owed."""
        return next((version for version in self.versions if version.is_final), None)


@dataclass(frozen=True, slots=True)
class VersionStored:
    """A version that was checked is kept: from then on it counts as credit, unless it is final."""

    version: Version
    inputs: tuple[AggregateInput, ...] = ()
    """Brought by the first version; later ones may leave them out."""
    first_height: int = 0
    """The chain's tip at the first version."""


@dataclass(frozen=True, slots=True)
class VersionDropped:
    """The version stored last could not be credited after all."""

    number: int


@dataclass(frozen=True, slots=True)
class VersionChosen:
    """It is to be broadcast."""

    number: int
    reason: str
    at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Voided:
    """Nothing is owed, and nothing is broadcast."""

    reason: str
    at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class InputsMined:
    """What spends the inputs is in a block; replaces what an earlier block said."""

    txid: str
    value_sat: int
    """What it pays to the session's address; 0 when it is none of ours."""
    height: int
    block: str


@dataclass(frozen=True, slots=True)
class InputsUnmined:
    """A reorg took it out of the chain."""


@dataclass(frozen=True, slots=True)
class CreditLost:
    """So much of what was credited and not given back is not in what was mined; replaces what was said before."""

    lost_msat: int


@dataclass(frozen=True, slots=True)
class ChildSent:
    """A transaction of ours pays for the way of the chosen version; replaces an earlier one."""

    txid: str


@dataclass(frozen=True, slots=True)
class AggregateClosed:
    """What was mined is deep enough."""

    status: AggregateStatus
    at: int
    """Unix seconds."""
    is_resolved: bool = False
    """A person says how it ended."""


AggregateEvent = (
    VersionStored
    | VersionDropped
    | VersionChosen
    | Voided
    | InputsMined
    | InputsUnmined
    | CreditLost
    | ChildSent
    | AggregateClosed
)


def check_number(held: Held, number: int) -> None:
    """The number follows that of the newest version. Raises VersionRefused ``bad_version``."""
    following = (held.newest.number if held.newest else 0) + 1
    if number != following:
        raise VersionRefused("bad_version", f"the next version has number {following}")


def check_value(held: Held, value_sat: int, *, is_final: bool) -> None:
    """Each version pays more than the one before, and the final one less than the newest. Raises VersionRefused
    ``value_not_larger``, ``wrong_output``."""
    before_sat = held.value_sat
    if is_final and value_sat >= before_sat:
        raise VersionRefused("wrong_output", f"a final version pays less than the {before_sat} sat before")
    if not is_final and value_sat <= before_sat:
        raise VersionRefused("value_not_larger", f"{value_sat} sat are not more than the {before_sat} sat before")


def check_inputs(held: Held, outpoints: frozenset[Outpoint]) -> None:
    """Every version spends exactly the inputs of the first one. Raises VersionRefused ``other_inputs``."""
    first = frozenset(item.outpoint for item in held.aggregate.inputs)
    if held.newest is not None and outpoints != first:
        raise VersionRefused("other_inputs", "every version must spend exactly the inputs of the first one")


def step(held: Held, event: AggregateEvent) -> Held:
    """What becomes of an aggregate. OPEN takes versions until one is chosen (SENT), whose inputs are followed until it
    is SETTLED or LOST, or until nothing is owed (VOID); nothing leads back, but for a reorg, which unmines.

    Told again, an event changes nothing: the first choice stands, and a version that is held is not stored twice.

    Raises VersionRefused for a version that cannot be taken, StopError ``version_invalid`` for one that is not whole,
    ``version_in_use`` for one that cannot be dropped, ``version_stale`` for one that cannot be chosen,
    ``aggregate_not_sent``, ``aggregate_not_mined``, ``aggregate_invalid``.
    """
    match event:
        case VersionStored():
            return _stored(held, event)
        case VersionDropped(number):
            return _dropped(held, number)
        case VersionChosen() | Voided():
            return _decided(held, event)
        case _:
            return replace(held, aggregate=_followed(held.aggregate, event))


def _stored(held: Held, event: VersionStored) -> Held:
    version = event.version
    if any(version.is_same(each) for each in held.versions):
        return held
    if not version.is_whole:
        raise StopError("version_invalid", f"version {version.number} comes without its transaction")
    if held.aggregate.status is not AggregateStatus.OPEN:
        raise VersionRefused("session_closed", "a version was chosen to be broadcast already")
    if held.final is not None:
        raise VersionRefused("session_closed", f"version {held.final.number} is the final one")
    check_number(held, version.number)
    check_value(held, version.value_sat, is_final=version.is_final)
    aggregate = held.aggregate
    if held.newest is None:
        if not event.inputs or len({item.outpoint for item in event.inputs}) != len(event.inputs):
            raise StopError("version_invalid", "the first version comes with its inputs, each of them once")
        aggregate = replace(aggregate, inputs=tuple(sorted(event.inputs)), first_height=event.first_height)
    elif event.inputs:
        check_inputs(held, frozenset(item.outpoint for item in event.inputs))
    # Of larger ones the newest two are whole: the one before is there for a drop.
    kept = held.versions if version.is_final else held.versions[:1]
    return Held(aggregate, (version, *kept))


def _dropped(held: Held, number: int) -> Held:
    last, *before = held.versions or (None,)
    is_whole_before = not before or (before[0] is not None and before[0].is_whole)
    is_last = last is not None and last.number == number
    if held.aggregate.status is not AggregateStatus.OPEN or not is_last or not is_whole_before:
        raise StopError(
            "version_in_use", f"version {number} of session {held.aggregate.session_id} cannot be dropped any more"
        )
    if not before:
        return Held(replace(held.aggregate, inputs=(), first_height=0))
    return replace(held, versions=held.versions[1:])


def _decided(held: Held, event: VersionChosen | Voided) -> Held:
    aggregate = held.aggregate
    if aggregate.status is not AggregateStatus.OPEN:
        return held
    if isinstance(event, Voided):
        void = replace(
            aggregate, status=AggregateStatus.VOID, choice_reason=event.reason, chosen_at=event.at, closed_at=event.at
        )
        return Held(void, (held.newest,) if held.newest is not None else ())
    if event.number not in {version.number for version in (held.newest, held.final) if version is not None}:
        raise StopError(
            "version_stale",
            f"version {event.number} of session {aggregate.session_id} is neither its newest nor its final one",
        )
    sent = replace(
        aggregate,
        status=AggregateStatus.SENT,
        chosen_number=event.number,
        choice_reason=event.reason,
        chosen_at=event.at,
    )
    return replace(held, aggregate=sent)


def _followed(
    aggregate: Aggregate, event: InputsMined | InputsUnmined | CreditLost | ChildSent | AggregateClosed
) -> Aggregate:
    if isinstance(event, AggregateClosed):
        if event.status not in (AggregateStatus.SETTLED, AggregateStatus.LOST):
            raise StopError("aggregate_invalid", f"an aggregate is closed as settled or lost, not {event.status}")
        if aggregate.status is event.status:
            return aggregate
    if aggregate.status is not AggregateStatus.SENT:
        raise StopError(
            "aggregate_not_sent", f"the aggregate of session {aggregate.session_id} is {aggregate.status}, not sent"
        )
    match event:
        case InputsMined(txid, value_sat, height, block):
            # What was lost was worked out from what an earlier block said.
            is_same = aggregate.mined_txid is not None and aggregate.mined_value_sat == value_sat
            return replace(
                aggregate,
                mined_txid=txid,
                mined_value_sat=value_sat,
                mined_height=height,
                mined_block=block,
                lost_msat=aggregate.lost_msat if is_same else 0,
            )
        case InputsUnmined():
            return replace(
                aggregate, mined_txid=None, mined_value_sat=0, mined_height=None, mined_block=None, lost_msat=0
            )
        case CreditLost(lost_msat):
            return replace(aggregate, lost_msat=lost_msat)
        case ChildSent(txid):
            return replace(aggregate, child_txid=txid)
        case AggregateClosed(status, at, is_resolved):
            is_hopeless = status is AggregateStatus.LOST and aggregate.lost_msat > 0
            if aggregate.mined_txid is None and not is_hopeless and not is_resolved:
                raise StopError(
                    "aggregate_not_mined", f"nothing of the aggregate of session {aggregate.session_id} was mined"
                )
            return replace(aggregate, status=status, closed_at=at)
