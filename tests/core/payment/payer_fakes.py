"""A node and a store that die, lie and answer late, on a clock of their own; the node's own record is always true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wattline.core.clock import Moment
from wattline.core.ledger.database import LedgerBusy
from wattline.core.ledger.outgoing import AlreadyPaying, Intent, IntentStatus, Outgoing
from wattline.core.lightning.node import (
    ChannelBalance,
    Hop,
    NodeInfo,
    NodeRefused,
    NodeUnavailable,
    NoRoute,
    Route,
    SendFailure,
    SendStatus,
    SentPayment,
)
from wattline.core.lightning.onion import payment_hash_of

OWN = "02" + "aa" * 32
MIDDLE = "02" + "bb" * 32
SOCKET = "03" + "cc" * 32
LATE_REQUEST_S = 1.5
"""How long a request may lie in the node's socket after its writer has died."""


class Crash(BaseException):
    """The process dies here. Not an Exception: no code of ours may catch it."""


class Clock:
    """Seconds that pass only when someone waits; the wall clock beside it may be set."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self.wall_offset_s = 0
        self.boot_id = ""
        """Where it is not known, ages are taken from the wall clock."""
        self.watchers: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.seconds

    def moment(self) -> Moment:
        return Moment(int(self.seconds) + self.wall_offset_s, self.boot_id, int(self.seconds * 1000))

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        for watcher in self.watchers:
            watcher()


def no_fault(_step: str) -> str:
    return "ok"


@dataclass
class FakeWallet:
    """One node. ``fault(step)`` says what goes wrong at each step; ``"ok"`` is nothing."""

    clock: Clock
    fault: Callable[[str], str] = no_fault
    outcome: Callable[[], SendStatus] = lambda: SendStatus.COMPLETE
    """How an htlc ends that the node took."""
    fee_msat: int = 0
    capacity_msat: int = 10**9
    height: int = 100
    searches: list[int] = field(default_factory=list)
    """The amounts for which a route was looked for."""
    record: dict[str, SentPayment] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    sends: list[str] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    late: list[tuple[float, Route, str, str, str]] = field(default_factory=list)
    refusal: SendFailure = field(default_factory=lambda: SendFailure("temporary_channel_failure", "busy", False))
    failures: dict[str, SendFailure] = field(default_factory=dict)
    preimages: dict[str, str] = field(default_factory=dict)
    sent_kept_s: int | None = None
    """After how long the node deletes its record of what it paid."""

    def __post_init__(self) -> None:
        self.clock.watchers.append(self.read_late_requests)

    def info(self) -> NodeInfo:
        return NodeInfo(OWN, "regtest", "v26.06.6", self.height)

    def channels(self) -> Sequence[ChannelBalance]:
        return [
            ChannelBalance(MIDDLE, "105x1x0", self.capacity_msat // 2, 0),
            ChannelBalance(SOCKET, "104x1x0", self.capacity_msat, 7_000),
        ]

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        self.searches.append(amount_msat)
        self._die("find_route")
        if amount_msat > self.capacity_msat:
            raise NoRoute("no_route", "too large")
        if self.fee_msat > maxfee_msat:
            raise NoRoute("route_too_expensive", "too dear")
        sent_msat = amount_msat + self.fee_msat
        return Route(
            destination,
            amount_msat,
            (
                Hop("104x1x0/1", MIDDLE, sent_msat, final_cltv + 6, sent_msat, final_cltv + 6),
                Hop("105x1x0/1", destination, sent_msat, final_cltv + 6, amount_msat, final_cltv),
            ),
        )

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        assert payment_hash_of(preimage) == payment_hash
        self.sends.append(payment_hash)
        match self.fault("send"):
            case "crash before":
                raise Crash
            case "gone before":
                raise NodeUnavailable("node_unavailable", "connection refused")
            case "crash, read late":
                self.late.append((self.clock() + LATE_REQUEST_S, route, payment_hash, preimage, label))
                raise Crash
            case "gone, read late":
                self.late.append((self.clock() + LATE_REQUEST_S, route, payment_hash, preimage, label))
                raise NodeUnavailable("node_unavailable", "connection lost")
            case "refused":
                if payment_hash not in self.record:
                    raise NodeRefused("temporary_channel_failure", "first peer not ready", 204)
            case "crash after":
                self._take(route, payment_hash, preimage, label)
                raise Crash
            case "gone after":
                self._take(route, payment_hash, preimage, label)
                raise NodeUnavailable("node_unavailable", "connection lost")
        known = self.record.get(payment_hash)
        if known is not None and known.status is SendStatus.FAILED:
            raise NodeRefused("payment_hash_used", "there already is a payment", 201)
        self._take(route, payment_hash, preimage, label)

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        match self.fault("wait"):
            case "crash":
                raise Crash
            case "gone":
                raise NodeUnavailable("node_unavailable", "connection lost")
            case "late":
                self.clock.pass_by(timeout_s)
                return None
            case "lie":
                return SendFailure("temporary_channel_failure", "it did not pass", False)
        if payment_hash not in self.record:
            raise NodeRefused("payment_unknown", "never attempted", 208)
        self._end(payment_hash)
        known = self.record[payment_hash]
        return self.failures[payment_hash] if known.status is SendStatus.FAILED else known

    def forgets_sent_after_s(self) -> int | None:
        return self.sent_kept_s

    def sent(self, payment_hash: str) -> SentPayment | None:
        match self.fault("sent"):
            case "crash":
                raise Crash
            case "gone":
                raise NodeUnavailable("node_unavailable", "connection lost")
            case "ended" if payment_hash in self.record:
                self._end(payment_hash)
        return self.record.get(payment_hash)

    # --- the truth ----------------------------------------------------------------------------------------------------

    def paid(self) -> list[str]:
        """Hashes of what really left the wallet."""
        return [h for h, payment in self.record.items() if payment.status is SendStatus.COMPLETE]

    def spent_msat(self) -> int:
        return sum(self.record[h].amount_sent_msat for h in self.paid())

    def read_late_requests(self) -> None:
        due = [entry for entry in self.late if entry[0] <= self.clock()]
        self.late = [entry for entry in self.late if entry[0] > self.clock()]
        for _, route, payment_hash, preimage, label in due:
            self._take(route, payment_hash, preimage, label)

    def end_all(self) -> None:
        for payment_hash in list(self.record):
            self._end(payment_hash)

    def _take(self, route: Route, payment_hash: str, preimage: str, label: str) -> None:
        """One htlc per hash, ever: lightningd's behaviour under a fixed group id."""
        if payment_hash not in self.record:
            self.record[payment_hash] = SentPayment(
                payment_hash, SendStatus.PENDING, route.amount_msat, route.amount_sent_msat, None
            )
            self.labels[payment_hash] = label
            self.routes[payment_hash] = route
            self.preimages[payment_hash] = preimage

    def _end(self, payment_hash: str) -> None:
        known = self.record[payment_hash]
        if known.status is not SendStatus.PENDING:
            return
        status = self.outcome()
        if status is SendStatus.FAILED:
            self.failures[payment_hash] = self.refusal
        preimage = self.preimages[payment_hash] if status is SendStatus.COMPLETE else None
        self.record[payment_hash] = replace(known, status=status, preimage=preimage)

    def _die(self, step: str) -> None:
        match self.fault(step):
            case "crash":
                raise Crash
            case "gone":
                raise NodeUnavailable("node_unavailable", "connection refused")


