"""Paying on-chain: one transaction that grows, version after version, by one worker thread.

What becomes of each version it tells as the payments over Lightning do (:mod:`wattline.cable.policy.events`), and
besides what else happens to the transaction. What was handed over cannot be taken back, so the ledger knows the
value of every version before the socket does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from wattline.cable.link.stream import SocketStream
from wattline.cable.pay.versions import AggregateMaker, Tasks, terms_of
from wattline.cable.policy.events import (
    Arrived,
    DoubtsChecked,
    Failed,
    FinalFailed,
    FinalSigned,
    InDoubt,
    OnchainEvent,
    OnchainFailed,
    OnchainInvitation,
    OnchainReady,
    PaymentEvent,
    RefusedVersion,
    VersionAccepted,
    WantedVersion,
)
from wattline.cable.policy.onchain import Scope
from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.errors import RetryError, WattlineError
from wattline.core.increments import BELOW_MIN_INCREMENT
from wattline.core.ledger.cable import CableAggregate
from wattline.core.ledger.database import LedgerBusy

ANSWER_S = 10.0
"""How long the socket may take to answer a version; one takes some ten milliseconds."""
OUT_OF_STEP = frozenset({"bad_version", "value_not_larger"})
"""The socket holds something else than this side believes: it is asked what."""
LATER = frozenset({"onchain_unavailable", "too_many_attempts"})
"""The socket did not look at what was asked for."""
PASSING = OUT_OF_STEP | LATER | {"exposure_cap", "credit_cap", "policy", "session_closed", BELOW_MIN_INCREMENT}
"""What a later version may not be refused for. All other reasons hold for every version of this transaction."""


@dataclass(frozen=True, slots=True)
class _Version:
    """One that is signed, and perhaps handed over."""

    number: int
    value_sat: int
    psbt: bytes
    sequence: int = 0
    amount_msat: int = 0
    began: float = 0.0

    def is_named_by(self, invitation: OnchainInvitation) -> bool:
        """Whether the socket says that this is the newest one that it holds."""
        return (invitation.newest_number, invitation.newest_value_sat) == (self.number, self.value_sat)


class OnchainPayments:
    """Pays one session. All methods return at once; ``emit`` is called from the worker."""

    def __init__(
        self,
        maker: AggregateMaker,
        stream: SocketStream,
        emit: Callable[[PaymentEvent | OnchainEvent], None],
        timeout_s: float | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._maker = maker
        self._memory = maker.memory
        self._stream = stream
        self._emit = emit
        self._timeout_s = ANSWER_S if timeout_s is None else timeout_s
        self._worker = executor or ThreadPoolExecutor(1, thread_name_prefix="cable-onchain")
        self._tasks = Tasks(self._worker, self._broken)
        self._signature = ""
        # From here on the worker's own; others read them at the most.
        self._row: CableAggregate | None = None
        self._newest_number = 0
        self._underway: _Version | None = None
        self._answer_due: float | None = None
        """Until when the answer to it is waited for (monotonic); None when it is not, or not any more."""
        self._final: _Version | None = None
        self._wanted_sat: int | None = None
        """The final version that is made as soon as the one underway is resolved."""
        self._unsettled: tuple[OnchainInvitation, Scope] | None = None
        """What the socket said that it holds while another version was under way: true if that one is refused."""

    # For the deciding thread.

    @property
    def txids(self) -> dict[int, str]:
        """The txid of every version of this run, by its value in sat."""
        return dict(self._maker.txids)

    def ask(self) -> None:
        """Ask the socket for an address, or what it holds; its answer goes to :meth:`on_invitation`."""
        self._tasks.put("ask", self._ask)

    def on_invitation(self, invitation: OnchainInvitation, scope: Scope) -> None:
        """Choose and reserve inputs for a session within ``scope``, or take up what there is."""
        self._tasks.put("invited", lambda: self._invited(invitation, scope))

    def on_answer(self, answer: VersionAccepted | RefusedVersion) -> None:
        """The socket's answer to a version; one that nobody waits for is dropped."""
        version = self._underway
        if version is not None and answer.number == version.number:
            self._tasks.put("answer", lambda: self._answered(answer))

    def on_final_taken(self) -> None:
        """The socket says that it has the final version."""
        self._tasks.put("taken", self._final_taken)

    def on_stream_renewed(self) -> None:
        """What was said into the stream that broke may not have been heard."""
        self._tasks.put("renewed", self._say_again)

    def pay(self, sequence: int, amount_msat: int, wanted: WantedVersion) -> None:
        """Sign and hand over the version ``wanted``, which pays ``amount_msat`` (whole sats) more than the socket has
        credited. Where it has credited something else meanwhile, none is signed, and that is told."""
        self._tasks.put("pay", lambda: self._pay(sequence, amount_msat, wanted))

    def resolve(self, sequences: Iterable[int], resend: bool) -> None:
        """Hand the version in doubt over again, if ``resend``: the socket counts it once."""
        del sequences  # there is but one
        self._tasks.put("resolve", lambda: self._resolve(resend))

    def sign_final(self, value_sat: int) -> None:
        """Sign the one final version and hand it over; told again, the same one is handed over again."""
        self._tasks.put("final", lambda: self._sign_final(value_sat))

    def tick(self) -> None:
        """To be called every now and then: a version that is not answered in time is in doubt."""
        due = self._answer_due
        if due is not None and time.monotonic() >= due:
            self._tasks.put("late", self._late)

    def keep_reserved(self) -> None:
        """Reserve the inputs anew when blocks have passed."""
        self._tasks.put("keep", lambda: self._maker.keep_reserved(self._row) if self._row is not None else None)

    def end(self, finish: Callable[[CableAggregate, int], CableAggregate], timeout_s: float) -> CableAggregate | None:
        """Write down how the aggregate ends, as ``finish`` says of it and of what the socket may hold
        (sat); None when there is none. Nothing is done after that, and nothing before it but what the worker is at.
        Raises the ledger's errors, TimeoutError."""
        ending: Future[CableAggregate | None] = Future()

        def write() -> None:
            try:
                ending.set_result(self._end(finish))
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                ending.set_exception(error)

        if not self._tasks.put_first(write):
            raise TimeoutError("the on-chain payment was stopped already")
        return ending.result(timeout_s)

    def stop(self) -> None:
        """Begin nothing any more."""
        self._tasks.halt()
        self._worker.shutdown(wait=False, cancel_futures=True)

    # The worker. It waits for its own node and ledger alone, which answer or fail in time; never for the socket.

    def _broken(self, error: Exception) -> None:
        self._emit(OnchainFailed("payer_broken", f"{type(error).__name__}: {error}", passing=False))

    def _ask(self) -> None:
        try:
            self._signature = self._signature or self._maker.signature()
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, isinstance(error, RetryError)))
            return
        # Into a stream that is cut it is not said; it is asked again when that is renewed.
        self._stream.onchain_request(self._signature)

    def _invited(self, invitation: OnchainInvitation, scope: Scope) -> None:
        try:
            row = self._row or self._memory.of(self._maker.session_id)
            version = self._underway
            if row is not None and version is not None and not version.is_named_by(invitation):
                self._unsettled = invitation, scope
                return
            row = self._maker.prepared(invitation, scope) if row is None else self._maker.taken_up(row, invitation)
            if version is not None:
                self._accepted(row, version)  # it names what is under way: as good as its answer
            self._newest_number = invitation.newest_number
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, isinstance(error, RetryError)))
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing was handed over
            self._emit(OnchainFailed("payer_broken", f"{type(error).__name__}: {error}", passing=False))
        else:
            self._row = row
            terms = terms_of(row, invitation.rules)
            self._emit(OnchainReady(terms, row.signed_sat, row.accepted_sat, self._newest_number))
            self._sign_wanted()

    def _pay(self, sequence: int, amount_msat: int, wanted: WantedVersion) -> None:
        row, value_sat = self._row, wanted.value_sat
        if row is None or self._underway is not None or row.final_sat is not None:
            self._emit(Failed(sequence, amount_msat, "onchain_not_ready", "no version can be made just now"))
            return
        if row.accepted_sat + amount_msat // MSAT_PER_SAT != value_sat:
            # What was decided on was reckoned from another version than the socket holds by now.
            message = f"the socket has credited {row.accepted_sat} sat meanwhile"
            self._emit(Failed(sequence, amount_msat, "onchain_not_ready", message, accepted_sat=row.accepted_sat))
            return
        try:
            psbt = self._maker.signed(row, value_sat, wanted.most_sat)
            version = _Version(self._newest_number + 1, value_sat, psbt, sequence, amount_msat, began=time.monotonic())
            self._row = row = replace(
                row, number=max(row.number, version.number), signed_sat=max(row.signed_sat, value_sat)
            ).signed_now(self._maker.now())
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
        self._answer_due = time.monotonic() + self._timeout_s
        self._say_again()

    def _say_again(self) -> None:
        """Hand the version underway over, for the first time or again."""
        version = self._underway
        if version is not None:
            self._stream.aggregate_version(version.number, version.psbt, False)

    def _answered(self, answer: VersionAccepted | RefusedVersion) -> None:
        row, version = self._row, self._underway
        if row is None or version is None or answer.number != version.number:
            return  # it was resolved meanwhile
        match answer:
            case VersionAccepted(value_sat=value_sat) if value_sat == version.value_sat:
                self._accepted(row, version)
            case VersionAccepted(value_sat=value_sat) if value_sat in self._maker.txids:
                # An earlier one of the same number, which it had refused or not answered.
                self._row = row = replace(row, accepted_sat=max(row.accepted_sat, value_sat))
                self._ask()
                message = f"the socket credits the version of {value_sat} sat in its place"
                self._failed(row, version, "bad_version", message, final=False)
            case VersionAccepted(value_sat=value_sat):
                message = f"the socket credits {value_sat} sat for a version of {version.value_sat} sat"
                self._failed(row, version, "onchain_mismatch", message, final=True)
            case RefusedVersion(code=code, message=message):
                if code in OUT_OF_STEP:
                    self._ask()
                self._failed(row, version, code, f"{code}: {message}", final=code not in PASSING)
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is not None and isinstance(answer, RefusedVersion):
            self._invited(*unsettled)
        self._sign_wanted()

    def _sign_wanted(self) -> None:
        """The final version that was asked for while it was not known what the socket holds."""
        if self._wanted_sat is not None and self._underway is None:
            self._sign_final(self._wanted_sat)

    def _late(self) -> None:
        row, version = self._row, self._underway
        if row is None or version is None or self._answer_due is None or time.monotonic() < self._answer_due:
            return
        self._answer_due = None
        self._emit(InDoubt(version.sequence, version.amount_msat, "the socket has not answered yet", row.signed_sat))

    def _accepted(self, row: CableAggregate, version: _Version) -> None:
        self._underway = self._answer_due = self._unsettled = None
        self._newest_number = version.number
        self._row = replace(row, accepted_sat=version.value_sat)
        try:
            self._memory.save(self._row)
        except LedgerBusy:
            pass  # the socket can be asked for it, and it is written with the next version
        except WattlineError as error:
            self._emit(OnchainFailed(error.code, error.message, passing=False))
        duration_ms = int((time.monotonic() - version.began) * 1000)
        amount_msat, row = version.amount_msat, self._row
        self._emit(Arrived(version.sequence, amount_msat, amount_msat, duration_ms, row.signed_sat, row.accepted_sat))

    def _failed(self, row: CableAggregate, version: _Version, code: str, message: str, *, final: bool) -> None:
        self._underway = self._answer_due = None
        self._emit(
            Failed(
                version.sequence,
                version.amount_msat,
                code,
                message,
                True,
                final=final,
                signed_sat=row.signed_sat,
                accepted_sat=row.accepted_sat,
            )
        )

    def _resolve(self, resend: bool) -> None:
        if resend:
            self._say_again()
        self._emit(DoubtsChecked("" if self._underway is None else "not resolved", "onchain"))

    def _sign_final(self, value_sat: int) -> None:
        row = self._row
        if row is None or (row.final_sat is not None and row.final_sat != value_sat):
            already = row.final_sat if row is not None else None
            self._emit(FinalFailed(f"a final version of {value_sat} sat is wanted, one of {already} sat was signed"))
            return
        if self._underway is not None:
            # Its number tells that of the final one, which is made when the answer comes.
            self._wanted_sat = value_sat
            self._say_again()
            self._emit(FinalFailed("it is not known yet what the socket holds"))
            return
        self._wanted_sat = None
        try:
            if self._final is None:
                self._final = self._made_final(row, value_sat)
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
        # It takes the place of what the socket holds already.
        psbt = self._maker.signed(row, value_sat, most_sat=row.signed_sat)
        version = _Version(self._newest_number + 1, value_sat, psbt)
        # Written first: whatever happens, there is never a second one of another value.
        row = replace(
            row,
            number=max(row.number, version.number),
            signed_sat=max(row.signed_sat, value_sat),
            final_sat=value_sat,
        ).signed_now(self._maker.now())
        self._memory.save(row)
        self._row = row
        return version

    def _final_taken(self) -> None:
        row = self._row
        if row is None or row.final_sat is None or row.is_final_taken:
            return
        self._row = replace(row, is_final_taken=True)
        try:
            self._memory.save(self._row)
        except WattlineError:
            return  # it is written with the end; without it the socket is judged more mildly

    def _end(self, finish: Callable[[CableAggregate, int], CableAggregate]) -> CableAggregate | None:
        row = self._row
        if row is None:
            row = self._memory.of(self._maker.session_id)
            if row is None:
                return None
            held_sat = row.signed_sat  # of an earlier run, and the socket has not said what it holds of it
        else:
            # The socket may have credited what is under way: so much it may rightly take.
            held_sat = self._underway.value_sat if self._underway is not None else row.accepted_sat
        self._row = finish(row, held_sat)
        self._memory.save(self._row)
        self._tasks.halt()
        if not self._row.status.is_live or self._row.agreed_sat == 0:
            self._maker.release(self._row)
        return self._row
