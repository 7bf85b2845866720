"""How a session's aggregate ends at the cable, and what was mined of it in the end.

The socket holds every version that was handed over, and an honest one has the agreed one mined. The cable cannot
prevent another choice, but it sees it: then the loss is told, and that socket is refused from then on. An honest socket
may also have been unable to take the final version; what it had mined too much it then owes, over Lightning. So where
it never said that it takes less, it is remembered for what it owes, and refused when that happens again.

It is judged by the cable's own bill and the socket's signed receipt. All of that is in the ledger while the session
lives, so whoever finds its end judges by the same, also when the run that should have seen it was killed.
docs/onchain.md has the rule in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wattline.cable.pay.keysend import RefundSearch
from wattline.cable.policy.events import Receipt
from wattline.cable.policy.offer import OfferError
from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.errors import WattlineError
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus, CableAggregateStore
from wattline.core.lightning.node import Journal
from wattline.core.lightning.onchain import Base, PayingFunds, WalletTx

KEEP_BLOCKS = 14 * 144
"""For so long the inputs of a transaction that is not mined yet are kept for it: about as long as nodes keep one in
their mempools. Blocks, because no clock of this machine says when another one's days are over."""
LOOK_S = 0.25
FORBEARANCE = 1
"""So many sessions at a time a socket may owe something for, and still be bought from."""
REFUND_FEE_PERCENT = 5
REFUND_FEE_MSAT = 10_000
"""A refund pays its own way out of what is owed: by so much together it may be less."""


def ended(row: CableAggregate, evidence: Evidence, now_s: int, held_sat: int = 0) -> CableAggregate:
    """``row`` when its session is over. What may rightly be mined by the socket's own word is the final version, if it
    said that it has it, else the newest that it accepted; and no more than its own signed receipt says.

    ``held_sat``: the version that the socket may have credited without the cable having heard of it.
    Without a word of the final version it may never have come, or the socket could not check it (its bitcoind was
    away): an honest one takes the newest then, and owes what that is more than due."""
    if row.signed_sat == 0:
        return replace(row, status=CableAggregateStatus.VOID, closed_at=now_s)
    agreed = row.final_sat if row.is_final_taken and row.final_sat is not None else max(row.accepted_sat, held_sat)
    if evidence.receipt is not None:
        agreed = min(agreed, evidence.receipt.onchain_value_sat)
    return replace(row, status=CableAggregateStatus.ENDED, agreed_sat=agreed, due_sat=evidence.due_sat(row))


def agreed_sat(row: CableAggregate) -> int:
    """What may rightly be mined of an ended aggregate."""
    return row.accepted_sat if row.agreed_sat is None else row.agreed_sat


def judged(row: CableAggregate, mined: WalletTx, now_s: int) -> CableAggregate:
    """``row`` once its inputs were spent in a block by ``mined``."""
    paid_sat = mined.paid_to(row.script)
    if paid_sat > row.signed_sat:
        # Only this cable's node can have signed it, and the ledger knows of every version before it leaves: the ledger
        # is an older copy, and does not tell what was agreed.
        status = CableAggregateStatus.SETTLED
    elif row.due_sat is not None and paid_sat <= row.due_sat:
        status = CableAggregateStatus.SETTLED if paid_sat else CableAggregateStatus.VOID
    elif paid_sat > agreed_sat(row):
        status = CableAggregateStatus.CHEATED
    else:
        status = CableAggregateStatus.UNANSWERED
    return replace(row, status=status, mined_txid=mined.txid, mined_sat=paid_sat, closed_at=now_s)


