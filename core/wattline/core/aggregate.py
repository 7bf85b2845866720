"""The aggregate: one growing on-chain payment of a session, of which one version is broadcast.

Pure: its values, and what it comes to in the end. How it goes on is in :mod:`wattline.core.aggregate_step`, what a
version must look like in :mod:`wattline.core.version_check`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from wattline.core.bitcoin.chain import Outpoint
from wattline.core.checks import check_hex32, check_whole
from wattline.core.errors import StopError

MSAT_PER_SAT = 1000
SMALLEST_OUTPUT_SAT = 546
"""The smallest output that Core Lightning's wallet makes (addpsbtoutput refuses less), above the dust limit of every
standard output type (294 sat for P2WPKH, 330 sat for P2TR at bitcoind's dust relay fee)."""


class VersionRefused(StopError):
    """A version that is not credited; the codes are those of ``VersionRefused`` in charging.proto."""


@dataclass(frozen=True, slots=True)
class OnchainRules:
    """What a socket asks of an aggregate; a session keeps the rules that it was invited under. In satoshi."""

    floor_sat: int
    """The smallest value of any version."""
    credit_cap_sat: int
    """The most unused credit of one session."""
    exposure_cap_sat: int
    """The largest value of any version: all of it is unconfirmed until the end."""
    min_feerate_per_kw: int
    max_feerate_per_kw: int
    max_age_s: int
    input_confirmations: int
    max_inputs: int


_SCRIPT = re.compile(r"([0-9a-f]{2})+")


class AggregateStatus(StrEnum):
    """How far the on-chain payment of a session is."""

    OPEN = "open"  # takes versions
    SENT = "sent"  # a version was chosen to be broadcast, and its inputs are followed
    SETTLED = "settled"  # mined, and deep enough in the chain; final
    LOST = "lost"  # its inputs went elsewhere, deep enough in the chain; final
    VOID = "void"  # nothing was owed: never broadcast; final

    @property
    def is_live(self) -> bool:
        """OPEN or SENT: money may still come or go."""
        return self in (AggregateStatus.OPEN, AggregateStatus.SENT)


@dataclass(frozen=True, slots=True, order=True)
class AggregateInput:
    """An output that every version of an aggregate spends. Raises StopError ``aggregate_invalid``."""

    outpoint: Outpoint
    value_sat: int

    def __post_init__(self) -> None:
        check_whole("aggregate_invalid", "value_sat", self.value_sat, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One growing transaction that pays for one session. Raises StopError ``aggregate_invalid``."""

    session_id: str
    cable_node_id: str
    """Hex; empty when the cable named none."""
    address: str
    """The socket's, for this session alone."""
    script: str
    """The address's scriptPubKey, hex."""
    rules: OnchainRules
    """Those that the cable was told, whatever the socket's have become."""
    inputs: tuple[AggregateInput, ...] = ()
    """Of the first version and so of all, in the order of their outpoints; empty before the first."""
    status: AggregateStatus = AggregateStatus.OPEN
    invited_at: int
    """Unix seconds."""
    first_height: int = 0
    """The chain's tip when the first version came: nothing below it can spend the inputs."""
    chosen_number: int | None = None
    """Of the version to be broadcast: decided before it is sent, and never again."""
    choice_reason: str = ""
    """Why then, and why that one; empty while OPEN."""
    chosen_at: int | None = None
    mined_txid: str | None = None
    """Of what spent the inputs in the best chain: one of our versions, or another transaction."""
    mined_value_sat: int = 0
    """What that pays to ``script``."""
    mined_height: int | None = None
    mined_block: str | None = None
    child_txid: str | None = None
    """Of a transaction of ours that pays for the chosen version's way into a block (CPFP)."""
    lost_msat: int = 0
    """What was to be taken (credited and not given back) and was not mined. How much of it the socket has delivered for
    is for :func:`lost_msat` to say."""
    closed_at: int | None = None
    """When it became SETTLED, LOST or VOID."""

    def __post_init__(self) -> None:
        code = "aggregate_invalid"
        if not _SCRIPT.fullmatch(self.script):
            raise StopError(code, f"script: lower-case hex, not {self.script!r}")
        for name in ("first_height", "mined_value_sat", "lost_msat"):
            check_whole(code, name, getattr(self, name), 0)
        for name in ("mined_txid", "mined_block", "child_txid"):
            value = getattr(self, name)
            if value is not None:
                check_hex32(code, name, value)
        was_chosen = self.status not in (AggregateStatus.OPEN, AggregateStatus.VOID)
        if (self.chosen_number is not None) is not was_chosen:
            raise StopError(code, f"status {self.status} with chosen_number {self.chosen_number}")
        if (self.closed_at is None) is not self.status.is_live:
            raise StopError(code, f"status {self.status} with closed_at {self.closed_at}")
        if len({item.outpoint for item in self.inputs}) != len(self.inputs):
            raise StopError(code, "an input stands there twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an aggregate, as it was checked. Raises StopError ``version_invalid``."""

    session_id: str
    number: int
    """From 1 on; grows with the value. The final version has one after the newest."""
    value_sat: int
    """What it pays to the session's address, altogether."""
    fee_sat: int
    vsize: int
    """Virtual bytes (BIP 141)."""
    vout: int
    """Which output is the socket's."""
    txid: str
    psbt: str
    """Signed, base64, of our own making; empty when the ledger has let go of it, or found the transaction on the
    chain."""
    raw: str
    """The transaction with its witnesses, hex; empty when the ledger has let go of it."""
    is_final: bool = False
    """Pays what is owed at the end, which is less than the newest; it is credited nothing."""
    stored_at: int
    """Unix seconds."""

    def __post_init__(self) -> None:
        for name, lowest in (("number", 1), ("value_sat", 1), ("fee_sat", 0), ("vsize", 1), ("vout", 0)):
            check_whole("version_invalid", name, getattr(self, name), lowest)
        check_hex32("version_invalid", "txid", self.txid)
        if self.psbt and not self.raw:
            raise StopError("version_invalid", "a version has its transaction with its PSBT")

    @property
    def is_whole(self) -> bool:
        """It can still be broadcast."""
        return bool(self.raw)

    def is_same(self, other: Version) -> bool:
        """The same one, told again."""
        return (self.number, self.txid, self.is_final) == (other.number, other.txid, other.is_final)


def is_paid_by(value_sat: int, charged_msat: int, keysend_msat: int) -> bool:
    """Whether a transaction that pays the session's script ``value_sat`` pays what is owed on-chain. One that pays the
    script nothing pays for nothing."""
    return value_sat > 0 and value_sat * MSAT_PER_SAT >= charged_msat - keysend_msat


def lost_msat(missing_msat: int, balance_msat: int) -> int:
    """What was delivered and never paid for: the charge, less all that came and stayed. ``missing_msat`` is what was to
    be taken on-chain and was not mined; ``balance_msat`` is what the session's account calls unused, and counts that as
    if it had come."""
    return max(0, missing_msat - balance_msat) if missing_msat else 0


def final_value_sat(charged_msat: int, keysend_msat: int, floor_sat: int) -> int:
    """What the final version has to pay: what is owed and was not paid by keysend, rounded up to whole sats, at least
    the floor; 0 when nothing is owed on-chain, and nothing is broadcast then."""
    owed_msat = charged_msat - keysend_msat
    if owed_msat <= 0:
        return 0
    return max(floor_sat, -(-owed_msat // MSAT_PER_SAT))
