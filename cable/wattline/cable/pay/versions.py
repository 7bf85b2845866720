"""What versions of an aggregate are made from, and the making of one: inputs chosen and reserved, signed by the node,
and looked at before anybody else sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from wattline.cable.policy.events import OnchainInvitation, OnchainTerms
from wattline.cable.policy.onchain import ChosenInputs, OnchainLimits, OnchainRefused, Scope, check_fee, fund
from wattline.core.aggregate import SMALLEST_OUTPUT_SAT, AggregateInput, OnchainRules
from wattline.core.bitcoin.address import address_of, script_of
from wattline.core.bitcoin.chain import TxOutput
from wattline.core.bitcoin.psbt import unsigned_tx
from wattline.core.clock import Moment
from wattline.core.errors import StopError, WattlineError
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus, CableAggregateStore
from wattline.core.lightning.node import CableNode, NodeRefused, onchain_content, sign
from wattline.core.lightning.onchain import RESERVE_BLOCKS, Base, PayingFunds

RENEW_BLOCKS = RESERVE_BLOCKS // 2
"""The inputs are reserved anew after so many blocks."""
RESERVE_TRIES = 5


class AggregateMaker:
    """For one session; used by one thread. Methods raise NodeUnavailable, NodeRefused and the ledger's errors besides
    what they name."""

    def __init__(
        self,
        funds: PayingFunds,
        memory: CableAggregateStore,
        node: CableNode,
        limits: OnchainLimits,
        session_id: str,
        socket_node_id: str,
        now: Callable[[], Moment],
    ) -> None:
        self._funds = funds
        self.memory = memory
        self._node = node
        self._limits = limits
        self.session_id = session_id
        self._socket_node_id = socket_node_id
        self.now = now
        self._network = ""
        self._renewed_at_height: int | None = None
        self.txids: dict[int, str] = {}
        """The txid of every version of this run, by its value in sat."""

    def signature(self) -> str:
        """With which the socket is asked for the session's address: the node's own."""
        return sign(self._node, "onchain", onchain_content(self._socket_node_id, self.session_id))

    def prepared(self, invitation: OnchainInvitation, scope: Scope) -> CableAggregate:
        """A new aggregate for a session within ``scope``, its inputs reserved and all of it on record. Raises
        OnchainRefused."""
        if invitation.newest_number:
            raise OnchainRefused("onchain_mismatch", "the socket claims to hold a version of this session")
        info = self._node.check_version()
        _check_address(invitation, info.network)
        self._network, height = info.network, info.blockheight
        change_address = self._funds.new_address()
        chosen, base = self._reserved(height, invitation.rules, scope)
        try:
            weighed = chosen.weighed(base.inputs_weight, invitation.script)
            check_fee(weighed, self._limits)
            row = CableAggregate(
                session_id=self.session_id,
                node_id=self._socket_node_id,
                address=invitation.address,
                script=invitation.script,
                change_address=change_address,
                base_psbt=base.psbt,
                inputs_weight=base.inputs_weight,
                inputs=tuple(AggregateInput(item.outpoint, item.value_sat) for item in chosen.outputs),
                fee_sat=weighed.fee_sat,
                floor_sat=invitation.rules.floor_sat,
                created_at=self.now().wall_s,
                kept_from_height=height,
            ).signed_now(self.now())
            self.memory.save(row)
        except BaseException:
            self._funds.release(base)
            raise
        self._renewed_at_height = height
        return row

    def _reserved(self, height: int, rules: OnchainRules, scope: Scope) -> tuple[ChosenInputs, Base]:
        """Chosen and reserved; chosen anew where somebody else was quicker: another cable may use the same wallet."""
        tries = RESERVE_TRIES
        while True:
            tries -= 1
            outputs, feerate_per_kw = self._funds.outputs(), self._funds.feerate_per_kw()
            chosen = fund(outputs, height, feerate_per_kw, rules, self._limits, scope)
            try:
                return chosen, self._funds.reserve([item.outpoint for item in chosen.outputs])
            except NodeRefused:
                if not tries or set(chosen.outputs) <= set(self._funds.outputs()):
                    raise

    def taken_up(self, row: CableAggregate, invitation: OnchainInvitation) -> CableAggregate:
        """``row`` as it stands at the socket, on record. Raises OnchainRefused ``onchain_mismatch``."""
        number, value_sat = invitation.newest_number, invitation.newest_value_sat
        if (row.address, row.script) != (invitation.address, invitation.script):
            raise OnchainRefused("onchain_mismatch", "the socket names another address than before")
        if row.mined_txid is not None:
            raise OnchainRefused("onchain_mismatch", f"the session's inputs are spent already, by {row.mined_txid}")
        if number > row.number or not row.accepted_sat <= value_sat <= row.signed_sat:
            raise OnchainRefused(
                "onchain_mismatch",
                f"the socket holds version {number} of {value_sat} sat; it had credited {row.accepted_sat} sat, and no "
                f"more than {row.signed_sat} sat were signed",
            )
        if self._renewed_at_height is None:
            info = self._node.check_version()
            self._funds.renew(_base(row))
            self._network, self._renewed_at_height = info.network, info.blockheight
        if row.accepted_sat != value_sat or row.status is not CableAggregateStatus.OPEN:
            # It may have been ended by a run that could not close its session; what is signed from now on counts anew.
            row = replace(
                row,
                accepted_sat=value_sat,
                status=CableAggregateStatus.OPEN,
                agreed_sat=None,
                due_sat=None,
                closed_at=None,
            ).signed_now(self.now())
            self.memory.save(row)
        return row

    def signed(self, row: CableAggregate, value_sat: int, most_sat: int) -> bytes:
        """A version of that value: a PSBT, looked at before anybody else sees it. Nothing else has versions signed, so
        here none is above ``most_sat``, the most that may be signed now. Raises OnchainRefused, NotATransaction."""
        if value_sat > most_sat:
            raise OnchainRefused(
                "onchain_out_of_range", f"{value_sat} sat are more than the {most_sat} sat that the limits allow now"
            )
        change_sat = sum(item.value_sat for item in row.inputs) - value_sat - row.fee_sat
        if value_sat < row.floor_sat or change_sat < SMALLEST_OUTPUT_SAT:
            raise OnchainRefused("onchain_out_of_range", f"{value_sat} sat cannot be paid by the reserved inputs")
        change_script = script_of(row.change_address, self._network)
        outputs = (TxOutput(value_sat, row.script), TxOutput(change_sat, change_script))
        try:
            psbt = self._funds.sign(_base(row), outputs)
        except NodeRefused:
            # The reservation may have run out: blocks come in bursts.
            self._funds.renew(_base(row))
            psbt = self._funds.sign(_base(row), outputs)
        tx = unsigned_tx(psbt)
        if tx.outpoints != {item.outpoint for item in row.inputs} or tx.outputs != outputs:
            raise OnchainRefused(
                "onchain_mismatch",
                f"what the node has signed does not pay {value_sat} sat to {row.script} and {change_sat} sat of change "
                "from the reserved inputs",
            )
        self.txids[value_sat] = tx.txid
        return psbt

    def keep_reserved(self, row: CableAggregate) -> None:
        """Reserve the inputs anew when blocks have passed. Raises nothing: it is tried again soon, and signing does so,
        too."""
        try:
            height = self._node.check_version().blockheight
            if height - (self._renewed_at_height or 0) >= RENEW_BLOCKS:
                self._funds.renew(_base(row))
                self._renewed_at_height = height
        except WattlineError:
            return

    def release(self, row: CableAggregate) -> None:
        """Give the inputs back to the wallet."""
        self._funds.release(_base(row))


def terms_of(row: CableAggregate, rules: OnchainRules) -> OnchainTerms:
    """Within what ``row`` can pay by the socket's rules."""
    funds_sat = sum(item.value_sat for item in row.inputs)
    return OnchainTerms(
        floor_sat=row.floor_sat,
        most_sat=min(rules.exposure_cap_sat, funds_sat - row.fee_sat - SMALLEST_OUTPUT_SAT),
        credit_cap_sat=rules.credit_cap_sat,
        fee_sat=row.fee_sat,
    )


