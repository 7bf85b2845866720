"""The desk where cables hand over versions of their aggregates, and where one of them is chosen to be broadcast.

A version is checked against the chain, stored, and only then credited. Which version is broadcast is written to the
ledger before anybody sends it; whoever follows the chain (:mod:`wattline.plugin.chain_watch`) carries that out.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from wattline.bitcoin.chain import Chain, ChainRefused, ChainUnavailable, NotATransaction, Tx
from wattline.errors import StopError
from wattline.ledger import Aggregate, AggregateInput, AggregateStatus, Ledger, LedgerError, Version
from wattline.lightning.node import Signer
from wattline.lightning.onchain import ReceivingFunds
from wattline.lightning.signing import is_signed_by
from wattline.offering import OnchainSettings
from wattline.payment.aggregate import MSAT_PER_SAT, OnchainRules, Proven, VersionRefused, final_value_sat
from wattline.plugin.admission import Admission
from wattline.plugin.outlet import OutletView
from wattline.session import Session, StopReason
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)

LARGEST_PSBT = 32 * 1024
ASK_AGAIN_S = 1.0
"""How often the cable is asked for the final version: it may be just resuming."""


class Sessions(Protocol):
    """The sessions, as far as this desk credits them."""

    def live_view(self, session_id: str) -> OutletView | None:
        """The outlet's view while it serves this session."""

    def cable_of(self, session_id: str) -> str:
        """The node id that the cable gave; empty when there is no such session."""

    def credit_stored(self, session_id: str, txid: str, total_msat: int) -> bool:
        """The ledger holds a version with this txid: credit what the session lacks of ``total_msat`` from the chain;
        False when it can no longer use it."""

    def tell(self, session_id: str, message: pb.ChargeResponse) -> None:
        """Send something to the session's cable, if it is there."""


