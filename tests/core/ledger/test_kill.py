"""A process that is killed while it writes leaves whole units of work behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.core.ledger.onchain_samples import INPUTS, aggregate
from tests.core.ledger.samples import record, session_id
from wattline.core.ledger.ledger import open_ledger

ROOT = Path(__file__).parents[3]
BATCH = 20
WRITER = """
import sys
from dataclasses import replace
from tests.core.ledger.samples import booking, intent, record, session_id
from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.payment import Cursor
from wattline.core.session.session import Account

ledger = open_ledger(sys.argv[1])
size = int(sys.argv[2])
batch = ledger.cursor().pay_index // size
run = int(sys.argv[3])
while True:
    batch += 1
    paying = intent(1000 * run + batch, sequence=batch)
    rows = [booking(number) for number in range((batch - 1) * size + 1, batch * size + 1)]
    ledger.outgoing.add(paying)
    print("intent", batch, flush=True)
    saved = ledger.session(session_id(1))
    session = replace(saved.session, account=Account(charged_msat=batch))
    with ledger.unit():
        ledger.book(rows, Cursor(2 * batch * size, batch * size))
        ledger.save_session(replace(saved, session=session))
        ledger.outgoing.complete(paying.payment_hash, 1000, batch)
    print("booked", batch, flush=True)
"""
VERSION_WRITER = """
import sys
from dataclasses import replace
from tests.core.ledger.onchain_samples import INPUTS, version
from tests.core.ledger.samples import session_id
from wattline.core.ledger.ledger import open_ledger
from wattline.core.session.session import Account

ledger = open_ledger(sys.argv[1])
number = ledger.increments(session_id(1))
while True:
    number += 1
    saved = ledger.session(session_id(1))
    session = replace(saved.session, account=Account(charged_msat=number))
    with ledger.unit():
        ledger.append_event(number, session_id(1), "version", {})
        assert ledger.store_version(version(number), INPUTS, 77)
        ledger.save_session(replace(saved, session=session))
    print("stored", number, flush=True)
"""


def test_whenever_the_writer_is_killed_only_whole_units_of_work_remain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with open_ledger(path) as ledger:
        ledger.save_session(record())
    for lines in (1, 6, 13):
        told = _run_and_kill(path, lines, WRITER)
        with open_ledger(path) as ledger:
            batches = ledger.cursor().pay_index // BATCH
            assert ledger.cursor().pay_index == batches * BATCH
            assert ledger.cursor().updated_index == 2 * batches * BATCH
            assert ledger.credited(session_id(1)) == (100 * batches * BATCH, batches * BATCH)
            found = ledger.session(session_id(1))
            assert found is not None
            assert found.session.account.charged_msat == batches
            # What was reported as done is there.
            booked = [int(number) for word, number in told if word == "booked"]
            assert batches >= max(booked, default=0)
            intents = [int(number) for word, number in told if word == "intent"]
            last = max(found.sequence for found in ledger.outgoing.of_session("increment", session_id(1)))
            assert last >= max(intents)
            # An intent of a batch that was not booked is pending; there is at most one.
            pending = [found.sequence for found in ledger.outgoing.pending()]
            assert pending == ([last] if last > batches else [])
            for number in pending:
                found_intent = ledger.outgoing.of("increment", session_id(1), number)
                assert found_intent is not None
                ledger.outgoing.fail(found_intent.payment_hash, "killed", 1)


def test_whenever_the_writer_is_killed_a_version_is_there_with_all_that_came_with_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with open_ledger(path) as ledger:
        ledger.save_session(record())
        ledger.invite(aggregate())
    for lines in (1, 6, 13):
        told = _run_and_kill(path, lines, VERSION_WRITER)
        with open_ledger(path) as ledger:
            newest = ledger.newest_version(session_id(1))
            assert newest is not None
            assert newest.number >= max(int(number) for _, number in told)
            found = ledger.session(session_id(1))
            assert found is not None
            account = found.session.account
            assert (account.credited_msat, account.payments) == (1000 * newest.value_sat, newest.number)
            assert account.charged_msat == newest.number
            own = ledger.aggregate(session_id(1))
            assert own is not None
            assert (own.inputs, own.first_height) == (INPUTS, 77)
            assert len(ledger.events(10_000)) == newest.number
            assert newest.is_whole


def _run_and_kill(path: Path, lines: int, program: str) -> list[tuple[str, str]]:
    """Kill (SIGKILL) the writer after so many of its lines; all that it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(BATCH), str(lines)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        told += writer.stdout.readlines()
    assert writer.returncode == -9
    return [(line.split()[0], line.split()[1]) for line in told if line.endswith("\n")]
