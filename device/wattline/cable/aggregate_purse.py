"""Paying on-chain: one transaction that grows, version after version, by one worker thread.

The same interface as :class:`wattline.cable.purse.Purse`; what it tells besides is in
:mod:`wattline.cable.onchain_event`. What was handed over cannot be taken back, so the ledger knows the value of every
version before the socket does.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from wattline.cable.aggregate_maker import AggregateMaker, PayingNode, terms_of
from wattline.cable.funding import Scope
from wattline.cable.memory import AggregateMemory
from wattline.cable.messages import OnchainInvitation, VersionAccepted, VersionRefused
from wattline.cable.onchain_event import FinalFailed, FinalSigned, OnchainEvent, OnchainFailed, OnchainReady
from wattline.cable.onchain_rules import OnchainRefused
from wattline.cable.purse import Arrived, DoubtsChecked, Failed, InDoubt, PaymentEvent
from wattline.cable.settings import OnchainSettings
from wattline.errors import RetryError, WattlineError
from wattline.ledger import CableAggregate, LedgerBusy
from wattline.lightning.onchain import PayingFunds
from wattline.lightning.signing import onchain_content, sign
from wattline.payment.aggregate import MSAT_PER_SAT

ANSWER_S = 10.0
"""How long the socket may take to answer a version; one takes some ten milliseconds."""
OUT_OF_STEP = frozenset({"bad_version", "value_not_larger"})
"""The socket holds something else than this side believes: it is asked what."""
PASSING = OUT_OF_STEP | {"exposure_cap", "credit_cap", "policy", "session_closed", "onchain_unavailable"}
"""What a later version may not be refused for. All other reasons hold for every version of this transaction."""


class VersionStream(Protocol):
    """The way to the socket; :class:`wattline.cable.connection.Connection`. False: the stream is cut just now."""

    def onchain_request(self, signature: str) -> bool: ...

    def aggregate_version(self, number: int, psbt: bytes, is_final: bool) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Version:
    """One that is signed, and perhaps handed over."""

    number: int
    value_sat: int
    psbt: bytes
    sequence: int = 0
    amount_msat: int = 0
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class _Wake:
    """Something has happened to whoever waits for an answer."""

    renewed: bool
    """The stream is new: say it again. Else: wait no longer."""


class AggregatePurse:
    """Pays one session. All methods return at once; ``emit`` is called from the worker."""

    def __init__(
        self,
        funds: PayingFunds,
        memory: AggregateMemory,
        node: PayingNode,
        settings: OnchainSettings,
        session_id: str,
        socket_node_id: str,
        stream: VersionStream,
        emit: Callable[[PaymentEvent | OnchainEvent], None],
        now: Callable[[], float],
        timeout_s: float | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._socket_node_id = socket_node_id
        self._maker = AggregateMaker(funds, memory, node, settings, session_id, socket_node_id, now)
        self._memory = memory
        self._node = node
        self._session_id = session_id
        self._stream = stream
        self._emit = emit
        self._timeout_s = ANSWER_S if timeout_s is None else timeout_s
        self._worker = executor or ThreadPoolExecutor(1, thread_name_prefix="cable-onchain")
        self._mail: queue.SimpleQueue[VersionAccepted | VersionRefused | _Wake] = queue.SimpleQueue()
        self._signature = ""
        # From here on the worker's own.
        self._row: CableAggregate | None = None
        self._newest_number = 0
        self._underway: _Version | None = None
        self._final: _Version | None = None

    # For the deciding thread.

    @property
    def txids(self) -> dict[int, str]:
        """The txid of every version of this run, by its value in sat."""
        return dict(self._maker.txids)

    def ask(self) -> None:
        """Ask the socket for an address, or what it holds; its answer goes to :meth:`on_invitation`."""
        self._submit(self._ask)

    def on_invitation(self, invitation: OnchainInvitation, scope: Scope) -> None:
        """Choose and reserve inputs for a session within ``scope``, or take up what there is."""
        self._submit(lambda: self._invited(invitation, scope))

    def on_answer(self, answer: VersionAccepted | VersionRefused) -> None:
        """The socket's answer to a version."""
        self._mail.put(answer)

    def on_stream_renewed(self) -> None:
        """What was said into the stream that broke may not have been heard."""
        self._mail.put(_Wake(renewed=True))

    def pay(self, sequence: int, amount_msat: int, maxfee_msat: int) -> None:
        """Sign and hand over a version that pays ``amount_msat`` (whole sats) more than the socket has credited."""
        del maxfee_msat  # the miner's fee is the same for every version
        self._submit(lambda: self._pay(sequence, amount_msat))

    def resolve(self, sequences: Iterable[int], resend: bool) -> None:
        """Hand the version in doubt over again, if ``resend``: the socket counts it once."""
        del sequences  # there is but one
        self._submit(lambda: self._resolve(resend))

    def sign_final(self, value_sat: int) -> None:
        """Sign the one final version and hand it over; told again, the same one is handed over again."""
        self._mail.put(_Wake(renewed=False))
        self._submit(lambda: self._sign_final(value_sat))

    def keep_reserved(self) -> None:
        """Reserve the inputs anew when blocks have passed."""
        self._submit(lambda: self._maker.keep_reserved(self._row) if self._row is not None else None)

    def end(self, finish: Callable[[CableAggregate], CableAggregate], timeout_s: float) -> CableAggregate | None:
        """Write down how the aggregate ends, as ``finish`` says, in place of what it is; None when there is none. Waits
        for the worker. Raises the ledger's errors, TimeoutError."""
        self._mail.put(_Wake(renewed=False))
        future: Future[CableAggregate | None] = self._worker.submit(self._end, finish)
        return future.result(timeout_s)

    def stop(self) -> None:
        """Begin nothing any more."""
        self._mail.put(_Wake(renewed=False))
        self._worker.shutdown(wait=False, cancel_futures=True)

    # The worker.

    def _submit(self, task: Callable[[], None]) -> None:
        try:
            self._worker.submit(task)
        except RuntimeError:
            return  # stopped meanwhile: nothing is begun any more

    def _ask(self) -> None:
        try:
            self._signature = self._signature or sign(
                self._node, "onchain", onchain_content(self._socket_node_id, self._session_id)
            )
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, isinstance(error, RetryError)))
            return
        # Into a stream that is cut it is not said; it is asked again when that is renewed.
        self._stream.onchain_request(self._signature)

    def _invited(self, invitation: OnchainInvitation, scope: Scope) -> None:
        try:
            row = self._row or self._memory.of(self._session_id)
            row = self._maker.prepared(invitation, scope) if row is None else self._maker.taken_up(row, invitation)
            self._newest_number = invitation.newest_number
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, isinstance(error, RetryError)))
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing was handed over
            self._emit(OnchainFailed("payer_broken", f"{type(error).__name__}: {error}", passing=False))
        else:
            self._row = row
            terms = terms_of(row, invitation.rules)
            self._emit(OnchainReady(terms, row.signed_sat, row.accepted_sat, self._newest_number))

    def _pay(self, sequence: int, amount_msat: int) -> None:
        row = self._row
        if row is None or self._underway is not None or self._final is not None:
            self._emit(Failed(sequence, amount_msat, "onchain_not_ready", "no version can be made just now"))
            return
        try:
            value_sat = row.accepted_sat + amount_msat // MSAT_PER_SAT
            psbt = self._maker.signed(row, value_sat)
            version = _Version(self._newest_number + 1, value_sat, psbt, sequence, amount_msat, began=time.monotonic())
            self._row = row = replace(
                row, number=max(row.number, version.number), signed_sat=max(row.signed_sat, value_sat)
            )
            self._memory.save(row)
        except WattlineError as error:
            # It has not left. What the ledger may have counted stays counted.
            is_final = not isinstance(error, RetryError)
            self._emit(
                Failed(sequence, amount_msat, error.code, error.message, final=is_final, signed_sat=row.signed_sat)
            )
            return
        except Exception as error:  # noqa: BLE001 - nothing has left
            message = f"{type(error).__name__}: {error}"
            self._emit(Failed(sequence, amount_msat, "payer_broken", message, final=True, signed_sat=row.signed_sat))
            return
        self._underway = version
        self._hand_over(version)

    def _hand_over(self, version: _Version) -> None:
        """Hand ``version`` over and wait for what becomes of it, which is told."""
        self._clear_mail()
        self._say(version)
        answer = self._answer_to(version)
        row = self._row
        assert row is not None
        match answer:
            case VersionAccepted(value_sat=value_sat) if value_sat == version.value_sat:
                self._accepted(row, version)
            case VersionAccepted(value_sat=value_sat):
                message = f"the socket credits {value_sat} sat for a version of {version.value_sat} sat"
                self._failed(row, version, "onchain_mismatch", message, final=True)
            case VersionRefused(code=code, message=message):
                if code in OUT_OF_STEP:
                    self._ask()
                self._failed(row, version, code, f"{code}: {message}", final=code not in PASSING)
            case None:
                message = "the socket has not answered yet"
                self._emit(InDoubt(version.sequence, version.amount_msat, message, row.signed_sat))

    def _say(self, version: _Version) -> None:
        self._stream.aggregate_version(version.number, version.psbt, False)

    def _answer_to(self, version: _Version) -> VersionAccepted | VersionRefused | None:
        """None when there is none in time: the version may be credited yet."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                mail = self._mail.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(mail, _Wake):
                if not mail.renewed:
                    return None
                self._say(version)
            elif mail.number == version.number:
                return mail

    def _clear_mail(self) -> None:
        while not self._mail.empty():
            self._mail.get()

    def _accepted(self, row: CableAggregate, version: _Version) -> None:
        self._underway = None
        self._newest_number = version.number
        self._row = replace(row, accepted_sat=version.value_sat)
        try:
            self._memory.save(self._row)
        except LedgerBusy:
            pass  # the socket can be asked for it, and it is written with the next version
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, passing=False))
        duration_ms = int((time.monotonic() - version.began) * 1000)
        self._emit(
            Arrived(version.sequence, version.amount_msat, version.amount_msat, duration_ms, self._row.signed_sat)
        )

    def _failed(self, row: CableAggregate, version: _Version, code: str, message: str, *, final: bool) -> None:
        self._underway = None
        self._emit(
            Failed(version.sequence, version.amount_msat, code, message, True, final=final, signed_sat=row.signed_sat)
        )

    def _resolve(self, resend: bool) -> None:
        version = self._underway
        if version is not None and resend:
            self._hand_over(version)
        self._emit(DoubtsChecked("" if self._underway is None else "not resolved", "onchain"))

    def _sign_final(self, value_sat: int) -> None:
        row = self._row
        if row is None or (row.final_sat is not None and row.final_sat != value_sat):
            already = row.final_sat if row is not None else None
            self._emit(FinalFailed(f"a final version of {value_sat} sat is wanted, one of {already} sat was signed"))
            return
        try:
            if self._underway is not None:
                self._hand_over(self._underway)  # its number tells that of the final one
            if self._final is None:
                self._final = self._made_final(self._row or row, value_sat)
        except WattlineError as error:
            self._emit(FinalFailed(error.message))
            return
        except Exception as error:  # noqa: BLE001 - the newest version stands then
            self._emit(FinalFailed(f"{type(error).__name__}: {error}"))
            return
        if self._stream.aggregate_version(self._final.number, self._final.psbt, True):
            self._emit(FinalSigned(value_sat))
        else:
            self._emit(FinalFailed("the stream is cut just now"))

    def _made_final(self, row: CableAggregate, value_sat: int) -> _Version:
        if self._underway is not None:
            raise OnchainRefused("onchain_not_ready", "it is not known what the socket holds")
        psbt = self._maker.signed(row, value_sat)
        version = _Version(self._newest_number + 1, value_sat, psbt)
        # Written first: whatever happens, there is never a second one of another value.
        row = replace(
            row,
            number=max(row.number, version.number),
            signed_sat=max(row.signed_sat, value_sat),
            final_sat=value_sat,
        )
        self._memory.save(row)
        self._row = row
        return version

    def _end(self, finish: Callable[[CableAggregate], CableAggregate]) -> CableAggregate | None:
        row = self._row or self._memory.of(self._session_id)
        if row is None:
            return None
        if self._underway is not None:
            # The socket may have credited it: so much it may rightly take.
            row = replace(row, accepted_sat=max(row.accepted_sat, self._underway.value_sat))
        self._row = finish(row)
        self._memory.save(self._row)
        if not self._row.status.is_live or self._row.agreed_sat == 0:
            self._maker.release(self._row)
        return self._row
