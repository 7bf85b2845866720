"""Where cables hand over versions of their aggregates.

A version is checked against the chain, stored, and only then credited. Which one is broadcast is chosen in
:mod:`wattline.plugin.onchain.decision`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from wattline.core.aggregate import MSAT_PER_SAT, Aggregate, OnchainRules, Version, VersionRefused
from wattline.core.aggregate_step import Held, check_number
from wattline.core.bitcoin.address import script_of
from wattline.core.bitcoin.chain import Chain, ChainRefused, ChainUnavailable, NotATransaction, Tip, Tx
from wattline.core.bitcoin.psbt import finalized_psbt, signed_tx
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.ledger import Ledger
from wattline.core.lightning.node import Signer, is_signed_by, onchain_content
from wattline.core.lightning.onchain import ReceivingFunds
from wattline.core.version_check import Proven
from wattline.plugin.certificate import Identity
from wattline.plugin.crediting import Crediting
from wattline.plugin.onchain.admission import Admission, OpenAggregates
from wattline.plugin.sessions import Sessions
from wattline.plugin.settings import OnchainSettings
from wattline.v1 import charging_pb2 as pb

log = logging.getLogger(__name__)


class VersionIntake:
    """Thread-safe; one version of one session is taken at a time."""

    def __init__(
        self,
        settings: OnchainSettings,
        ledger: Ledger,
        chain: Chain,
        funds: ReceivingFunds,
        signer: Signer,
        identity: Identity,
        sessions: Sessions,
        crediting: Crediting,
        open_aggregates: OpenAggregates,
        now: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._chain = chain
        self._funds = funds
        self._signer = signer
        self._identity = identity
        self._sessions = sessions
        self._crediting = crediting
        self._now = now
        self._admission = Admission(settings, ledger, chain)
        self._room = threading.Lock()
        """Held from the last look at the room that is left until it is taken."""
        self._open = open_aggregates
        self.trouble = "the chain was not looked at yet"
        """Why nobody is invited and no version taken just now; empty when all is well. Set by whoever watches the
        chain: what nobody watches earns no credit."""

    @property
    def rules(self) -> OnchainRules:
        """For sessions that are invited from now on."""
        return self._settings.rules

    # What cables say.

    def invite(self, session_id: str, signature: str) -> pb.OnchainInvitation:
        """The address for a session's aggregate: the first time one that an earlier session has not used, or a new
        one. Raises VersionRefused."""
        if self.trouble:
            raise VersionRefused("onchain_unavailable", "the socket cannot look at the chain just now")
        record = self._sessions.record(session_id)
        cable_node_id = record.cable_node_id if record is not None else ""
        content = onchain_content(self._identity.node_id, session_id)
        if not is_signed_by(self._signer, "onchain", content, signature, cable_node_id):
            raise VersionRefused("not_invited", "the request is not signed by the cable's node for this socket")
        self._check_cable(cable_node_id)
        with self._open.of(session_id).lock:
            aggregate = self._ledger.aggregate(session_id)
            if aggregate is None:
                self._crediting.payable(session_id)
                aggregate = self._ledger.invite_again(session_id, cable_node_id, self.rules, self._now())
            if aggregate is None:
                address = self._funds.new_address()
                aggregate = Aggregate(
                    session_id=session_id,
                    cable_node_id=cable_node_id,
                    address=address,
                    script=script_of(address, self._identity.network),
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
        if self._ledger.aggregate(session_id) is None:
            raise VersionRefused("not_invited", "ask for an address first (OnchainRequest)")
        if not 0 < message.number < 2**31:
            raise VersionRefused("bad_version", f"versions are numbered from 1 on, not {message.number}")
        try:
            tx = signed_tx(message.psbt)
        except NotATransaction as error:
            raise VersionRefused("not_signed", error.message) from error
        try:
            version = self._take(session_id, message.number, tx, is_final=message.is_final)
        except (ChainUnavailable, ChainRefused) as error:
            raise VersionRefused("onchain_unavailable", "the socket cannot look at the chain just now") from error
        except LedgerError as error:
            raise VersionRefused("onchain_unavailable", "the socket cannot keep its books just now") from error
        return pb.VersionAccepted(number=version.number, value_sat=version.value_sat, is_final=version.is_final)

    # What a settlement asks for.

    def close(self, session_id: str) -> None:
        """Credit nothing any more; what is being credited just now is done when this returns."""
        aggregate = self._open.of(session_id)
        with aggregate.lock:
            aggregate.is_closed = True
            self._credit_all(session_id)

    def forget(self, session_id: str) -> None:
        """The session is over."""
        self._open.forget(session_id)

    # Its own.

    def _check_cable(self, cable_node_id: str) -> None:
        reason = self._ledger.refused_cable(cable_node_id)
        if reason is not None:
            raise VersionRefused("not_invited", f"this socket takes nothing on the chain from that cable: {reason}")

    def _take(self, session_id: str, number: int, tx: Tx, *, is_final: bool) -> Version:
        """The chain is asked while the aggregate is not locked: a bitcoind that hangs holds up this version,
        and neither the session's end nor the watch."""
        with self._open.of(session_id).lock:
            known = self._ledger.version(session_id, number)
            if known is not None and known.txid == tx.txid:
                self._credit_all(session_id)
                return known  # told again
            # As it stands now that nobody else changes it: the first version brought its inputs.
            held = self._check_turn(session_id, number, is_final=is_final)
        if self.trouble:
            raise ChainUnavailable("bitcoind_unavailable", self.trouble)
        if not is_final:
            self._check_cable(held.aggregate.cable_node_id)
        tip = self._admission.tip_for(held.aggregate)
        proven = self._admission.proven(held, tx)
        version = Version(
            session_id=session_id,
            number=number,
            value_sat=proven.value_sat,
            fee_sat=proven.fee_sat,
            vsize=tx.vsize,
            vout=proven.vout,
            txid=tx.txid,
            psbt=finalized_psbt(tx, proven.spent),
            raw=tx.raw,
            is_final=is_final,
            stored_at=self._now(),
        )
        if is_final:
            self._take_final(version, tx)
        else:
            self._take_larger(version, proven, held, tip)
        return version

    def _check_turn(self, session_id: str, number: int, *, is_final: bool) -> Held:
        """With the aggregate locked: this is the next version, and its kind is still taken; what is held so far."""
        held = self._ledger.held(session_id)
        check_number(held, number)
        if not is_final and self._open.of(session_id).is_closed:
            raise VersionRefused("session_closed", "the session takes no payment any more")
        return held

    def _take_larger(self, version: Version, proven: Proven, held: Held, tip: Tip) -> None:
        session_id = version.session_id
        least_msat = self._crediting.least_msat(session_id)
        self._admission.check_room(self._crediting.payable(session_id), version.value_sat, held, least_msat)
        self._admission.check_policy(proven.tx)
        inputs = [] if held.newest else self._admission.first_inputs(proven)
        with self._open.of(session_id).lock:
            held = self._check_turn(session_id, version.number, is_final=False)
            session = self._crediting.payable(session_id)
            increment_sat = version.value_sat - held.value_sat
            self._crediting.reserve_version(session_id, version.txid, increment_sat * MSAT_PER_SAT)
            try:
                with self._room:  # or two sessions could both take what is left of it, or the same input
                    self._admission.check_room(session, version.value_sat, held, least_msat)
                    self._admission.check_claims(session_id, inputs, self._now())
                    self._ledger.store_version(version, inputs, tip.height if inputs else 0)
                if not self._crediting.credit_stored(session_id, version.txid, version.value_sat * MSAT_PER_SAT):
                    self._ledger.drop_version(session_id, version.number)
                    raise VersionRefused("session_closed", "the session takes no payment any more")
            except VersionRefused:
                # After anything else it may be stored or credited yet: then it stays on its way for a while.
                self._crediting.release_version(version.txid)
                raise

    def _take_final(self, version: Version, tx: Tx) -> None:
        self._check_due(version)
        self._admission.check_policy(tx)
        aggregate = self._open.of(version.session_id)
        with aggregate.lock:
            self._check_turn(version.session_id, version.number, is_final=True)
            self._check_due(version)
            self._ledger.store_version(version)
            aggregate.final_came.set()

    def _check_due(self, version: Version) -> None:
        due_sat = self._open.of(version.session_id).final_sat
        if due_sat == 0:
            raise VersionRefused("session_closed", "no final version is wanted (now)")
        if version.value_sat != due_sat:
            raise VersionRefused("wrong_output", f"the final version must pay {due_sat} sat, not {version.value_sat}")

    def _credit_all(self, session_id: str) -> None:
        """What the ledger holds, the live session counts: should it have been stored and its credit been in doubt."""
        newest = self._ledger.newest_version(session_id)
        if newest is not None:
            self._crediting.credit_stored(session_id, newest.txid, newest.value_sat * MSAT_PER_SAT)


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
