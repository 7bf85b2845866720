"""A socket that takes payments on the chain, without threads: everything happens when a test says so, and it can be
killed between any two calls of its ledger, its node and its bitcoind.

The shell and the ledger are the real ones; meter, relay, wallet, journal and chain are in memory and outlive a kill.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from sqlalchemy import event

from tests.plugin.fake_chain import FakeChain, FakeFunds, make_tx, psbt_of
from tests.plugin.fakes import (
    CABLE,
    SOCKET,
    FakeJournal,
    FakeNotes,
    FakeSigner,
    FakeWallet,
    Hardware,
    parts_of,
    payment_hash,
    record_of,
    session_id,
    socket_settings,
)
from wattline.core.aggregate import Aggregate, VersionRefused
from wattline.core.bitcoin.chain import Outpoint, Tx
from wattline.core.clock import Clock
from wattline.core.errors import RetryError, WattlineError
from wattline.core.ledger.database import LedgerError, open_database
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.lightning.node import onchain_content, signed_text
from wattline.core.session.event import CableClosed
from wattline.core.session.session import Session, Terms, opened
from wattline.core.session.state import Method, State
from wattline.core.tariff import Tariff
from wattline.plugin.app import NodeParts, build
from wattline.plugin.certificate import Identity
from wattline.plugin.settings import OnchainSettings
from wattline.v1 import charging_pb2 as pb

T = TypeVar("T")

UWH_PER_MSAT = 1000
TERMS = Terms(
    tariff=Tariff.of(1_000_000),
    rated_power_mw=1000,
    meter_interval_ms=1,
    pause_max_s=10_000_000,
    open_timeout_s=10_000_000,
    cable_lost_s=10_000_000,
    credit_cap_msat=10**9,
    min_refund_msat=100,
)
FLOOR_SAT, CREDIT_CAP_SAT, EXPOSURE_CAP_SAT = 1000, 4000, 10_000
CONFIRMATIONS = 3


def onchain_settings(**changes: Any) -> OnchainSettings:
    values: dict[str, Any] = {
        "enabled": True,
        "floor_sat": FLOOR_SAT,
        "credit_cap_sat": CREDIT_CAP_SAT,
        "exposure_cap_sat": EXPOSURE_CAP_SAT,
        "total_exposure_cap_sat": 50_000,
        "confirmations": CONFIRMATIONS,
    }
    # The clock stands still while a socket waits, so it waits for nothing: less than an operator may say.
    return OnchainSettings(**values | changes).model_copy(update={"final_timeout_s": 0})


class Killed(BaseException):
    """The process ends here; nothing of it runs any more."""


class Tripwire:
    """Counts the calls across the borders of the process, and kills it at one of them."""

    def __init__(self) -> None:
        self.left: int | None = None
        """So many borders are still crossed; None: all."""
        self.counts: Callable[[str, bool], bool] = lambda call, is_after: True
        """Which calls are borders, before them or after."""
        self.fault: Callable[[], BaseException] = Killed
        """What happens there: the process dies, or the call fails."""

    def cross(self, call: str, *, is_after: bool) -> None:
        if self.left is not None and self.counts(call, is_after):
            if self.left == 0:
                self.left = None
                raise self.fault()
            self.left -= 1

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """For whoever only looks on."""
        left, self.left = self.left, None
        try:
            yield
        finally:
            self.left = left

    def around(self, thing: T) -> T:
        return cast("T", _Border(thing, self))


class _Border:
    """Behind it: what outlives the process. It can die before a call and after it."""

    def __init__(self, thing: Any, tripwire: Tripwire) -> None:
        self._thing = thing
        self._tripwire = tripwire

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if name in ("outgoing", "cable_sessions", "cable_aggregates"):
            return _Border(found, self._tripwire)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._tripwire.cross(name, is_after=False)
            result = found(*args, **kwargs)
            self._tripwire.cross(name, is_after=True)
            return result

        return call


class StillWork:
    """What a closer has to do: its jobs wait until they are told to work."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, work: Callable[[], None], *, is_paid: bool = True) -> None:
        self.jobs.append(work)

    def work(self) -> bool:
        """One job; False when none was done. One that has to wait comes again."""
        if not self.jobs:
            return False
        job = self.jobs.pop(0)
        try:
            job()
        except (RetryError, LedgerError):
            self.jobs.insert(0, job)
            return False
        return True


def done_at_once(work: Callable[[], T]) -> Future[T]:
    """The loop of a still outlet is whoever calls it."""
    future: Future[T] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - belongs to whoever waits for it
        future.set_exception(error)
    return future


