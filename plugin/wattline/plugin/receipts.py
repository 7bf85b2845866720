"""The final statements, signed by the node key and kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from wattline.core.aggregate import AggregateStatus
from wattline.core.ledger.ledger import Ledger
from wattline.core.ledger.outgoing import Purpose
from wattline.core.ledger.session_record import SessionRecord
from wattline.core.lightning.node import Signer
from wattline.core.lightning.signing import sign
from wattline.plugin.messages import receipt_message
from wattline.plugin.older_copy import OlderCopy
from wattline.plugin.sessions import UNPAID_KEPT
from wattline.v1 import charging_pb2 as pb

REFUND_SEQUENCE = 0
"""A session has one refund; its record carries this number (a cable's own payments begin with 1)."""


class Receipts:
    """Issues receipts of CLOSED sessions; the newest one stands."""

    def __init__(
        self,
        ledger: Ledger,
        signer: Signer,
        node_id: str,
        copy: OlderCopy,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._ledger = ledger
        self._copy = copy
        self._signer = signer
        self._node_id = node_id
        self._now = now
        self._lock = threading.Lock()
        self._unpaid: OrderedDict[str, pb.SignedReceipt] = OrderedDict()
        """Of sessions that were never paid for, by id: the ledger keeps none of them, and each is signed once."""

    def issue(self, record: SessionRecord) -> pb.SignedReceipt:
        """A receipt of the session as it stands in ``record``. Raises NodeUnavailable; then it is issued when somebody
        asks for it."""
        session_id = record.session.session_id
        content = self._message(record).SerializeToString(deterministic=True)
        if record.session.was_paid:
            signature = sign(self._signer, "receipt", content)
            self._copy.note(self._ledger.save_receipt(session_id, content, signature, self._now()))
            return pb.SignedReceipt(receipt=content, signature=signature)
        with self._lock:
            kept = self._unpaid.get(session_id)
        if kept is not None and kept.receipt == content:
            return kept
        # What is signed just now for two who ask at once is the same; the node is asked while nobody waits for a lock.
        signed = pb.SignedReceipt(receipt=content, signature=sign(self._signer, "receipt", content))
        with self._lock:
            self._unpaid[session_id] = signed
            while len(self._unpaid) > UNPAID_KEPT:
                self._unpaid.popitem(last=False)
        return signed

    def newest(self, record: SessionRecord) -> pb.SignedReceipt:
        """The one issued last; issued now when the plugin died before it could, or before it could say what became of
        a refund that was owed. Raises NodeUnavailable."""
        saved = self._ledger.receipt(record.session.session_id)
        if saved is None:
            return self.issue(record)
        # As it stands now: ``record`` may have been read before an owed refund was sent.
        now = self._ledger.session(record.session.session_id) or record
        self._copy.note(self._ledger.last_receipt_number())  # lightningd may have been away when it was issued
        if pb.Receipt.FromString(saved.content).refund_status != self._message(now).refund_status:
            return self.issue(now)
        return pb.SignedReceipt(receipt=saved.content, signature=saved.signature)

    def _message(self, record: SessionRecord) -> pb.Receipt:
        session_id = record.session.session_id
        refund = self._ledger.outgoing.of(Purpose.REFUND, session_id, REFUND_SEQUENCE)
        aggregate = self._ledger.aggregate(session_id)
        number = aggregate.chosen_number if aggregate is not None else None
        if aggregate is not None and aggregate.status is AggregateStatus.OPEN:
            # Not decided yet, for want of the chain: so much it may be.
            newest = self._ledger.newest_version(session_id)
            number = newest.number if newest is not None else None
        return receipt_message(
            record,
            self._node_id,
            refund.payment_hash if refund else "",
            self._ledger.onchain_credited_msat(session_id),
            self._ledger.version(session_id, number) if number is not None else None,
            is_from_older_copy=self._copy.concerns(session_id),
        )