def least_refund_msat(row: CableAggregate) -> int:
    """What has to come back at the least of what is owed for an UNANSWERED aggregate."""
    owed_msat = row.owed_sat * MSAT_PER_SAT
    return max(1, owed_msat - owed_msat * REFUND_FEE_PERCENT // 100 - REFUND_FEE_MSAT)


def check_honest(memory: CableAggregateStore, node_id: str) -> None:
    """Raises OfferError ``socket_cheated`` when this socket had more mined than agreed before, ``socket_owes`` when it
    owes something for more than one session."""
    row = memory.cheating_socket(node_id)
    if row is not None:
        raise OfferError(
            "socket_cheated",
            f"node {node_id} had {row.mined_sat} sat mined for session {row.session_id} ({row.mined_txid}) where "
            f"{agreed_sat(row)} sat were agreed, so nothing is bought there any more; `wattline cable forgive` lets it "
            "sell again",
        )
    owing = memory.unanswered(node_id)
    if len(owing) > FORBEARANCE:
        raise OfferError(
            "socket_owes",
            f"node {node_id} had more mined than was due for {len(owing)} sessions, {_owed(owing)}, and has sent none "
            f"of it back, so nothing is bought there until it does; `wattline cable forgive` lets it sell again",
        )


def warning_of(memory: CableAggregateStore, node_id: str) -> str | None:
    """What to know before a session is opened at a socket that is not refused; None when there is nothing. Raises the
    ledger's errors."""
    owing = memory.unanswered(node_id)
    if not owing:
        return None
    return (
        f"this socket owes something on-chain: {_owed(owing)}; it had that mined beyond what was due, and has not sent "
        "it back; should that happen again, nothing is bought there any more (socket_owes)"
    )


def _owed(rows: Sequence[CableAggregate]) -> str:
    return ", ".join(f"{row.owed_sat} sat for session {row.session_id}" for row in rows)


def forgive(memory: CableAggregateStore, node_id: str) -> int:
    """Let a socket sell again that cheated or owes something; how many of its sessions that concerns."""
    count = 0
    while (row := memory.cheating_socket(node_id)) is not None:
        memory.save(replace(row, status=CableAggregateStatus.SETTLED))
        count += 1
    for row in memory.unanswered(node_id):
        memory.save(replace(row, status=CableAggregateStatus.SETTLED))
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Aftermath:
    """Looks what was mined, now and at each later start. One confirmation is taken for the end: a reorg after it may
    bring another version, which this does not see. What a socket owes is looked for in the own node's invoices."""

    funds: PayingFunds
    memory: CableAggregateStore
    journal: Journal
    tell: Callable[[str], None]
    """Lines for people."""
    now: Callable[[], float]
    evidence: Callable[[str], Evidence]
    """All that the ledger holds of a session; raises its errors."""

    def is_over(self, session_id: str) -> bool:
        """Whether a block holds a spender of the inputs, which ends the session whatever the socket says. False when
        that is not known. Raises nothing."""
        try:
            row = self.memory.of(session_id)
            if row is None or not row.signed_sat:
                return False
            return row.mined_txid is not None or self._spender(row) is not None
        except WattlineError as error:
            self._tell_unknown(session_id, error)
            return False

    def look_at_all(self, but_not: str | None) -> None:
        """At a start: whatever is open, but the session ``but_not`` that is taken up again. Raises nothing."""
        try:
            rows = [row for row in self.memory.unfinished() if row.session_id != but_not]
            rows += self.memory.unanswered()
        except WattlineError as error:
            self.tell(f"the on-chain payments of earlier sessions cannot be read: {error.message}")
            return
        for row in rows:
            self.look(row, keep=True)

    def look(self, row: CableAggregate, *, keep: bool) -> CableAggregate:
        """``row`` as it is known now; ``keep``: reserve its inputs anew while it is not mined. Raises nothing."""
        try:
            return self._looked(row, keep)
        except WattlineError as error:
            self._tell_unknown(row.session_id, error)
            return row

    def wait(self, row: CableAggregate, timeout_s: float) -> CableAggregate:
        """The same at the end of a run, for a moment."""
        deadline = time.monotonic() + timeout_s
        while row.status.is_live:
            row = self.look(row, keep=False)
            if time.monotonic() >= deadline:
                break
            time.sleep(LOOK_S)
        return row

    def _looked(self, row: CableAggregate, keep: bool) -> CableAggregate:
        now_s = int(self.now())
        if row.status is CableAggregateStatus.OPEN or (row.status.is_live and row.due_sat is None):
            # Where that run died nobody knows how far the last version came, so it counts as credited.
            held_sat = row.signed_sat if row.status is CableAggregateStatus.OPEN else 0
            row = ended(row, self.evidence(row.session_id), now_s, held_sat)
            self.memory.save(row)
            if not row.status.is_live:
                self.funds.release(Base(row.base_psbt, row.inputs_weight))
                return row
        if row.status is CableAggregateStatus.UNANSWERED:
            return self._answered(row)
        if not row.status.is_live:
            return row
        mined = self._spender(row)
        if mined is not None:
            row = judged(row, mined, now_s)
            self.memory.save(row)
            if row.status is CableAggregateStatus.UNANSWERED:
                row = self._answered(row)
            self._tell(row)
        elif keep and agreed_sat(row):
            row = self._kept(row)
        return row

    def _kept(self, row: CableAggregate) -> CableAggregate:
        """``row``, its inputs reserved anew unless they have been for long enough."""
        height = self.funds.height()
        if not row.kept_from_height:
            row = replace(row, kept_from_height=height)
            self.memory.save(row)
        if height - row.kept_from_height < KEEP_BLOCKS:
            self.funds.renew(Base(row.base_psbt, row.inputs_weight))
        return row

    def _answered(self, row: CableAggregate) -> CableAggregate:
        """An UNANSWERED ``row``, SETTLED once what is owed has come back."""
        try:
            if not RefundSearch(self.journal, row.session_id, least_refund_msat(row)).found():
                return row
        except WattlineError as error:
            self.tell(f"the own node's invoices cannot be read: {error.message}")
            return row
        row = replace(row, status=CableAggregateStatus.SETTLED)
        self.memory.save(row)
        self.tell(f"what the socket owed for session {row.session_id} has come back")
        return row

    def _spender(self, row: CableAggregate) -> WalletTx | None:
        for item in row.inputs:
            found = self.funds.spender(item.outpoint)
            if found is not None and found.blockheight:
                return found
        return None

    def _tell_unknown(self, session_id: str, error: WattlineError) -> None:
        self.tell(f"what became of session {session_id} on-chain is not known: {error.message}")

    def _tell(self, row: CableAggregate) -> None:
        agreed = agreed_sat(row)
        if row.status is CableAggregateStatus.CHEATED:
            self.tell(
                f"warning: the socket {row.node_id} had {row.mined_sat} sat mined where {agreed} sat were agreed "
                f"({row.mined_txid}): {row.mined_sat - agreed} sat are lost, and it is refused from now on"
            )
        elif row.status is CableAggregateStatus.UNANSWERED:
            self.tell(
                f"warning: the socket {row.node_id} had {row.mined_sat} sat mined where {row.due_sat} sat are due "
                f"({row.mined_txid}): it owes {row.owed_sat} sat for session {row.session_id}, and is remembered until "
                "they come back over Lightning"
            )
        elif row.status is CableAggregateStatus.SETTLED:
            self.tell(f"session {row.session_id} is settled on-chain: {row.mined_sat} sat in {row.mined_txid}")


@dataclass(frozen=True, slots=True)
class Bill:
    """What a session can have come to by the cable's own account."""

    most_charge_msat: int
    """The highest charge that an honest meter can have come to."""
    keysend_msat: int
    """Surely arrived over Lightning."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """See the module."""

    bill: Bill | None = None
    """None: nothing is known of the session but its aggregate."""
    receipt: Receipt | None = None
    """Its signature was checked."""
    min_refund_msat: int = 0
    """Unused credit below this the socket keeps, by its offer."""

    def due_sat(self, row: CableAggregate) -> int:
        """The most that is due: the smaller of the cable's own account (the final version where one was signed, else
        the bill, at least the floor) and of what the receipt itself says is charged and taken."""
        due_sat, keysend_msat = row.signed_sat, 0
        if self.bill is not None:
            keysend_msat = self.bill.keysend_msat
            due_sat = min(due_sat, final_value_sat(self.bill.most_charge_msat, keysend_msat, row.floor_sat))
        if row.final_sat is not None:
            due_sat = row.final_sat
        told = self.receipt
        if told is None:
            return due_sat
        keysend_msat = max(keysend_msat, told.credited_msat - told.onchain_credited_msat)
        due_sat = min(due_sat, final_value_sat(told.charged_msat, keysend_msat, row.floor_sat))
        return min(due_sat + self._kept_sat, told.onchain_value_sat, row.signed_sat)

    @property
    def _kept_sat(self) -> int:
        """What a socket may keep, and says that it does."""
        told = self.receipt
        if told is None or told.refund_status != "kept":
            return 0
        kept_msat = told.credited_msat - told.charged_msat - told.refunded_msat
        return kept_msat // MSAT_PER_SAT if 0 < kept_msat < self.min_refund_msat else 0