@dataclass
class FakeStore:
    """The ledger's outgoing intents in memory; may be busy, and die just before or just after a commit."""

    fault: Callable[[str], str] = no_fault
    rows: dict[str, Intent] = field(default_factory=dict)

    def add(self, intent: Intent) -> None:
        key = (intent.purpose, intent.session_id, intent.sequence)
        for row in self.rows.values():
            if (row.purpose, row.session_id, row.sequence) == key and row.status is not IntentStatus.FAILED:
                raise AlreadyPaying("already_paying", "an intent that has not failed exists")
        self._commit("add", intent)

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None:
        row = self._unresolved(payment_hash)
        self._commit(
            "complete",
            replace(row, status=IntentStatus.COMPLETE, amount_sent_msat=amount_sent_msat, resolved_at=at),
        )

    def fail(self, payment_hash: str, failure: str, at: int) -> None:
        row = self._unresolved(payment_hash)
        self._commit("fail", replace(row, status=IntentStatus.FAILED, failure=failure, resolved_at=at))

    def pending(self) -> Sequence[Intent]:
        return [row for row in self.rows.values() if row.status is IntentStatus.PENDING]

    def _unresolved(self, payment_hash: str) -> Intent:
        row = self.rows[payment_hash]
        assert row.status is IntentStatus.PENDING, "an intent is resolved once"
        return row

    def intent(self, payment_hash: str) -> Intent | None:
        return self.rows.get(payment_hash)

    def _commit(self, step: str, row: Intent) -> None:
        faulty(self.fault(step), lambda: self.rows.update({row.payment_hash: row}))


@dataclass
class FaultyLedger:
    """The real ledger's outgoing intents, with the same faults around each commit."""

    outgoing: Outgoing
    fault: Callable[[str], str] = no_fault

    def add(self, intent: Intent) -> None:
        faulty(self.fault("add"), lambda: self.outgoing.add(intent))

    def complete(self, payment_hash: str, amount_sent_msat: int, at: int) -> None:
        faulty(self.fault("complete"), lambda: self.outgoing.complete(payment_hash, amount_sent_msat, at))

    def fail(self, payment_hash: str, failure: str, at: int) -> None:
        faulty(self.fault("fail"), lambda: self.outgoing.fail(payment_hash, failure, at))

    def pending(self) -> Sequence[Intent]:
        return self.outgoing.pending()

    def intent(self, payment_hash: str) -> Intent | None:
        return self.outgoing.intent(payment_hash)


def faulty(fault: str, commit: Callable[[], None]) -> None:
    match fault:
        case "busy":
            raise LedgerBusy("ledger_busy", "locked")
        case "crash before":
            raise Crash
    commit()
    if fault == "crash after":
        raise Crash
