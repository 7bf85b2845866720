"""The boots of the machine, by the newest moment of each that anything was written down at."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, false, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from wattline.core.clock import Moment
from wattline.core.lastday import EARLIEST_S, LastDay, last_day
from wattline.core.ledger.schema import boots


def note(connection: Connection, moment: Moment) -> None:
    """Something is written down at ``moment``, within the caller's unit of work."""
    if not moment.boot_id:
        return
    values = {"wall_s": moment.wall_s, "boot_ms": moment.boot_ms}
    known = boots.c.boot_id == moment.boot_id
    before_ms = connection.execute(select(boots.c.boot_ms).where(known)).scalar_one_or_none()
    if before_ms is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(boots).values(boot_id=moment.boot_id, **values))
        except IntegrityError:
            return  # another thread has just done so
    elif before_ms < moment.boot_ms:
        connection.execute(update(boots).where(known, boots.c.boot_ms < moment.boot_ms).values(values))


def last_day_of(connection: Connection, now: Moment) -> LastDay:
    """What is of the last 24 hours before ``now``."""
    rows = connection.execute(select(boots).order_by(boots.c.number))
    return last_day([Moment(row.wall_s, row.boot_id, row.boot_ms) for row in rows], now)


def within(day: LastDay, boot_id: Column[Any], boot_ms: Column[Any], wall_s: Column[Any]) -> ColumnElement[bool]:
    """:meth:`LastDay.has`, for a query."""
    undated = wall_s < EARLIEST_S if day.counts_undated else false()
    return or_(
        and_(boot_id == "", or_(wall_s >= day.begins_s, undated)),
        *(and_(boot_id == each, boot_ms > after_ms) for each, after_ms in day.after_ms.items()),
    )
