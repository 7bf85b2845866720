"""What cables ask for, answered: offers, opens, resumes, payments on the chain, receipts."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading

from wattline.core.clock import Clock
from wattline.core.errors import RetryError, StopError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.node import Signer, sign
from wattline.core.session.event import CableClosed, CableSeen
from wattline.core.session.state import State
from wattline.plugin.certificate import Identity
from wattline.plugin.limits import CountedLog, Limits, address_of, again
from wattline.plugin.messages import METHODS, outlet_message, tariff_message
from wattline.plugin.onchain.intake import VersionIntake, rules_message
from wattline.plugin.opening import PriceList, SessionOpener
from wattline.plugin.refunds import Receipts
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import SocketSettings
from wattline.plugin.statements import Statements
from wattline.plugin.streams import Refused, Stream, Streams
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

TOKEN_BYTES = 32
SHORTEST_NONCE, LONGEST_NONCE = 16, 32
BACK_PRESSURE_S = 1.0
"""So long at the most a stream waits that asks for more on the chain than it may."""


class TooMany(RetryError):
    """Come again later. Code ``too_many_offers``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too_many_offers", f"too much was asked for from this address; {again(wait_s)}")


class CableRequests:
    """Answers cables, each from a thread of its own."""

    def __init__(
        self,
        settings: SocketSettings,
        identity: Identity,
        signer: Signer,
        ledger: Ledger,
        sessions: Sessions,
        opener: SessionOpener,
        prices: PriceList,
        statements: Statements,
        receipts: Receipts,
        streams: Streams,
        ready: threading.Event,
        intake: VersionIntake | None,
        limits: Limits,
        clock: Clock,
    ) -> None:
        """``ready``: set while sessions may be opened and paid. ``intake``: where payments on the chain are taken; None
        when they are not."""
        self._settings = settings
        self._identity = identity
        self._signer = signer
        self._ledger = ledger
        self._sessions = sessions
        self._opener = opener
        self._prices = prices
        self._statements = statements
        self._receipts = receipts
        self._streams = streams
        self._ready = ready
        self._intake = intake
        self._limits = limits
        self._clock = clock
        self._lines = CountedLog(clock.monotonic)
        self._pause = threading.Event()

    def offer(self, nonce: bytes, peer: str = "") -> pb.GetOfferResponse:
        if not SHORTEST_NONCE <= len(nonce) <= LONGEST_NONCE:
            raise Refused(
                "bad_request", f"the nonce must be {SHORTEST_NONCE} to {LONGEST_NONCE} bytes, not {len(nonce)}"
            )
        self._check_rate(peer)
        rules = self._settings.session
        rated_mw = {outlet.outlet_id: outlet.max_power_w * 1000 for outlet in self._settings.outlet}
        content = pb.Offer(
            node_id=self._identity.node_id,
            certificate_sha256=self._identity.certificate_sha256,
            network=self._identity.network,
            tariff=tariff_message(self._prices.current),
            outlets=[
                outlet_message(view, rated_mw[view.outlet_id], self._ready.is_set()) for view in self._opener.views()
            ],
            nonce=nonce,
            expires_at=self._clock.now_s() + rules.offer_valid_s,
            methods=[METHODS[method] for method in self._opener.methods],
            credit_cap_msat=rules.credit_cap_msat,
            min_increment_msat=self._statements.wish_msat(),
            statement_interval_ms=rules.statement_interval_ms,
            pause_max_s=rules.pause_max_s,
            open_timeout_s=rules.open_timeout_s,
            cable_lost_s=rules.cable_lost_s,
            min_refund_msat=rules.min_refund_msat,
            onchain=rules_message(self._intake.rules) if self._intake is not None else None,
        ).SerializeToString(deterministic=True)
        return pb.GetOfferResponse(offer=content, signature=sign(self._signer, "offer", content))

    def open(self, request: pb.Open, peer: str = "") -> Stream:
        self._check_ready()
        if len(request.token) != TOKEN_BYTES:
            raise Refused("bad_request", f"the token must be {TOKEN_BYTES} bytes, not {len(request.token)}")
        token_sha256 = hashlib.sha256(request.token).hexdigest()
        session_id, is_known = self._opener.open(request, token_sha256, peer)
        return self._attend(session_id, token_sha256, resumed=is_known)

    def resume(self, request: pb.Resume) -> Stream:
        self._check_ready()
        return self._attend(request.session_id, hashlib.sha256(request.token).hexdigest(), resumed=True)

    def meter_value(self, session_id: str, value: pb.MeterValue) -> None:
        """A sign of life; what the cable's meter says is the cable's own business."""
        self._sessions.post(session_id, CableSeen())

    def close(self, session_id: str, reason: str) -> None:
        view = self._sessions.view_of(session_id)
        if view is None or view.session is None or not view.session.state.is_live:
            return  # it is closing already; saying so again writes nothing
        kind = session_id if view.session.was_paid else "close of a session that was not paid"
        self._lines.info(kind, "session %s: closed by the cable: %s", session_id, reason[:80] or "no reason given")
        self._sessions.note(session_id, "cable_closed", {"reason": reason[:80]})
        self._sessions.post(session_id, CableClosed())

    def onchain_request(self, session_id: str, request: pb.OnchainRequest) -> None:
        """Answers on the session's stream: the address of its aggregate, or why there is none."""
        if self._intake is None:
            self._refuse_version(session_id, 0, "onchain_unavailable", "this socket takes keysend payments only")
            return
        if not self._may_attempt(session_id, 0):
            return
        try:
            invitation = self._intake.invite(session_id, request.signature)
        except RetryError as error:
            self._refuse_version(session_id, 0, "onchain_unavailable", error.message)
        except StopError as error:
            self._refuse_version(session_id, 0, error.code, error.message)
        else:
            self._streams.send(session_id, pb.ChargeResponse(onchain_invitation=invitation))

    def aggregate_version(self, session_id: str, version: pb.AggregateVersion) -> None:
        """Answers on the session's stream: accepted or refused."""
        if self._intake is None:
            self._refuse_version(session_id, version.number, "onchain_unavailable", "keysend payments only")
            return
        if not self._may_attempt(session_id, version.number):
            return
        try:
            accepted = self._intake.hand_over(session_id, version)
        except RetryError as error:
            self._refuse_version(session_id, version.number, "onchain_unavailable", error.message)
        except StopError as error:
            self._refuse_version(session_id, version.number, error.code, error.message)
        else:
            self._limits.accepted(self._limits.unpaid.address_of(session_id), session_id)
            self._statements.note_payment(session_id)
            self._streams.send(session_id, pb.ChargeResponse(version_accepted=accepted))

    def _refuse_version(self, session_id: str, number: int, code: str, message: str) -> None:
        self._lines.info(
            f"version {self._limits.unpaid.address_of(session_id) or session_id} {code}",
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
        view = self._sessions.view_of(session_id)
        has_paid = view is not None and view.session is not None and view.session.was_paid
        wait_s = self._limits.onchain(self._limits.unpaid.address_of(session_id), session_id, has_paid=has_paid)
        if wait_s:
            message = f"too much was asked for and refused; {again(wait_s)}"
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

    def _attend(self, session_id: str, token_sha256: str, *, resumed: bool) -> Stream:
        """The stream of a session for whoever holds its token; begins with the session as it stands."""
        record = self._sessions.record(session_id)
        if record is None:
            raise Refused("unknown_session", "there is no session of that id")
        if not secrets.compare_digest(record.token_sha256, token_sha256):
            raise Refused("wrong_token", "the token does not belong to that session")
        stream = self._streams.attach(session_id)
        view = self._sessions.view_of(session_id)
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
        self._sessions.post(session_id, CableSeen())
        return stream