class Complaints(logging.Handler):
    """Exceptions that somebody caught and wrote into the log: in a test they are failures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # All of a still stall happens in one thread; others are the rest of an earlier test.
        if record.exc_info and record.thread == threading.get_ident():
            self.records.append(self.format(record))


class StillStall:
    """A world with one socket, and one process of it at a time."""

    def __init__(self, path: Path, settings: OnchainSettings | None = None, *, min_increment_msat: int = 10) -> None:
        """``path``: of the ledger's file, made when it is missing. ``min_increment_msat``: what sessions are told."""
        if not path.exists():
            path.write_bytes(_empty_ledger())
        self.path = path
        self.settings = settings or onchain_settings()
        self.min_increment_msat = min_increment_msat
        self.time_s = 1_000_000
        self.terms = TERMS
        """Of sessions that are opened from now on."""
        self.tripwire = Tripwire()
        self.chain = FakeChain()
        self.funds = FakeFunds(self.chain)
        self.wallet, self.signer, self.journal = FakeWallet(), FakeSigner(), FakeJournal()
        self.notes = FakeNotes(self.wallet)
        self.hardware: dict[str, Hardware] = {"A1": Hardware(), "A2": Hardware()}
        self.hears: Callable[[str, pb.ChargeResponse], None] = lambda session_id, message: None
        self.trouble = ""
        """Of the last look at the chain."""
        self.ledger = Ledger(open_database(path))
        """Whoever looks on from outside; never killed."""
        event.listen(self.ledger._database.engine, "connect", _hurry)
        self.ledger._database.engine.dispose()
        self.complaints = Complaints()
        logging.getLogger("wattline").addHandler(self.complaints)
        self.boot()

    def close(self) -> None:
        logging.getLogger("wattline").removeHandler(self.complaints)
        self.ledger.close()
        assert not self.complaints.records, self.complaints.records[0]

    def __enter__(self) -> StillStall:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The process.

    def boot(self) -> None:
        """A new process, in the order in which the plugin starts."""
        for hardware in self.hardware.values():
            hardware.closed = False  # the guard's lease is over
        settings = socket_settings(self.min_increment_msat).model_copy(update={"onchain": self.settings})
        session = settings.session.model_copy(update={"meter_interval_ms": 0})
        payment = settings.payment.model_copy(update={"drain_timeout_s": 0.0})
        settings = settings.model_copy(update={"session": session, "payment": payment})
        node = NodeParts(
            Identity(SOCKET, "regtest", bytes(32)),
            self.wallet,
            self.signer,
            self.journal,
            self.tripwire.around(self.notes),
            self.tripwire.around(self.funds),
        )
        clock = Clock(wall=lambda: float(self.time_s), boot_id=lambda: "", monotonic=lambda: float(self.time_s))
        hardware_parts = {outlet_id: parts_of(hardware) for outlet_id, hardware in self.hardware.items()}
        ledger, chain = self.tripwire.around(self.ledger), self.tripwire.around(self.chain)
        self.app = app = build(settings, ledger, node, chain, hardware_parts, clock)
        app.older_copy.look()
        self.still = StillWork()
        vars(app.closer)["_submit"] = self.still.submit
        vars(app.refunds._payer)["_pause"] = lambda _: None
        assert app.onchain is not None
        self.watch = app.onchain
        vars(self.watch.decision)["_tell"] = lambda session, message: self.hears(session, message)
        self.watch.intake.trouble = ""
        for outlet in app.outlets.values():
            vars(outlet)["_call"] = done_at_once
            outlet._measure_or_fault()
        for record in ledger.live_sessions():
            app.restore(record)
        app.journal.read_to_end()
        app.ready.set()

    def happen(self, what: Callable[[], T]) -> T | None:
        """Let something happen; when the process dies of it a new one begins, and None is what came of it."""
        try:
            return what()
        except Killed:
            self.boot()
            return None

    def kill(self) -> None:
        self.boot()

    def put_back(self, copy: bytes) -> None:
        """The machine is lost: a new process on an older copy of the ledger; node and chain are as they are."""
        self.ledger._database.engine.dispose()
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()
        self.path.write_bytes(copy)
        self.boot()

    def copy_of_ledger(self) -> bytes:
        """As an operator's backup makes it while the socket runs."""
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()

    # What a cable does.

    def open(self, number: int = 1, outlet_id: str = "A1", cable_node_id: str = CABLE) -> str:
        session = opened(session_id(number), outlet_id, Method.ONCHAIN, self.terms, self.app.clock.monotonic_ms())
        outlet = self.app.outlets[outlet_id]
        outlet._measure_or_fault()
        record = record_of(session, number.to_bytes(32, "big"), cable_node_id=cable_node_id, opened_at=self.time_s)
        self.app.sessions.add(record, outlet)
        assert outlet.attach(session).result()
        self.app.sessions.save(session.session_id)
        return session.session_id

    def invite(self, session: str, cable_node_id: str = CABLE) -> pb.OnchainInvitation:
        signature = f"{cable_node_id} says {signed_text('onchain', onchain_content(SOCKET, session))}"
        return self.watch.intake.invite(session, signature)

    def hand_over(self, session: str, number: int, tx: Tx, *, is_final: bool = False) -> str:
        """The code with which it is refused; empty when it is accepted."""
        message = pb.AggregateVersion(number=number, psbt=psbt_of(tx), is_final=is_final)
        try:
            accepted = self.watch.intake.hand_over(session, message)
        except VersionRefused as refused:
            return refused.code
        assert accepted.number == number
        return ""

    def pay(self, session: str, number: int, amount_msat: int) -> bool:
        """A keysend payment, all the way; False when it is refused."""
        taken = self.app.reservations.reserve(
            payment_hash(number),
            session,
            amount_msat,
            lambda flying: self.app.crediting.refusal(session, amount_msat, flying) is None,
        )
        if taken:
            self.journal.add(session, number, amount_msat)
            self.app.crediting.paid(payment_hash(number), amount_msat)
            self.app.journal.read_to_end()
        return bool(taken)

    def close_session(self, session: str) -> None:
        self.app.sessions.post(session, CableClosed())

    # What else happens.

    def deliver(self, amount_msat: int, outlet_id: str = "A1") -> None:
        """Energy worth so much flows, if the relay is closed, and is measured."""
        hardware = self.hardware[outlet_id]
        self.app.outlets[outlet_id]._measure_or_fault()
        if hardware.closed:
            hardware.energy_uwh += amount_msat * UWH_PER_MSAT
        self.app.outlets[outlet_id]._measure_or_fault()

    def look(self) -> bool:
        """One look at the chain; whether it was a whole one."""
        try:
            self.watch.look()
        except WattlineError as error:
            self.trouble = error.code
            return False
        self.trouble = ""
        return True

    def work(self) -> None:
        """Everything that a settlement has to do and can do."""
        while self.still.work():
            pass

    def mine(self, count: int = 1) -> None:
        """Blocks, with a look at each."""
        for _ in range(count):
            self.chain.mine()
            self.time_s += 600
            self.look()

    def finish(self, session: str) -> None:
        """The cable closes, and the chain runs until all is final."""
        self.close_session(session)
        self.work()
        self.look()
        self.mine(CONFIRMATIONS + 1)
        self.app.refunds.retry()

    # What there is to see.

    def session(self, session: str) -> Session:
        found = self.app.sessions.session(session)
        assert found is not None
        return found

    def saved(self, session: str) -> Session:
        record = self.ledger.session(session)
        assert record is not None
        return record.session

    def aggregate(self, session: str) -> Aggregate:
        found = self.ledger.aggregate(session)
        assert found is not None
        return found

    def is_live(self, session: str) -> bool:
        return self.session(session).state.is_live

    def is_over(self, session: str) -> bool:
        return self.session(session).state is State.CLOSED

    def events(self, kind: str) -> int:
        return sum(1 for event in self.ledger.events(1000) if event.kind == kind)


