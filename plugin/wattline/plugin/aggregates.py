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

from wattline.bitcoin.chain import Chain, ChainRefused, ChainUnavailable, NotATransaction, Outpoint, Tx, Unspent
from wattline.errors import StopError
from wattline.ledger import Aggregate, AggregateInput, AggregateStatus, Ledger, Version
from wattline.lightning.node import Signer
from wattline.lightning.onchain import ReceivingFunds
from wattline.lightning.signing import is_signed_by
from wattline.offering import OnchainSettings
from wattline.payment.aggregate import MSAT_PER_SAT, OnchainRules, Proven, VersionRefused, final_value_sat, prove
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

    def credit_stored(self, session_id: str, txid: str, amount_msat: int) -> bool:
        """Credit what the ledger holds already; False when the session can no longer use it."""

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
        except ChainUnavailable as error:
            raise VersionRefused("onchain_unavailable", "the socket cannot look at the chain just now") from error
        except ChainRefused as error:
            raise VersionRefused("not_signed", f"bitcoind does not take it: {error.message}") from error
        return pb.VersionAccepted(number=version.number, value_sat=version.value_sat, is_final=version.is_final)

    # What a settlement asks for.

    def close(self, session_id: str) -> None:
        """Credit nothing any more; what is being credited just now is done when this returns."""
        desk = self._desk(session_id)
        with desk.lock:
            desk.is_closed = True

    def give_back(self, session: Session) -> int:
        """After :meth:`close`: how much of the credit is never taken, in msat: the cable has signed a version that pays
        exactly what is owed, or nothing is owed on the chain. 0 when the newest version stands. Waits for the cable;
        may be asked again."""
        session_id = session.session_id
        newest = self._ledger.newest_version(session_id)
        aggregate = self._ledger.aggregate(session_id)
        if aggregate is None or newest is None:
            return 0
        if aggregate.status is AggregateStatus.OPEN:
            due_sat = self._due_sat(session, aggregate)
            if due_sat >= newest.value_sat:
                return 0
            if due_sat == 0 or self._final_is_here(session, due_sat):
                return (newest.value_sat - due_sat) * MSAT_PER_SAT
            aggregate = self._ledger.aggregate(session_id) or aggregate
        chosen = self._ledger.version(session_id, aggregate.chosen_number or newest.number) or newest
        return (newest.value_sat - chosen.value_sat) * MSAT_PER_SAT

    def is_owed(self, session: Session) -> bool:
        """Whether something of the session is to be taken on the chain and not yet final there."""
        session_id = session.session_id
        aggregate = self._ledger.aggregate(session_id)
        newest = self._ledger.newest_version(session_id)
        if aggregate is None or newest is None:
            return False
        if aggregate.status is AggregateStatus.OPEN:
            return session.returned_msat != newest.value_sat * MSAT_PER_SAT
        return aggregate.status is AggregateStatus.SENT

    def lost_msat(self, session_id: str) -> int:
        """What was credited and will never be taken, because its inputs went elsewhere."""
        aggregate = self._ledger.aggregate(session_id)
        return aggregate.lost_msat if aggregate is not None else 0

    def conclude(self, session: Session) -> None:
        """Write down which version is broadcast, or that none is. May be told again."""
        session_id = session.session_id
        with self._desk(session_id).lock:
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                return
            newest, final = self._ledger.newest_version(session_id), self._ledger.final_version(session_id)
            returned_msat = session.returned_msat
            if newest is None:
                self._ledger.void(session_id, "nothing was handed over", self._now())
            elif returned_msat == newest.value_sat * MSAT_PER_SAT:
                self._ledger.void(session_id, "nothing is owed on the chain", self._now())
            elif final is not None and returned_msat == (newest.value_sat - final.value_sat) * MSAT_PER_SAT:
                self._ledger.choose(session_id, final.number, "final", self._now())
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
            return known  # told again
        newest = self._ledger.newest_version(session_id)
        if number != (newest.number if newest else 0) + 1:
            raise VersionRefused("bad_version", f"the next version has number {(newest.number if newest else 0) + 1}")
        proven = self._prove(aggregate, tx)
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
            return self._take_final(version)
        session = self._check_room(session_id, proven, newest, aggregate.rules)
        self._check_policy(tx)
        increment_msat = (proven.value_sat - (newest.value_sat if newest else 0)) * MSAT_PER_SAT
        inputs = [] if newest else self._inputs_of(aggregate, proven)
        self._store(version, inputs)
        if not self._sessions.credit_stored(session_id, tx.txid, increment_msat):
            self._ledger.drop_version(session_id, number)
            raise VersionRefused("session_closed", f"the session is {session.state} and takes no payment any more")
        return version

    def _prove(self, aggregate: Aggregate, tx: Tx) -> Proven:
        """The shape of the version, and that its inputs are there for it."""
        outpoints = sorted(tx.outpoints)
        if len(outpoints) > aggregate.rules.max_inputs:
            raise VersionRefused("other_inputs", f"at most {aggregate.rules.max_inputs} inputs are taken")
        unspent: dict[Outpoint, Unspent | None] = {
            outpoint: self._chain.unspent(outpoint, include_mempool=False) for outpoint in outpoints
        }
        first_inputs = frozenset(item.outpoint for item in aggregate.inputs) or None
        proven = prove(tx, aggregate.script, aggregate.rules, unspent, first_inputs, self._chain.floor().feerate_per_kw)
        spenders = self._chain.mempool_spenders(outpoints)
        if spenders:
            raise VersionRefused(
                "input_spent", f"input {next(iter(spenders))} is being spent by {next(iter(spenders.values()))}"
            )
        return proven

    def _check_room(self, session_id: str, proven: Proven, newest: Version | None, rules: OnchainRules) -> Session:
        desk = self._desk(session_id)
        if desk.is_closed:
            raise VersionRefused("session_closed", "the session takes no payment any more")
        session = self._check_live(session_id)
        before_sat = newest.value_sat if newest else 0
        if proven.value_sat <= before_sat:
            raise VersionRefused(
                "value_not_larger", f"{proven.value_sat} sat are not more than the {before_sat} sat before"
            )
        if proven.value_sat > rules.exposure_cap_sat:
            raise VersionRefused(
                "exposure_cap",
                f"{proven.value_sat} sat are more than the {rules.exposure_cap_sat} sat taken without a confirmation",
            )
        increment_sat = proven.value_sat - before_sat
        if self._ledger.exposure_sat() + increment_sat > self._settings.total_exposure_cap_sat:
            raise VersionRefused("exposure_cap", "the socket waits for confirmations of other payments; try later")
        unused_msat = session.account.balance_msat
        if unused_msat + increment_sat * MSAT_PER_SAT > rules.credit_cap_sat * MSAT_PER_SAT:
            raise VersionRefused(
                "credit_cap",
                f"{increment_sat} sat and {unused_msat} msat unused exceed the cap of {rules.credit_cap_sat} sat",
            )
        return session

    def _inputs_of(self, aggregate: Aggregate, proven: Proven) -> list[AggregateInput]:
        """Those of the first version, when nobody else has a claim to them."""
        inputs = []
        for outpoint in sorted(proven.tx.outpoints):
            refused = self._ledger.refused_input(outpoint)
            if refused is not None:
                raise VersionRefused("input_refused", f"input {outpoint} was part of a fraud: {refused}")
            other = self._ledger.input_in_use(outpoint, but_not=aggregate.session_id)
            if other is not None:
                raise VersionRefused("input_refused", f"input {outpoint} pays another session already")
            unspent = self._chain.unspent(outpoint, include_mempool=True)
            if unspent is None:
                raise VersionRefused("input_spent", f"input {outpoint} is being spent elsewhere")
            inputs.append(AggregateInput(outpoint, unspent.value_sat))
        return inputs

    def _check_policy(self, tx: Tx) -> None:
        verdict = self._chain.verdict(tx.raw)
        if not verdict.allowed:
            raise VersionRefused("policy", f"the mempool would not take it: {verdict.reason}")

    def _store(self, version: Version, inputs: list[AggregateInput]) -> None:
        try:
            self._ledger.store_version(version, inputs, self._chain.tip().height if inputs else 0)
        except StopError as error:
            if error.code != "version_stale":
                raise
            raise VersionRefused("session_closed", "a version was chosen to be broadcast already") from error

    def _take_final(self, version: Version) -> Version:
        desk = self._desk(version.session_id)
        if desk.final_sat == 0:
            raise VersionRefused("session_closed", "no final version is wanted (now)")
        if version.value_sat != desk.final_sat:
            raise VersionRefused(
                "wrong_output", f"the final version must pay {desk.final_sat} sat, not {version.value_sat}"
            )
        tx = self._chain.decoded(version.raw)
        self._check_policy(tx)
        self._store(version, [])
        desk.final_came.set()
        return version

    def _due_sat(self, session: Session, aggregate: Aggregate) -> int:
        onchain_msat = self._ledger.onchain_credited_msat(session.session_id)
        keysend_msat = session.account.credited_msat - onchain_msat
        return final_value_sat(session.account.charged_msat, keysend_msat, aggregate.rules.floor_sat)

    def _final_is_here(self, session: Session, due_sat: int) -> bool:
        """Ask for the version that pays exactly ``due_sat``, and wait for it."""
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
        try:
            while not self._stopping.is_set():
                aggregate = self._ledger.aggregate(session_id)
                if aggregate is None or aggregate.status is not AggregateStatus.OPEN:
                    return False  # the inputs were seen spent meanwhile
                final = self._ledger.final_version(session_id)
                if final is not None:
                    return final.value_sat == due_sat
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._sessions.tell(session_id, message)
                desk.final_came.wait(min(left_s, ASK_AGAIN_S))
            # The process ends: the next one asks again.
            raise ChainUnavailable("shutting_down", "the socket is shutting down")
        finally:
            with desk.lock:
                desk.final_sat = 0


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
