"""The socket's whole object graph, made in one place: by the plugin, by the tests, and by trials on a real chain, each
with other parts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wattline.core.bitcoin.chain import Chain
from wattline.core.clock import Clock, WallWatch, told
from wattline.core.errors import WattlineError
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import Journal, Signer, Wallet
from wattline.core.lightning.notes import NodeNotes
from wattline.core.lightning.onchain import ReceivingFunds
from wattline.core.payer import Payer
from wattline.core.session.event import CableLost, DeliveryFault
from wattline.core.session.machine import restored, step
from wattline.core.session.state import State, StopReason
from wattline.plugin.certificate import Identity
from wattline.plugin.closing import SessionCloser
from wattline.plugin.crediting import Crediting
from wattline.plugin.journal import JournalReader
from wattline.plugin.limits import MAX_PAYERS, CountedLog, Limits, has_cost
from wattline.plugin.older_copy import NotedRefunds, OlderCopy
from wattline.plugin.onchain.admission import OpenAggregates
from wattline.plugin.onchain.decision import BroadcastDecision
from wattline.plugin.onchain.input_watch import InputWatch
from wattline.plugin.onchain.intake import VersionIntake
from wattline.plugin.opening import PriceList, SessionOpener
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_hardware import OutletParts, removed_outlet
from wattline.plugin.preconditions import Preconditions
from wattline.plugin.refunds import Receipts, Refunds
from wattline.plugin.report import Report
from wattline.plugin.requests import CableRequests
from wattline.plugin.reservations import Reservations
from wattline.plugin.resolving import Resolving
from wattline.plugin.sessions import CALL_TIMEOUT_S, Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Streams, refusal

log = logging.getLogger(__name__)

SAVE_INTERVAL_S = 1.0
FORGET_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the socket needs of its lightningd, and as whom it sells there."""

    identity: Identity
    wallet: Wallet
    signer: Signer
    journal: Journal
    notes: NodeNotes
    funds: ReceivingFunds


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """Everything that runs. Made by :func:`build`; nothing has been started then."""

    ledger: Ledger
    clock: Clock
    ready: threading.Event
    """Set while sessions may be opened and paid."""
    outlets: Mapping[str, OutletLoop]
    """Those of removed outlets, too, that have a session to end."""
    older_copy: OlderCopy
    sessions: Sessions
    reservations: Reservations
    crediting: Crediting
    statements: Statements
    streams: Streams
    prices: PriceList
    receipts: Receipts
    journal: JournalReader
    refunds: Refunds
    closer: SessionCloser
    onchain: InputWatch | None
    """With its intake and its decision; None where nothing is taken on the chain."""
    preconditions: Preconditions
    limits: Limits
    requests: CableRequests
    report: Report
    resolving: Resolving
    stopping: threading.Event

    def restore(self, record: SessionRecord) -> None:
        """Go on with a session that was live when the process before ended. Its relay is open and its stream gone. What
        it was credited on the chain is not used before the chain was looked at. One that may be over by now, because
        the ledger is an older copy, ends: the meter has counted for others since, and who paid for what is not
        known."""
        now_ms = self.clock.monotonic_ms()
        session, effects = restored(record.session, now_ms)
        is_doubtful = session.state is not State.CLOSED and self.older_copy.concerns(session.session_id)
        if is_doubtful and session.state.is_live:
            session, ending = step(session, DeliveryFault(StopReason.LEDGER_RESTORED), now_ms)
            effects += ending
        outlet = self.outlets[session.outlet_id]
        self.sessions.add(replace(record, session=session), outlet, restored=True)
        self.statements.restored(session.session_id)
        outlet.go_on(session, effects, None if is_doubtful else record.chip_uwh).result(CALL_TIMEOUT_S)

    def take_up(self) -> None:
        """Start the outlets, and go on with the sessions of the process before."""
        records = self.ledger.live_sessions()
        for outlet in self.outlets.values():
            outlet.start()
        for record in records:
            log.info("session %s goes on (it was %s)", record.session.session_id, record.session.state)
            self.restore(record)

    def start(self) -> None:
        """What works beside the outlets, once the journal has been read to its end."""
        self.journal.start()
        self.refunds.start()
        self.preconditions.look()
        self.preconditions.start()
        if self.onchain is not None:
            self.onchain.start()
        threading.Thread(target=self._save, name="saver", daemon=True).start()

    def leave(self) -> None:
        """Begin to end: no books are closed and no relay is held from now on."""
        self.stopping.set()
        self.closer.stop()  # an outlet that has stopped closes no books
        self.refunds.stop()
        for outlet in self.outlets.values():
            outlet.leave()

    def send_cables_away(self) -> None:
        """Cables are told to come back; the sessions stay as they are, in the ledger."""
        self.ready.clear()
        self.streams.finish_all(refusal("shutting_down", "the socket is restarting; resume later"))
        self.sessions.save_changed()

    def stop(self) -> None:
        """The rest of the end; the ledger is the caller's."""
        for outlet in self.outlets.values():
            outlet.stop()
        if self.onchain is not None:
            self.onchain.stop()
        self.preconditions.stop()
        self.journal.stop()
        self.sessions.save_changed()

    def _save(self) -> None:
        wall = WallWatch(self.clock)
        forgotten = 0.0
        while not self.stopping.wait(SAVE_INTERVAL_S):
            jump_s = wall.look()
            if jump_s:
                log.warning("%s", told(jump_s))
            try:
                self.sessions.save_changed()
                if self.clock.monotonic() - forgotten > FORGET_INTERVAL_S:
                    forgotten = self.clock.monotonic()
                    self.sessions.forget_unpaid()
            except WattlineError as error:
                log.error("the sessions cannot be saved: %s", error)
            except Exception:
                log.exception("the sessions cannot be saved")