@dataclass
class Wallet:
    """The cable's side of an aggregate: its coins, and every version that it signed."""

    chain: FakeChain
    inputs: list[Outpoint]
    script: str
    """The socket's."""
    fee_sat: int = 200
    versions: list[Tx] = field(default_factory=list)

    @classmethod
    def of(cls, chain: FakeChain, script: str, *values_sat: int, fee_sat: int | None = None) -> Wallet:
        inputs = [chain.fund(value_sat) for value_sat in values_sat or (100_000,)]
        return cls(chain, inputs, script, 200 * len(inputs) if fee_sat is None else fee_sat)

    @property
    def funds_sat(self) -> int:
        return sum(
            tx.outputs[outpoint.vout].value_sat
            for outpoint in self.inputs
            for block in self.chain.blocks
            for tx in block.txs
            if tx.txid == outpoint.txid
        )

    def sign(self, value_sat: int, **changes: Any) -> Tx:
        """A version that pays ``value_sat``; ``changes``: what is wrong with it."""
        fee_sat = changes.pop("fee_sat", self.fee_sat)
        inputs = changes.pop("inputs", self.inputs)
        script = changes.pop("script", self.script)
        change = changes.pop("change", [("5120" + "cc" * 32, self.funds_sat - value_sat - fee_sat)])
        tx = make_tx(inputs, [(script, value_sat), *change], **changes)
        self.versions.append(tx)
        return tx

    def double_spend(self, fee_sat: int, inputs: list[Outpoint] | None = None) -> Tx:
        inputs = inputs if inputs is not None else self.inputs
        funds_sat = Wallet(self.chain, inputs, self.script).funds_sat
        return make_tx(inputs, [("5120" + "dd" * 32, funds_sat - fee_sat)])


@functools.cache
def _empty_ledger() -> bytes:
    """The file of a ledger in which nothing stands: making it takes longer than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite3"
        open_ledger(path).close()
        return path.read_bytes()


def _hurry(connection: sqlite3.Connection, _record: object) -> None:
    # Whether a commit reaches the disk is no concern of these tests.
    connection.execute("PRAGMA synchronous = OFF")
