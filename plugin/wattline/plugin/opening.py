"""Who may open a session, on which outlet and at which price; and its opening.

The prices for sessions opened from now on.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping

from wattline.core.clock import Clock
from wattline.core.ids import encode_session_id
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import Signer, is_node_id, is_signed_by
from wattline.core.session.session import opened
from wattline.core.session.state import Method, State
from wattline.core.tariff import Tariff
from wattline.plugin.certificate import Identity
from wattline.plugin.limits import CountedLog, Limits, address_of, again, has_cost
from wattline.plugin.messages import METHODS, tariff_message, why_unavailable
from wattline.plugin.onchain.intake import VersionIntake
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_state import Condition, OutletView
from wattline.plugin.preconditions import Preconditions
from wattline.plugin.sessions import CALL_TIMEOUT_S, Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Refused, Streams
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

ENDING_S = 2.0
"""How long an open waits for an outlet whose last session has just ended."""
ENDING_LOOK_S = 0.02


class SessionOpener:
    """Opens sessions, one after the other. Thread-safe."""

    def __init__(
        self,
        settings: SocketSettings,
        identity: Identity,
        signer: Signer,
        ledger: Ledger,
        sessions: Sessions,
        outlets: Mapping[str, OutletLoop],
        prices: PriceList,
        statements: Statements,
        preconditions: Preconditions,
        intake: VersionIntake | None,
        limits: Limits,
        clock: Clock,
    ) -> None:
        """``outlets``: those that may be sold from, by id. ``intake``: where payments on the chain are taken; None when
        they are not."""
        self._settings = settings
        self._identity = identity
        self._signer = signer
        self._ledger = ledger
        self._sessions = sessions
        self._outlets = outlets
        self._prices = prices
        self._statements = statements
        self._preconditions = preconditions
        self._intake = intake
        self._limits = limits
        self._clock = clock
        self._lines = CountedLog(clock.monotonic)
        self._opening = threading.Lock()
        self._pause = threading.Event()

    @property
    def methods(self) -> list[Method]:
        """Those that work just now."""
        keysend = [Method.KEYSEND] if self._preconditions.takes_keysend else []
        if self._intake is None or self._intake.trouble:
            return keysend
        return [*keysend, Method.ONCHAIN]

    def views(self) -> list[OutletView]:
        """The outlets that may be sold from."""
        return [outlet.view for outlet in self._outlets.values()]

    def open(self, request: pb.Open, token_sha256: str, peer: str) -> tuple[str, bool]:
        """The session that this token opens, and whether it was open before. Raises Refused."""
        known = self._ledger.session_by_token(token_sha256)
        if known is not None:
            return known.session.session_id, True
        address = address_of(peer)
        self._check_open(request, address)  # asks the node, so nobody else waits for it
        with self._opening:  # one after the other: a token opens one session, however often it is sent at once
            known = self._ledger.session_by_token(token_sha256)
            if known is not None:
                return known.session.session_id, True
            session_id = self._begin(request, token_sha256).session.session_id
            self._limits.unpaid.add(session_id, address)
            self._crowd_out()
        self._lines.info(
            f"open {address}",
            "session %s opened on outlet %s by %s",
            session_id,
            request.outlet_id,
            request.cable_node_id,
        )
        self._sessions.note(session_id, "opened", {"outlet_id": request.outlet_id, "cable": request.cable_node_id})
        return session_id, False

    def _check_limits(self, wait_s: float, address: str) -> None:
        if wait_s:
            self._lines.info(f"too many {address}", "opens of %s are refused: too many were not paid for", address)
            raise Refused("too_many_opens", f"too many sessions were opened and not paid for; {again(wait_s)}")

    def _note_paid(self) -> None:
        """Sessions that have been paid for since they were opened cost no budget."""
        views = self.views()
        served = [each for view in views for each in (view.session, *view.waiting) if each is not None]
        unpaid = [each.session_id for each in served if each.state.is_live and not has_cost(each)]
        for session_id, address in self._limits.unpaid.keep(unpaid):
            record = self._sessions.record(session_id)
            if record is not None and has_cost(record.session):
                self._limits.paid(address, record.cable_node_id)

    def _crowd_out(self) -> None:
        """One that has paid nothing goes when there are too many of them."""
        for session_id in self._limits.unpaid.surplus():
            outlet = self._sessions.outlet_of(session_id)
            if outlet is not None and outlet.crowd_out(session_id).result(CALL_TIMEOUT_S):
                return

    def _check_open(self, request: pb.Open, address: str) -> None:
        if self._sessions.unsaved:
            raise Refused("ledger_failed", "the socket cannot keep its books and sells nothing")
        if request.outlet_id not in self._outlets:
            known = ", ".join(sorted(self._outlets))
            raise Refused("unknown_outlet", f"there is no outlet {request.outlet_id!r} here; there are: {known}")
        if request.method not in [METHODS[method] for method in self.methods]:
            raise Refused(
                "method_not_supported", f"this socket takes {' and '.join(self.methods) or 'no'} payments just now"
            )
        if not is_node_id(request.cable_node_id):
            raise Refused("bad_request", "cable_node_id must be a node id (66 hex digits): refunds go there")
        if request.cable_node_id == self._identity.node_id:
            raise Refused("bad_request", "cable_node_id is the socket's own: a node cannot pay itself")
        self._prices.named(request.tariff_id)
        with self._opening:
            self._note_paid()
        node_id = request.cable_node_id
        self._check_limits(self._limits.open(address, node_id, claims_to_be=bool(request.signature)), address)
        self._check_access(request)
        if request.signature:
            self._check_limits(self._limits.proven(address, node_id), address)
        fraud = self._ledger.refused_cable(request.cable_node_id)
        if fraud is not None:
            raise Refused("cable_refused", f"this socket sells nothing to that cable any more: {fraud}")

    def _check_access(self, request: pb.Open) -> None:
        allowed = self._settings.access.allow_node_ids
        # On the chain a cable may owe something for a while: then it must be known who it is.
        must_sign = bool(allowed) or request.method == pb.METHOD_ONCHAIN
        if not request.signature and not must_sign:
            return
        if request.socket_node_id != self._identity.node_id:
            # Another socket, which the cable talks to, could use the cable's signature here.
            raise Refused("not_allowed", "the open is signed for another socket: socket_node_id must be this node's id")
        unsigned = pb.Open()
        unsigned.CopyFrom(request)
        unsigned.signature = ""
        content = unsigned.SerializeToString(deterministic=True)
        if not request.signature or not is_signed_by(
            self._signer, "open", content, request.signature, request.cable_node_id
        ):
            raise Refused("not_allowed", "the open is not signed by cable_node_id")
        if allowed and request.cable_node_id not in allowed:
            raise Refused("not_allowed", "this socket sells only to the cables on its list")

    def _begin(self, request: pb.Open, token_sha256: str) -> SessionRecord:
        """A new session on its outlet and in the ledger; or on neither."""
        outlet = self._outlets[request.outlet_id]
        terms = self._settings.terms(request.outlet_id, self._prices.named(request.tariff_id))
        session_id = encode_session_id(secrets.token_bytes(16))
        method = Method.ONCHAIN if request.method == pb.METHOD_ONCHAIN else Method.KEYSEND
        session = opened(session_id, request.outlet_id, method, terms, self._clock.monotonic_ms())
        cable_node_id = request.cable_node_id
        record = SessionRecord(
            session=session, token_sha256=token_sha256, cable_node_id=cable_node_id, opened_at=self._clock.now_s()
        )
        self._sessions.add(record, outlet)
        deadline = self._clock.monotonic() + ENDING_S
        try:
            while not outlet.attach(session).result(CALL_TIMEOUT_S):
                if not _is_ending(outlet.view) or self._clock.monotonic() > deadline:
                    raise _why_not(outlet.view)
                self._pause.wait(ENDING_LOOK_S)
            self._sessions.save(session_id)
        except BaseException:
            outlet.detach(session_id)  # or as soon as it gets there
            self._never_opened(session_id)
            raise
        return record

    def _never_opened(self, session_id: str) -> None:
        self._sessions.never_opened(session_id)
        self._statements.forget(session_id)


def _is_ending(view: OutletView) -> bool:
    """The session before is over, and the outlet will be free in a moment."""
    return view.condition is Condition.STARTING or (view.session is not None and view.session.state is State.CLOSED)


def _why_not(view: OutletView) -> Refused:
    if view.session is not None:
        return Refused("outlet_busy", f"outlet {view.outlet_id} serves another session")
    return Refused("outlet_faulted", f"outlet {view.outlet_id} cannot deliver: {why_unavailable(view)}")


CONFIGURED = "tariff_configured"


class PriceList:
    """Which tariff holds; durable. At a start it is the configured one when that has changed since it was last read,
    else the newest, which `wattline-tariff` may have set since: a restart must not undo what the operator said last."""

    def __init__(self, ledger: Ledger, settings: SocketSettings, streams: Streams, clock: Clock) -> None:
        self._ledger = ledger
        self._settings = settings
        self._streams = streams
        self._now = clock.now_s
        configured = settings.tariff.as_tariff()
        read_before = ledger.last_event(CONFIGURED)
        current = ledger.current_tariff()
        if current is None or read_before is None or read_before.detail.get("tariff_id") != configured.tariff_id:
            with ledger.unit():
                ledger.save_tariff(configured, clock.now_s())
                ledger.append_event(clock.now_s(), None, CONFIGURED, {"tariff_id": configured.tariff_id})
            current = configured
        self.current = current
        """For sessions opened from now on."""

    def named(self, tariff_id: str) -> Tariff:
        """The present one, when it has that id. Raises Refused ``tariff_changed``."""
        current = self.current
        if tariff_id != current.tariff_id:
            raise Refused("tariff_changed", "the price has changed since the offer; ask for a new one")
        return current

    def change(self, tariff: Tariff) -> None:
        """Sell at these prices from now on; the cables of running sessions are told. Raises UsageError when no session
        could begin at them; then nothing changes."""
        for outlet in self._settings.outlet:
            self._settings.terms(outlet.outlet_id, tariff)
        effective_at = self._now()
        self._ledger.save_tariff(tariff, effective_at)
        self.current = tariff
        change = pb.TariffChange(tariff=tariff_message(tariff), effective_at=effective_at)
        self._streams.broadcast(pb.ChargeResponse(tariff_change=change))
