"""Where cables are received: offers, opens, resumes, receipts (:class:`wattline.plugin.service.Seller`)."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattline.core.errors import RetryError, StopError
from wattline.core.ids import encode_session_id
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import Signer, is_node_id
from wattline.core.lightning.signing import is_signed_by, sign
from wattline.core.session.event import CableClosed, CableSeen
from wattline.core.session.session import opened
from wattline.core.session.state import Method, State
from wattline.plugin.limits import MAX_PAYERS, CountedLog, Limits, UnpaidOpens, address_of, has_cost
from wattline.plugin.messages import METHODS, outlet_message, tariff_message, why_unavailable
from wattline.plugin.onchain.intake import VersionIntake, rules_message
from wattline.plugin.outlet import OutletLoop
from wattline.plugin.outlet_state import Condition, OutletView
from wattline.plugin.receipts import Receipts
from wattline.plugin.service import Refused
from wattline.plugin.sessions import CALL_TIMEOUT_S, Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Stream, Streams
from wattline.plugin.tariffs import PriceList
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

TOKEN_BYTES = 32
ENDING_S = 2.0
"""How long an open waits for an outlet whose last session has just ended."""
ENDING_LOOK_S = 0.02
SHORTEST_NONCE, LONGEST_NONCE = 16, 32
BACK_PRESSURE_S = 1.0
"""So long at the most a stream waits that asks for more on the chain than it may."""


class TooMany(RetryError):
    """Come again later. Code ``too_many_offers``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too_many_offers", f"too much was asked for from this address; {_again(wait_s)}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sells."""

    node_id: str
    network: str
    certificate_sha256: bytes


class CableRequests:
    """Answers cables, each from a thread of its own."""

    def __init__(
        self,
        settings: SocketSettings,
        identity: Identity,
        signer: Signer,
        ledger: Ledger,
        live: Sessions,
        outlets: Mapping[str, OutletLoop],
        prices: PriceList,
        statements: Statements,
        receipts: Receipts,
        streams: Streams,
        ready: threading.Event,
        aggregates: VersionIntake | None = None,
        now: Callable[[], int] = lambda: int(time.time()),
        takes_keysend: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``outlets``: those that may be sold from, by id. ``ready``: set while sessions may be opened and paid.
        ``aggregates``: where payments on the chain are taken; None when they are not."""
        self._settings = settings
        self._identity = identity
        self._signer = signer
        self._ledger = ledger
        self._live = live
        self._outlets = outlets
        self._prices = prices
        self._statements = statements
        self._receipts = receipts
        self._streams = streams
        self._ready = ready
        self._aggregates = aggregates
        self._now = now
        self._takes_keysend = takes_keysend
        self._limits = Limits(settings.limits, clock)
        self._unpaid = UnpaidOpens(settings.limits.unpaid_sessions)
        """Changed with ``_opening`` held."""
        self._lines = CountedLog(clock)
        for record in reversed(ledger.sessions(MAX_PAYERS)):
            if has_cost(record.session):
                self._limits.paid("", record.cable_node_id)
        self._opening = threading.Lock()
        self._pause = threading.Event()

    def offer(self, nonce: bytes, peer: str = "") -> pb.GetOfferResponse:
        if not SHORTEST_NONCE <= len(nonce) <= LONGEST_NONCE:
            raise Refused(
                "bad_request", f"the nonce must be {SHORTEST_NONCE} to {LONGEST_NONCE} bytes, not {len(nonce)}"
            )
        self._check_rate(peer)
        rules = self._settings.session
        rated_mw = {outlet.outlet_id: outlet.max_power_w * 1000 for outlet in self._settings.outlet}
        views = [outlet.view for outlet in self._outlets.values()]
        content = pb.Offer(
            node_id=self._identity.node_id,
            certificate_sha256=self._identity.certificate_sha256,
            network=self._identity.network,
            tariff=tariff_message(self._prices.current),
            outlets=[outlet_message(view, rated_mw[view.outlet_id], self._ready.is_set()) for view in views],
            nonce=nonce,
            expires_at=self._now() + rules.offer_valid_s,
            methods=[METHODS[method] for method in self._methods],
            credit_cap_msat=rules.credit_cap_msat,
            min_increment_msat=self._statements.wish_msat(),
            statement_interval_ms=rules.statement_interval_ms,
            pause_max_s=rules.pause_max_s,
            open_timeout_s=rules.open_timeout_s,
            cable_lost_s=rules.cable_lost_s,
            min_refund_msat=rules.min_refund_msat,
            onchain=rules_message(self._aggregates.rules) if self._aggregates is not None else None,
        ).SerializeToString(deterministic=True)
        return pb.GetOfferResponse(offer=content, signature=sign(self._signer, "offer", content))

    def open(self, request: pb.Open, peer: str = "") -> Stream:
        self._check_ready()
        if len(request.token) != TOKEN_BYTES:
            raise Refused("bad_request", f"the token must be {TOKEN_BYTES} bytes, not {len(request.token)}")
        token_sha256 = hashlib.sha256(request.token).hexdigest()
        known = self._ledger.session_by_token(token_sha256)
        if known is None:
            address = address_of(peer)
            self._check_open(request, address)  # asks the node, so nobody else waits for it
            with self._opening:  # one after the other: a token opens one session, however often it is sent at once
                known = self._ledger.session_by_token(token_sha256)
                if known is None:
                    session_id = self._begin(request, token_sha256).session.session_id
                    self._unpaid.add(session_id, address)
                    self._crowd_out()
        if known is not None:
            return self._attend(known.session.session_id, token_sha256, resumed=True)
        self._lines.info(
            f"open {address}",
            "session %s opened on outlet %s by %s",
            session_id,
            request.outlet_id,
            request.cable_node_id,
        )
        self._live.note(session_id, "opened", {"outlet_id": request.outlet_id, "cable": request.cable_node_id})
        return self._attend(session_id, token_sha256, resumed=False)

    def resume(self, request: pb.Resume) -> Stream:
        self._check_ready()
        return self._attend(request.session_id, hashlib.sha256(request.token).hexdigest(), resumed=True)

    def meter_value(self, session_id: str, value: pb.MeterValue) -> None:
        """A sign of life; what the cable's meter says is the cable's own business."""
        self._live.post(session_id, CableSeen())

    def close(self, session_id: str, reason: str) -> None:
        view = self._live.view_of(session_id)
        if view is None or view.session is None or not view.session.state.is_live:
            return  # it is closing already; saying so again writes nothing
        kind = session_id if view.session.was_paid else "close of a session that was not paid"
        self._lines.info(kind, "session %s: closed by the cable: %s", session_id, reason[:80] or "no reason given")
        self._live.note(session_id, "cable_closed", {"reason": reason[:80]})
        self._live.post(session_id, CableClosed())

    def onchain_request(self, session_id: str, request: pb.OnchainRequest) -> None:
        """Answers on the session's stream: the address of its aggregate, or why there is none."""
        if self._aggregates is None:
            self._refuse_version(session_id, 0, "onchain_unavailable", "this socket takes keysend payments only")
            return
        if not self._may_attempt(session_id, 0):
            return
        try:
            invitation = self._aggregates.invite(session_id, request.signature)
        except RetryError as error:
            self._refuse_version(session_id, 0, "onchain_unavailable", error.message)
        except StopError as error:
            self._refuse_version(session_id, 0, error.code, error.message)
        else:
            self._streams.send(session_id, pb.ChargeResponse(onchain_invitation=invitation))

    def aggregate_version(self, session_id: str, version: pb.AggregateVersion) -> None:
        """Answers on the session's stream: accepted or refused."""
        if self._aggregates is None:
            self._refuse_version(session_id, version.number, "onchain_unavailable", "keysend payments only")
            return
        if not self._may_attempt(session_id, version.number):
            return
        try:
            accepted = self._aggregates.hand_over(session_id, version)
        except RetryError as error:
            self._refuse_version(session_id, version.number, "onchain_unavailable", error.message)
        except StopError as error:
            self._refuse_version(session_id, version.number, error.code, error.message)
        else:
            self._limits.accepted(self._unpaid.address_of(session_id), session_id)
            self._statements.note_payment(session_id)
            self._streams.send(session_id, pb.ChargeResponse(version_accepted=accepted))

    def _refuse_version(self, session_id: str, number: int, code: str, message: str) -> None:
        self._lines.info(
            f"version {self._unpaid.address_of(session_id) or session_id} {code}",
            "session %s: version %d refused: %s: %s",
            session_id,
            number,
            code,
            message,
        )
        refused = pb.VersionRefused(number=number, code=code, message=message)
        self._streams.send(session_id, pb.ChargeResponse(version_refused=refused))

    def _may_attempt(self, session_id: str, number: int) -> bool:
        """Whether something on the chain is looked at now. When not, the cable is told, and its stream waits."""
        view = self._live.view_of(session_id)
        has_paid = view is not None and view.session is not None and view.session.was_paid
        wait_s = self._limits.onchain(self._unpaid.address_of(session_id), session_id, has_paid=has_paid)
        if wait_s:
            message = f"too much was asked for and refused; {_again(wait_s)}"
            self._refuse_version(session_id, number, "too_many_attempts", message)
            self._pause.wait(min(wait_s, BACK_PRESSURE_S))
        return not wait_s

    def gone(self, stream: Stream) -> None:
        self._streams.detach(stream)

    def receipt(self, session_id: str, token: bytes, peer: str = "") -> pb.SignedReceipt:
        self._check_rate(peer)
        record = self._ledger.session(session_id)
        if record is None or not secrets.compare_digest(record.token_sha256, hashlib.sha256(token).hexdigest()):
            raise Refused("unknown_session", "no session with that id and token")
        if record.session.state is not State.CLOSED:
            raise Refused("not_closed", "the session is not closed yet")
        return self._receipts.newest(record)

    def _check_ready(self) -> None:
        if not self._ready.is_set():
            raise Refused("starting", "the socket is starting; try again in a moment")

    def _check_rate(self, peer: str) -> None:
        wait_s = self._limits.offer(address_of(peer))
        if wait_s:
            raise TooMany(wait_s)

    def _check_limits(self, wait_s: float, address: str) -> None:
        if wait_s:
            self._lines.info(f"too many {address}", "opens of %s are refused: too many were not paid for", address)
            raise Refused("too_many_opens", f"too many sessions were opened and not paid for; {_again(wait_s)}")

    def _note_paid(self) -> None:
        """Sessions that have been paid for since they were opened cost no budget."""
        views = [outlet.view for outlet in self._outlets.values()]
        served = [each for view in views for each in (view.session, *view.waiting) if each is not None]
        unpaid = [each.session_id for each in served if each.state.is_live and not has_cost(each)]
        for session_id, address in self._unpaid.keep(unpaid):
            record = self._live.record(session_id)
            if record is not None and has_cost(record.session):
                self._limits.paid(address, record.cable_node_id)

    def _crowd_out(self) -> None:
        """One that has paid nothing goes when there are too many of them."""
        for session_id in self._unpaid.surplus():
            outlet = self._live.outlet_of(session_id)
            if outlet is not None and outlet.crowd_out(session_id).result(CALL_TIMEOUT_S):
                return

    def _check_open(self, request: pb.Open, address: str) -> None:
        if self._live.unsaved:
            raise Refused("ledger_failed", "the socket cannot keep its books and sells nothing")
        if request.outlet_id not in self._outlets:
            known = ", ".join(sorted(self._outlets))
            raise Refused("unknown_outlet", f"there is no outlet {request.outlet_id!r} here; there are: {known}")
        if request.method not in [METHODS[method] for method in self._methods]:
            raise Refused(
                "method_not_supported", f"this socket takes {' and '.join(self._methods) or 'no'} payments just now"
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

    @property
    def _methods(self) -> list[Method]:
        """Those that work just now."""
        keysend = [Method.KEYSEND] if self._takes_keysend() else []
        if self._aggregates is None or self._aggregates.trouble:
            return keysend
        return [*keysend, Method.ONCHAIN]

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
        session = opened(session_id, request.outlet_id, method, terms, time.monotonic_ns() // 1_000_000)
        cable_node_id = request.cable_node_id
        record = SessionRecord(
            session=session, token_sha256=token_sha256, cable_node_id=cable_node_id, opened_at=self._now()
        )
        self._live.add(record, outlet)
        deadline = time.monotonic() + ENDING_S
        try:
            while not outlet.attach(session).result(CALL_TIMEOUT_S):
                if not _is_ending(outlet.view) or time.monotonic() > deadline:
                    raise _why_not(outlet.view)
                self._pause.wait(ENDING_LOOK_S)
            self._live.save(session_id)
        except BaseException:
            outlet.detach(session_id)  # or as soon as it gets there
            self._never_opened(session_id)
            raise
        return record

    def _never_opened(self, session_id: str) -> None:
        self._live.never_opened(session_id)
        self._statements.forget(session_id)

    def _attend(self, session_id: str, token_sha256: str, *, resumed: bool) -> Stream:
        """The stream of a session for whoever holds its token; begins with the session as it stands."""
        record = self._live.record(session_id)
        if record is None:
            raise Refused("unknown_session", "there is no session of that id")
        if not secrets.compare_digest(record.token_sha256, token_sha256):
            raise Refused("wrong_token", "the token does not belong to that session")
        stream = self._streams.attach(session_id)
        view = self._live.view_of(session_id)
        if view is None or view.session is None:
            self._streams.detach(stream)  # there is but this to tell, and that may fail
            stream.put(pb.ChargeResponse(receipt=self._receipts.newest(record)))
            stream.end()
            return stream
        hello = pb.Opened(
            session_id=session_id,
            tariff=tariff_message(view.session.terms.tariff),
            statement=self._statements.of(view, view.session),
            resumed=resumed,
        )
        stream.put(pb.ChargeResponse(opened=hello))
        self._live.post(session_id, CableSeen())
        return stream


def _again(wait_s: float) -> str:
    return f"try again in {math.ceil(wait_s)} s"


def _is_ending(view: OutletView) -> bool:
    """The session before is over, and the outlet will be free in a moment."""
    return view.condition is Condition.STARTING or (view.session is not None and view.session.state is State.CLOSED)


def _why_not(view: OutletView) -> Refused:
    if view.session is not None:
        return Refused("outlet_busy", f"outlet {view.outlet_id} serves another session")
    return Refused("outlet_faulted", f"outlet {view.outlet_id} cannot deliver: {why_unavailable(view)}")
