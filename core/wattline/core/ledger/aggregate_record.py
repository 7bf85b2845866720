"""The aggregate of a session and its versions, as the socket keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from wattline.core.aggregate import OnchainRules
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.errors import StopError
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.schema import aggregate_inputs, aggregate_versions, aggregates

_HEX32 = re.compile(r"[0-9a-f]{64}")
_SCRIPT = re.compile(r"([0-9a-f]{2})+")
_RULES = [field.name for field in fields(OnchainRules)]


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
        _whole("aggregate_invalid", "value_sat", self.value_sat, 1)


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
    is for :func:`wattline.core.aggregate.lost_msat` to say."""
    closed_at: int | None = None
    """When it became SETTLED, LOST or VOID."""

    def __post_init__(self) -> None:
        code = "aggregate_invalid"
        if not _SCRIPT.fullmatch(self.script):
            raise StopError(code, f"script: lower-case hex, not {self.script!r}")
        for name in ("first_height", "mined_value_sat", "lost_msat"):
            _whole(code, name, getattr(self, name), 0)
        for name in ("mined_txid", "mined_block", "child_txid"):
            value = getattr(self, name)
            if value is not None:
                _hex32(code, name, value)
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
            _whole("version_invalid", name, getattr(self, name), lowest)
        _hex32("version_invalid", "txid", self.txid)
        if self.psbt and not self.raw:
            raise StopError("version_invalid", "a version has its transaction with its PSBT")

    @property
    def is_whole(self) -> bool:
        """It can still be broadcast."""
        return bool(self.raw)


def versions_of(session_id: str, *, is_final: bool | None = None) -> Select[Any]:
    """The versions of a session, the highest number first; all, or those that are (not) final."""
    query = select(aggregate_versions).where(aggregate_versions.c.session_id == session_id)
    if is_final is not None:
        query = query.where(aggregate_versions.c.is_final.is_(is_final))
    return query.order_by(aggregate_versions.c.number.desc())


def find_version(connection: Connection, query: Select[Any]) -> Version | None:
    """The first that ``query`` finds."""
    row = connection.execute(query.limit(1)).first()
    return Version(**row._mapping) if row is not None else None


def find_aggregate(connection: Connection, session_id: str) -> Aggregate | None:
    row = connection.execute(select(aggregates).where(aggregates.c.session_id == session_id)).first()
    return read_aggregate(connection, row) if row is not None else None


def held_aggregate(connection: Connection, session_id: str) -> Aggregate:
    """The session's aggregate, which nobody else changes before this unit of work ends. Raises StopError
    ``unknown_aggregate``."""
    # SQLite has one writer at a time anyway, and leaves FOR UPDATE out.
    query = select(aggregates).where(aggregates.c.session_id == session_id).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        raise StopError("unknown_aggregate", f"session {session_id} was never invited to pay on-chain")
    return read_aggregate(connection, row)


def read_aggregate(connection: Connection, row: Row[Any]) -> Aggregate:
    """The aggregate of a row, with its inputs."""
    values = dict(row._mapping)
    spent = select(aggregate_inputs).where(aggregate_inputs.c.session_id == values["session_id"])
    inputs = [AggregateInput(Outpoint(item.txid, item.vout), item.value_sat) for item in connection.execute(spent)]
    values |= {
        "status": AggregateStatus(values["status"]),
        "rules": _read_rules(values["session_id"], values["rules"]),
        "inputs": tuple(sorted(inputs)),
    }
    return Aggregate(**values)


def aggregate_values(aggregate: Aggregate) -> dict[str, Any]:
    """The row of an aggregate; its inputs have rows of their own."""
    names = [field.name for field in fields(Aggregate) if field.name != "inputs"]
    values = {name: getattr(aggregate, name) for name in names}
    return values | {"status": aggregate.status.value, "rules": json.dumps(asdict(aggregate.rules), sort_keys=True)}


def _read_rules(session_id: str, text: str) -> OnchainRules:
    try:
        values = json.loads(text)
        rules = {name: values[name] for name in _RULES}
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError("ledger_damaged", f"the on-chain rules of session {session_id} cannot be read") from error
    for name, value in rules.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise LedgerError("ledger_damaged", f"the on-chain rules of session {session_id} have {name} = {value!r}")
    return OnchainRules(**rules)


def _whole(code: str, name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise StopError(code, f"{name}: a whole number of at least {lowest}, not {value!r}")


def _hex32(code: str, name: str, value: str) -> None:
    if not _HEX32.fullmatch(value):
        raise StopError(code, f"{name}: 64 lower-case hex digits, not {value!r}")