def _base(row: CableAggregate) -> Base:
    return Base(row.base_psbt, row.inputs_weight)


def _check_address(invitation: OnchainInvitation, network: str) -> None:
    """The node is handed our own encoding of the script, so the address is only compared with that. Raises
    OnchainRefused ``onchain_mismatch``."""
    try:
        own = address_of(invitation.script, network)
    except StopError as error:
        raise OnchainRefused("onchain_mismatch", f"the socket's script is none of ours: {error.message}") from error
    if invitation.address != own:
        raise OnchainRefused("onchain_mismatch", f"the socket's address and script do not belong together: {own}")


Task = Callable[[], None]


class Tasks:
    """Thread-safe. A task that raises does not end the worker: ``on_error`` is told."""

    def __init__(self, worker: Executor, on_error: Callable[[Exception], None]) -> None:
        """``worker``: of one thread."""
        self._worker = worker
        self._on_error = on_error
        self._lock = threading.Lock()
        self._waiting: dict[str, Task] = {}
        self._first: Task | None = None
        self._is_working = False
        self._is_halted = False

    def put(self, kind: str, task: Task) -> bool:
        """To be done in its turn, in place of what waits of that kind. False when nothing is begun any more."""
        with self._lock:
            if not self._is_halted:
                self._waiting[kind] = task
        return self._begin()

    def put_first(self, task: Task) -> bool:
        """To be done before all that waits."""
        with self._lock:
            self._first = task
        return self._begin()

    def halt(self) -> None:
        """Forget what waits, and begin nothing any more."""
        with self._lock:
            self._is_halted = True
            self._waiting.clear()
            self._first = None

    def _begin(self) -> bool:
        with self._lock:
            if self._is_halted:
                return False
            if self._is_working:
                return True
            self._is_working = True
        try:
            self._worker.submit(self._work)
        except RuntimeError:
            return False  # it was shut down
        return True

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one is done
                self._on_error(error)

    def _next(self) -> Task | None:
        with self._lock:
            task, self._first = self._first, None
            if task is None and self._waiting:
                task = self._waiting.pop(next(iter(self._waiting)))
            self._is_working = task is not None
            return task