@dataclass(slots=True)
class _Desk:
    """One session at the desk."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    is_closed: bool = False
    """Nothing is credited any more."""
    final_sat: int = 0
    """What the final version has to pay; 0 while none is wanted."""
    final_came: threading.Event = field(default_factory=threading.Event)


class Aggregates:
    """Thread-safe; one version of one session at a time."""

    def __init__(
        self,
        settings: OnchainSettings,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        signer: Signer,
        sessions: Sessions,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._signer = signer
        self._sessions = sessions
        self._now = now
        self._admission = Admission(settings, ledger, chain)
        self._room = threading.Lock()
        """Held from the last look at the room that is left until it is taken."""
        self._lock = threading.Lock()
        self._desks: dict[str, _Desk] = {}
        self._stopping = threading.Event()
        self.trouble = "the chain was not looked at yet"
        """Why nobody is invited just now; empty when all is well. Set by whoever watches the chain."""

    @property
    def rules(self) -> OnchainRules:
        """For sessions that are invited from now on."""
        return self._settings.rules

    def stop(self) -> None:
        """Wait for no cable any more."""
        self._stopping.set()

    # What cables say.

    def invite(self, session_id: str, signature: str) -> pb.OnchainInvitation:
        """The address for a session's aggregate: a new one the first time. Raises VersionRefused."""
        if self.trouble:
            raise VersionRefused("onchain_unavailable", "the socket cannot look at the chain just now")
        cable_node_id = self._sessions.cable_of(session_id)
        if not is_signed_by(self._signer, "onchain", session_id.encode("ascii"), signature, cable_node_id):
            raise VersionRefused("not_invited", "the request is not signed by the cable's node")
        self._check_cable(cable_node_id)
        with self._desk(session_id).lock:
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None:
                self._check_live(session_id)
                address = self._funds.new_address()
                aggregate = Aggregate(
                    session_id=session_id,
                    cable_node_id=cable_node_id,
                    address=address,
                    script=self._chain.script_of(address),
                    rules=self.rules,
                    invited_at=self._now(),
                )
                self._ledger.invite(aggregate)
            newest = self._ledger.newest_version(session_id)
        return pb.OnchainInvitation(
            address=aggregate.address,
            script=aggregate.script,
            rules=rules_message(aggregate.rules),
            newest_number=newest.number if newest else 0,
            newest_value_sat=newest.value_sat if newest else 0,
        )

    def hand_over(self, session_id: str, message: pb.AggregateVersion) -> pb.VersionAccepted:
        """Take a version: checked, stored, credited. Raises VersionRefused."""
        aggregate = self._ledger.aggregate(session_id)
        if aggregate is None:
            raise VersionRefused("not_invited", "ask for an address first (OnchainRequest)")
        if not 0 < message.number < 2**31:
            raise VersionRefused("bad_version", f"versions are numbered from 1 on, not {message.number}")
        if len(message.psbt) > LARGEST_PSBT:
            raise VersionRefused("not_signed", f"the PSBT has {len(message.psbt)} bytes; at most {LARGEST_PSBT}")
        psbt = base64.b64encode(message.psbt).decode("ascii")
        try:
            tx = self._chain.finalized(psbt)
            with self._desk(session_id).lock:
                version = self._take(aggregate, message.number, psbt, tx, is_final=message.is_final)
        except NotATransaction as error:
            raise VersionRefused("not_signed", error.message) from error
        except (ChainUnavailable, ChainRefused) as error:
            raise VersionRefused("onchain_unavailable", "the socket cannot look at the chain just now") from error
        except LedgerError as error:
            raise VersionRefused("onchain_unavailable", "the socket cannot keep its books just now") from error
        return pb.VersionAccepted(number=version.number, value_sat=version.value_sat, is_final=version.is_final)

    # What a settlement asks for.

    def close(self, session_id: str) -> None:
        """Credit nothing any more; what is being credited just now is done when this returns."""
        desk = self._desk(session_id)
        with desk.lock:
            desk.is_closed = True
            self._credit_all(session_id)

    def give_back(self, session: Session) -> int:
        """After :meth:`close`: how much of the credit is never taken, in msat. Which version is broadcast is written
        down when this returns: the one that pays exactly what is owed, when the cable has signed it in time; none when
        nothing is owed on the chain; else the newest, and 0 is given back. Waits for the cable; may be asked again."""
        session_id = session.session_id
        newest = self._ledger.newest_version(session_id)
        aggregate = self._ledger.aggregate(session_id)
        if aggregate is None or newest is None:
            return 0
        if aggregate.status is AggregateStatus.OPEN:
            due_sat = self._due_sat(session, aggregate)
            if 0 < due_sat < newest.value_sat:
                self._wait_for_final(session, due_sat)
            aggregate = self._decide(session, due_sat)
        chosen = self._ledger.version(session_id, aggregate.chosen_number) if aggregate.chosen_number else None
        return (newest.value_sat - (chosen.value_sat if chosen else 0)) * MSAT_PER_SAT

    def is_owed(self, session: Session) -> bool:
        """Whether something of the session is to be taken on the chain and not yet final there."""
        aggregate = self._ledger.aggregate(session.session_id)
        if aggregate is None or self._ledger.newest_version(session.session_id) is None:
            return False
        return aggregate.status.is_live

    def lost_msat(self, session_id: str) -> int:
        """What was credited and will never be taken, because its inputs went elsewhere."""
        aggregate = self._ledger.aggregate(session_id)
        return aggregate.lost_msat if aggregate is not None else 0

    def conclude(self, session: Session) -> None:
        """At the close: the newest version is broadcast, unless it was decided otherwise before. May be told again."""
        session_id = session.session_id
        with self._desk(session_id).lock:
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return
            newest = self._ledger.newest_version(session_id)
            if newest is None:
                self._ledger.void(session_id, "nothing was handed over", self._now())
            else:
                self._ledger.choose(session_id, newest.number, session.stop_reason or "closed", self._now())

    def forget(self, session_id: str) -> None:
        """The session is over."""
        with self._lock:
            self._desks.pop(session_id, None)

    # What the watch asks for.

    def seize(self, session_id: str, reason: StopReason) -> Version | None:
        """Choose the newest version at once, because something is wrong; None when there is none. The first choice
        stands."""
        desk = self._desk(session_id)
        with desk.lock:
            desk.is_closed = True
            newest = self._ledger.newest_version(session_id)
            if newest is None:
                return None
            chosen = self._ledger.choose(session_id, newest.number, reason, self._now()).chosen_number
        return self._ledger.version(session_id, chosen or newest.number)

    # The desk's own.

    def _desk(self, session_id: str) -> _Desk:
        with self._lock:
            return self._desks.setdefault(session_id, _Desk())

    def _check_cable(self, cable_node_id: str) -> None:
        reason = self._ledger.refused_cable(cable_node_id)
        if reason is not None:
            raise VersionRefused("not_invited", f"this socket takes nothing on the chain from that cable: {reason}")

    def _check_live(self, session_id: str) -> Session:
        view = self._sessions.live_view(session_id)
        if view is None or view.session is None or not view.session.state.is_live:
            raise VersionRefused("session_closed", "the session takes no payment any more")
        if view.fault:
            raise VersionRefused("session_closed", f"the outlet cannot deliver: {view.fault}")
        return view.session

    def _take(self, aggregate: Aggregate, number: int, psbt: str, tx: Tx, *, is_final: bool) -> Version:
        session_id = aggregate.session_id
        known = self._ledger.version(session_id, number)
        if known is not None and known.txid == tx.txid:
            self._credit_all(session_id)
            return known  # told again
        newest = self._ledger.newest_version(session_id)
        if number != (newest.number if newest else 0) + 1:
            raise VersionRefused("bad_version", f"the next version has number {(newest.number if newest else 0) + 1}")
        # As it stands now that nobody else is at the desk: the first version brought its inputs.
        aggregate = self._ledger.aggregate(session_id) or aggregate
        if not is_final:
            self._check_cable(aggregate.cable_node_id)
        proven = self._admission.proven(aggregate, tx)
        version = Version(
            session_id=session_id,
            number=number,
            value_sat=proven.value_sat,
            fee_sat=proven.fee_sat,
            vsize=tx.vsize,
            vout=proven.vout,
            txid=tx.txid,
            psbt=psbt,
            raw=tx.raw,
            is_final=is_final,
            stored_at=self._now(),
        )
        if is_final:
            self._take_final(version, tx)
        else:
            self._take_larger(version, proven, newest, aggregate)
        return version

    def _take_larger(self, version: Version, proven: Proven, newest: Version | None, aggregate: Aggregate) -> None:
        session_id = version.session_id
        if self._desk(session_id).is_closed:
            raise VersionRefused("session_closed", "the session takes no payment any more")
        session = self._check_live(session_id)
        self._admission.check_room(session, version.value_sat, newest, aggregate.rules)
        self._admission.check_policy(proven.tx)
        inputs = [] if newest else self._admission.first_inputs(aggregate, proven)
        height = self._chain.tip().height if inputs else 0
        with self._room:  # looked at once more, or two sessions could both take what is left of it
            self._admission.check_room(session, version.value_sat, newest, aggregate.rules)
            self._store(version, inputs, height)
        if not self._sessions.credit_stored(session_id, version.txid, version.value_sat * MSAT_PER_SAT):
            self._ledger.drop_version(session_id, version.number)
            raise VersionRefused("session_closed", f"the session is {session.state} and takes no payment any more")

    def _take_final(self, version: Version, tx: Tx) -> None:
        desk = self._desk(version.session_id)
        if desk.final_sat == 0:
            raise VersionRefused("session_closed", "no final version is wanted (now)")
        if version.value_sat != desk.final_sat:
            raise VersionRefused(
                "wrong_output", f"the final version must pay {desk.final_sat} sat, not {version.value_sat}"
            )
        self._admission.check_policy(tx)
        self._store(version, [], 0)
        desk.final_came.set()

    def _store(self, version: Version, inputs: list[AggregateInput], height: int) -> None:
        try:
            self._ledger.store_version(version, inputs, height)
        except StopError as error:
            if error.code != "version_stale":
                raise
            raise VersionRefused("session_closed", "a version was chosen to be broadcast already") from error

    def _credit_all(self, session_id: str) -> None:
        """What the ledger holds, the live session counts: should it have been stored and its credit been in doubt."""
        newest = self._ledger.newest_version(session_id)
        if newest is not None:
            self._sessions.credit_stored(session_id, newest.txid, newest.value_sat * MSAT_PER_SAT)

    def _due_sat(self, session: Session, aggregate: Aggregate) -> int:
        onchain_msat = self._ledger.onchain_credited_msat(session.session_id)
        keysend_msat = session.account.credited_msat - onchain_msat
        return final_value_sat(session.account.charged_msat, keysend_msat, aggregate.rules.floor_sat)

    def _wait_for_final(self, session: Session, due_sat: int) -> None:
        """Ask for the version that pays exactly ``due_sat``, until it is there, or the time is over, or the inputs were
        seen spent."""
        session_id = session.session_id
        desk = self._desk(session_id)
        with desk.lock:
            desk.final_sat = due_sat
        message = pb.ChargeResponse(
            final_due=pb.FinalDue(
                value_sat=due_sat,
                charged_msat=session.account.charged_msat,
                keysend_msat=session.account.credited_msat - self._ledger.onchain_credited_msat(session_id),
            )
        )
        # A cable that was lost for long does not come back now.
        timeout_s = 0 if session.stop_reason is StopReason.CABLE_LOST else self._settings.final_timeout_s
        deadline = time.monotonic() + timeout_s
        is_told = False
        while not self._stopping.is_set():
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return
            left_s = max(0.0, deadline - time.monotonic())
            if self._ledger.final_version(session_id) is not None or (is_told and left_s == 0):
                return
            self._sessions.tell(session_id, message)
            is_told = True
            desk.final_came.wait(min(left_s, ASK_AGAIN_S))
        # The process ends: the next one asks again.
        raise ChainUnavailable("shutting_down", "the socket is shutting down")

    def _decide(self, session: Session, due_sat: int) -> Aggregate:
        """What is taken on the chain for ``due_sat``; an earlier decision stands. No final version after it."""
        session_id = session.session_id
        desk = self._desk(session_id)
        with desk.lock:
            desk.final_sat = 0
            newest, final = self._ledger.newest_version(session_id), self._ledger.final_version(session_id)
            assert newest is not None, "who has handed over nothing gets nothing back"
            if due_sat == 0:
                return self._ledger.void(session_id, "nothing is owed on the chain", self._now())
            if final is not None and final.value_sat == due_sat:
                return self._ledger.choose(session_id, final.number, "final", self._now())
            return self._ledger.choose(session_id, newest.number, session.stop_reason or "closed", self._now())


def rules_message(rules: OnchainRules) -> pb.OnchainRules:
    return pb.OnchainRules(
        floor_sat=rules.floor_sat,
        credit_cap_sat=rules.credit_cap_sat,
        exposure_cap_sat=rules.exposure_cap_sat,
        min_feerate_per_kw=rules.min_feerate_per_kw,
        max_feerate_per_kw=rules.max_feerate_per_kw,
        max_age_s=rules.max_age_s,
        input_confirmations=rules.input_confirmations,
        max_inputs=rules.max_inputs,
    )
