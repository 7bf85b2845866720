"""Older copies of the ledger from which no receipt is missing, but a refund."""

from __future__ import annotations

from pathlib import Path

from tests.plugin.fakes import CABLE
from tests.plugin.still_stall import StillStall


def test_an_orphan_is_not_given_back_twice_though_the_older_copy_lacks_no_receipt(tmp_path: Path) -> None:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        session = stall.open()
        assert stall.pay(session, 1, 60_000)
        stall.close_session(session)
        stall.work()
        before = len(stall.wallet.sends)
        stall.journal.add(session, 7, 4000)
        stall.app.journal.read_to_end()
        copy = stall.copy_of_ledger()
        stall.app.refunds.retry()
        stall.put_back(copy)
        assert stall.app.older_copy.noticed_at is not None
        for _ in range(3):
            stall.work()
            stall.app.refunds.retry()
        assert stall.wallet.sends[before:] == [(CABLE, 4000)]


def test_a_refund_is_not_sent_twice_though_the_machine_died_before_its_receipt(tmp_path: Path) -> None:
    with StillStall(tmp_path / "socket.sqlite3") as stall:
        session = stall.open()
        assert stall.pay(session, 1, 60_000)
        stall.app.sessions.save_changed()
        copy = stall.copy_of_ledger()
        stall.close_session(session)
        stall.signer.gone = True
        stall.work()
        stall.signer.gone = False
        assert stall.wallet.sends == [(CABLE, 60_000)]
        stall.put_back(copy)
        assert stall.app.older_copy.noticed_at is not None
        stall.close_session(session)
        for _ in range(3):
            stall.work()
            stall.app.refunds.retry()
        assert stall.wallet.sends == [(CABLE, 60_000)]