def build(
    settings: SocketSettings,
    ledger: Ledger,
    node: NodeParts,
    chain: Chain | None,
    outlets: Mapping[str, OutletParts],
    clock: Clock,
) -> App:
    """``chain``: None where nothing is taken on the chain, now or from earlier sessions. ``outlets``: those that are
    sold from, by id. Nothing is asked of the node, the chain or the hardware yet."""
    identity, ready, reservations = node.identity, threading.Event(), Reservations(clock.monotonic)
    lines = CountedLog(clock.monotonic)
    older_copy = OlderCopy(ledger, node.notes, node.wallet.forgets_sent_after_s, clock)
    sessions = Sessions(ledger, clock)
    streams = Streams(lambda session_id: sessions.post(session_id, CableLost()))
    prices = PriceList(ledger, settings, streams, clock)
    statements = Statements(settings, sessions, reservations, streams, clock)
    receipts = Receipts(ledger, node.signer, identity.node_id, older_copy, clock)
    crediting = Crediting(ledger, sessions, statements, reservations, ready, lines)
    journal = JournalReader(
        node.journal, ledger, crediting.take, crediting.booked, settings.payment.journal_interval_s, clock
    )
    onchain = _onchain(settings, ledger, node, chain, sessions, crediting, streams, older_copy, clock)
    payer = Payer(node.wallet, NotedRefunds(ledger.outgoing, older_copy), clock.moment, clock.monotonic)
    refunds = Refunds(payer, ledger, receipts, older_copy, settings.payment.refund_retry_s, clock, lines)
    closer = SessionCloser(
        sessions,
        reservations,
        journal,
        refunds,
        receipts,
        statements,
        onchain,
        settings.payment.drain_timeout_s,
        clock,
    )

    def loop(outlet_id: str, parts: OutletParts) -> OutletLoop:
        interval_ms = settings.session.meter_interval_ms
        return OutletLoop(outlet_id, interval_ms, parts, reservations, statements.changed, closer.carry_out, clock)

    sold = {outlet_id: loop(outlet_id, parts) for outlet_id, parts in outlets.items()}
    removed = sorted({record.session.outlet_id for record in ledger.live_sessions()} - sold.keys())
    loops = sold | {outlet_id: loop(outlet_id, removed_outlet(outlet_id)) for outlet_id in removed}
    preconditions = Preconditions(
        node.wallet, node.journal, lambda: onchain.trouble if onchain is not None else "", clock
    )
    limits = Limits(settings.limits, clock.monotonic)
    for record in reversed(ledger.sessions(MAX_PAYERS)):
        if has_cost(record.session):
            limits.paid("", record.cable_node_id)
    intake = onchain.intake if onchain is not None and settings.onchain.enabled else None
    opener = SessionOpener(
        settings,
        identity,
        node.signer,
        ledger,
        sessions,
        sold,
        prices,
        statements,
        preconditions,
        intake,
        limits,
        clock,
    )
    return App(
        ledger=ledger,
        clock=clock,
        ready=ready,
        outlets=loops,
        older_copy=older_copy,
        sessions=sessions,
        reservations=reservations,
        crediting=crediting,
        statements=statements,
        streams=streams,
        prices=prices,
        receipts=receipts,
        journal=journal,
        refunds=refunds,
        closer=closer,
        onchain=onchain,
        preconditions=preconditions,
        limits=limits,
        requests=CableRequests(
            settings,
            identity,
            node.signer,
            ledger,
            sessions,
            opener,
            prices,
            statements,
            receipts,
            streams,
            ready,
            intake,
            limits,
            clock,
        ),
        report=Report(
            ledger,
            sessions,
            prices,
            lambda: [outlet.view for outlet in loops.values()],
            journal,
            identity,
            older_copy,
            onchain,
            lambda: preconditions.problems,
            ready,
        ),
        resolving=Resolving(ledger, older_copy, onchain, refunds.settle, clock, payer, refunds.hurry),
        stopping=threading.Event(),
    )


def _onchain(
    settings: SocketSettings,
    ledger: Ledger,
    node: NodeParts,
    chain: Chain | None,
    sessions: Sessions,
    crediting: Crediting,
    streams: Streams,
    older_copy: OlderCopy,
    clock: Clock,
) -> InputWatch | None:
    if chain is None:
        return None
    rules, identity, open_aggregates = settings.onchain, node.identity, OpenAggregates()
    intake = VersionIntake(
        rules,
        ledger,
        chain,
        node.funds,
        node.signer,
        identity,
        sessions,
        crediting,
        open_aggregates,
        clock.now_s,
    )
    decision = BroadcastDecision(rules, ledger, streams.send, open_aggregates, older_copy, clock)
    return InputWatch(
        rules, identity.network, ledger, chain, node.funds, intake, decision, sessions, crediting, older_copy, clock
    )
