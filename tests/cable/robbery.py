"""Ways of a socket to take more of an on-chain session than is due, and honest sockets beside them: one suite, for a
fake chain and for real nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.cable.conftest import Bench
from tests.cable.fake_funds import FakeAggregate
from tests.cable.fakes import Account, wait_for
from tests.cable.test_onchain import dear
from wattline.core.ledger.cable import CableAggregate, CableAggregateStatus
from wattline.v1 import charging_pb2 as pb

LOOT_SAT = 150
"""So much more than is due the newest version pays at the least before a socket strikes."""
FLOOD = 300


@dataclass(frozen=True, slots=True)
class Way:
    """What a socket does; ``session`` runs one session to the end of its cable and has something mined of it."""

    session: Callable[[Robbery], None]
    verdict: str
    """How the cable answers when it is asked to buy again; empty for an honest socket."""


class Robbery:
    """One socket and one cable; ``rng`` chooses the moments."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.rng = bench, Random(seed)
        bench.payment["method"] = "onchain"
        dear(bench)
        bench.limits["energy_tolerance_uwh"] = 40_000
        bench.socket.tick_s = 0.1
        self._honest = dict(vars(bench.socket))

    def prove(self, way: Way) -> None:
        """Let the socket do it, twice where once is forgiven, and see what the cable makes of it."""
        for _ in range(1 if way.verdict == "socket_cheated" else 2):
            self._behave()
            way.session(self)
        self._behave()
        if not way.verdict:
            self.begin()
            self.end()
            assert not [line for line in self.bench.listener.lines if line.startswith("warning")], self.lines
            accused = {CableAggregateStatus.CHEATED, CableAggregateStatus.UNANSWERED}
            assert not {row.status for row in self.rows} & accused, self.rows
            return
        self.bench.wish.__init__()  # type: ignore[misc]
        summary = self.bench.run()
        assert summary.stop_reason == way.verdict, (summary.stop_reason, summary.message, self.lines)
        assert any(line.startswith("warning: the socket") for line in self.lines), self.lines

    def _behave(self) -> None:
        """The socket is honest again, until the next session."""
        names = ["lie_receipt", "lie_final", "swallows_finals", "refuses_finals", "gives_receipt", "loses_answers"]
        names += ["refuse_versions", "refund_to", "delivers", "is_away", "final_timeout_s"]
        for name in names:
            setattr(self.bench.socket, name, self._honest[name])

    # What is seen.

    @property
    def lines(self) -> list[str]:
        return self.bench.listener.lines

    @property
    def rows(self) -> list[CableAggregate]:
        found = [self.bench.ledger.cable_aggregates.of(session_id) for session_id in self.bench.socket.sessions]
        return [row for row in found if row is not None]

    @property
    def account(self) -> Account:
        return self.bench.socket.session

    @property
    def held(self) -> FakeAggregate:
        return self.account.onchain or FakeAggregate("", "")

    @property
    def newest(self) -> bytes:
        return self.held.psbts[self.held.txids[self.held.number]]

    @property
    def chosen(self) -> bytes:
        """What the socket's receipt names."""
        return self.held.psbts[self.held.chosen]

    # What is done.

    def begin(self) -> None:
        """A new session, after whatever the start makes of the last one."""
        self.bench.wish.__init__()  # type: ignore[misc]
        count = len(self.bench.socket.sessions)
        self.bench.start()
        wait_for(lambda: len(self.bench.socket.sessions) > count, 30, f"a session; {self.lines}")

    def grow(self) -> None:
        """Until the newest version pays more than is due, at a moment that chance chooses; then nothing flows."""
        wanted = self.rng.randint(3, 6)
        loot_sat = LOOT_SAT + self.rng.randint(0, 60)

        def is_ripe() -> bool:
            charged_msat = self.bench.socket.charged_msat(self.account)
            return self.held.number >= wanted and self.held.value_sat * 1000 - charged_msat > loot_sat * 1000

        self.bench.socket.when(is_ripe, lambda: setattr(self.bench.socket, "delivers", False))
        wait_for(lambda: not self.bench.socket.delivers, 30, f"something to take; {self.held} {self.lines}")

    def hold_one_back(self) -> None:
        """The next version is credited, and never answered."""
        before = self.held.number
        self.bench.socket.loses_answers = 10**6
        self.bench.socket.delivers = True
        wait_for(lambda: self.held.number > before, 30, f"a version that is not answered; {self.lines}")
        self.bench.socket.delivers = False

    def end(self) -> None:
        """The cable has had enough."""
        self.bench.finish()

    def kill(self) -> None:
        """The cable dies; its socket ends the session."""
        self.bench.crash()
        self.bench.socket.close_session(self.account, "cable_lost")

    def be_silent(self) -> None:
        """No word of the final version, no receipt, no refund."""
        socket = self.bench.socket
        socket.swallows_finals, socket.gives_receipt = True, False
        socket.refund_to = lambda description, amount: None
        socket.final_timeout_s = 0.4

    def mine(self, psbt: bytes) -> None:
        self.bench.mine(psbt)


# More than is due.


def newest_instead_of_final(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.end()
    robbery.mine(robbery.newest)


def unanswered_flooded_and_signed_for_less(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.hold_one_back()
    value_sat = robbery.held.value_sat

    def less(receipt: pb.Receipt) -> None:
        receipt.onchain_value_sat = min(902, value_sat - 100)

    robbery.bench.socket.lie_receipt = less
    robbery.bench.socket.final_timeout_s = 0.4
    robbery.bench.socket.close_session(robbery.account, "operator_stopped", due_at_once=3)
    robbery.bench.wait()
    robbery.mine(robbery.newest)


def unanswered_and_no_receipt(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.hold_one_back()
    robbery.be_silent()
    robbery.bench.socket.close_session(robbery.account, "operator_stopped", due_at_once=3)
    robbery.bench.wait()
    robbery.mine(robbery.newest)


def silent_at_the_end(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.end()
    robbery.mine(robbery.newest)


def final_taken_but_no_receipt(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.bench.socket.gives_receipt = False
    robbery.end()
    robbery.mine(robbery.newest)


def charges_for_what_it_did_not_deliver(robbery: Robbery) -> None:
    """Its receipt admits all of the newest version as debt."""
    robbery.begin()
    robbery.grow()

    def dear_final(due: pb.FinalDue) -> None:
        due.value_sat = robbery.held.value_sat
        due.charged_msat = due.value_sat * 1000 - 1

    def dear_receipt(receipt: pb.Receipt) -> None:
        receipt.charged_msat, receipt.balance_msat, receipt.refunded_msat = receipt.credited_msat, 0, 0
        receipt.returned_msat, receipt.onchain_value_sat = 0, robbery.held.value_sat
        receipt.refund_status = pb.REFUND_STATUS_NONE

    robbery.bench.socket.lie_final = dear_final
    robbery.bench.socket.lie_receipt = dear_receipt
    robbery.bench.socket.refund_to = lambda description, amount: None
    robbery.bench.socket.final_timeout_s = 0.4
    robbery.end()
    robbery.mine(robbery.newest)


def receipt_names_another_transaction(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.bench.socket.lie_receipt = lambda receipt: setattr(receipt, "onchain_txid", "ee" * 32)
    robbery.end()
    robbery.mine(robbery.newest)


def signs_that_it_takes_nothing(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()

    def nothing(receipt: pb.Receipt) -> None:
        receipt.onchain_value_sat, receipt.onchain_txid = 0, ""

    robbery.bench.socket.lie_receipt = nothing
    robbery.end()
    robbery.mine(robbery.newest)


def receipt_of_another_session(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.bench.socket.swallows_finals = True
    robbery.bench.socket.final_timeout_s = 0.4
    robbery.bench.socket.lie_receipt = lambda receipt: setattr(receipt, "session_id", "0" * 26)
    robbery.bench.socket.refund_to = lambda description, amount: None
    robbery.end()
    robbery.mine(robbery.newest)


def refused_and_mined(robbery: Robbery) -> None:
    """A version that it would not credit."""
    robbery.begin()
    robbery.grow()
    refused: list[int] = []

    def refuse(number: int, value_sat: int) -> tuple[str, str] | None:
        if not refused:
            refused.append(value_sat)
            return "policy", "the mempool would not take it"
        return None

    robbery.bench.socket.refuse_versions = refuse
    robbery.bench.socket.delivers = True
    wait_for(lambda: refused, 30, f"a version to refuse; {robbery.lines}")
    robbery.bench.socket.delivers = False
    robbery.end()
    held = robbery.held
    (psbt,) = [psbt for txid, psbt in held.psbts.items() if txid not in held.held]
    robbery.mine(psbt)


def claimed_refused_and_mined(robbery: Robbery) -> None:
    """By an invitation it says that it holds the version under way, and then that it does not."""
    robbery.begin()
    robbery.grow()
    robbery.hold_one_back()
    socket, held = robbery.bench.socket, robbery.held
    socket._invite(robbery.account, "")
    wait_for(lambda: robbery.rows[-1].accepted_sat == held.value_sat, 30, f"its claim to be taken up; {robbery.lines}")
    refused = pb.VersionRefused(number=held.number, code="policy", message="not any more")
    socket._send(robbery.account, pb.ChargeResponse(version_refused=refused))
    robbery.be_silent()
    robbery.end()
    robbery.mine(robbery.newest)


def flood(robbery: Robbery) -> None:
    """Of everything that it may say, while it ends the session in silence."""
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.bench.socket.flood(robbery.account, FLOOD)
    robbery.end()
    robbery.bench.socket.flood(robbery.account, FLOOD)
    assert len(robbery.lines) < 150, robbery.lines
    robbery.mine(robbery.newest)


def mined_in_mid_session(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.mine(robbery.newest)
    robbery.end()


def killed_in_mid_session(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.kill()
    robbery.mine(robbery.newest)


def killed_and_never_found_again(robbery: Robbery) -> None:
    """The socket answers nobody after that; what it did is noticed at the next start all the same."""
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.kill()
    robbery.mine(robbery.newest)
    robbery.bench.socket.is_away = True
    robbery.bench.run()
    assert robbery.rows[-1].status is CableAggregateStatus.UNANSWERED, robbery.lines


def killed_between_version_and_answer(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.hold_one_back()
    robbery.be_silent()
    robbery.kill()
    robbery.mine(robbery.newest)


def killed_and_signed_for_less(robbery: Robbery) -> None:
    """The receipt comes only when the cable looks for its session; and the socket has another version mined."""
    robbery.begin()
    robbery.grow()
    robbery.bench.socket.swallows_finals = True
    robbery.bench.socket.final_timeout_s = 0.4
    value_sat = robbery.held.value_sat
    robbery.bench.socket.lie_receipt = lambda receipt: setattr(receipt, "onchain_value_sat", value_sat - LOOT_SAT)
    robbery.kill()
    robbery.mine(robbery.newest)


def killed_after_the_final_version(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.be_silent()
    robbery.bench.socket.final_timeout_s = 2.0
    robbery.bench.wish.want("done", "enough")
    wait_for(lambda: any(is_final for _, _, is_final in robbery.bench.socket.versions), 30, "a final version")
    robbery.bench.crash()
    wait_for(lambda: robbery.account.state == pb.SESSION_STATE_CLOSED, 30, "the end")
    robbery.mine(robbery.newest)
    robbery.bench.socket.versions.clear()


def restarted_and_told_of_an_older_version(robbery: Robbery) -> None:
    """It holds one that it disowns when the cable is back."""
    robbery.begin()
    robbery.grow()
    robbery.hold_one_back()
    robbery.bench.crash()
    hidden = robbery.newest
    robbery.bench.socket.disown_newest(robbery.account)
    robbery.bench.socket.loses_answers = 0
    robbery.bench.start()
    wait_for(lambda: any("resumed" in line for line in robbery.lines), 30, f"a resumption; {robbery.lines}")
    wait_for(lambda: any("on-chain payment prepared" in line for line in robbery.lines), 30, f"{robbery.lines}")
    robbery.end()
    robbery.mine(hidden)


# What is due.


def honest(robbery: Robbery) -> None:
    robbery.begin()
    robbery.grow()
    robbery.end()
    robbery.mine(robbery.chosen)


def honest_and_restarted(robbery: Robbery) -> None:
    """The cable is killed once, and goes on."""
    robbery.begin()
    robbery.grow()
    robbery.bench.crash()
    robbery.bench.socket.delivers = True
    robbery.bench.start()
    wait_for(lambda: any("resumed" in line for line in robbery.lines), 30, f"a resumption; {robbery.lines}")
    robbery.end()
    robbery.mine(robbery.chosen)


def honest_without_its_bitcoind(robbery: Robbery) -> None:
    """It takes the newest, and sends the rest."""
    robbery.bench.socket.refuses_finals = True
    robbery.bench.socket.final_timeout_s = 0.4
    robbery.begin()
    robbery.grow()
    robbery.end()
    robbery.mine(robbery.chosen)


def honest_and_never_seen_again(robbery: Robbery) -> None:
    """The cable is killed, and finds the session over."""
    robbery.begin()
    robbery.grow()
    robbery.kill()
    robbery.mine(robbery.chosen)


CHEATED, OWES, HONEST = "socket_cheated", "socket_owes", ""
ROBBERIES = {
    "newest instead of final": Way(newest_instead_of_final, CHEATED),
    "unanswered, flooded, signed for less": Way(unanswered_flooded_and_signed_for_less, CHEATED),
    "unanswered, no receipt": Way(unanswered_and_no_receipt, OWES),
    "silent at the end": Way(silent_at_the_end, OWES),
    "final taken, no receipt": Way(final_taken_but_no_receipt, CHEATED),
    "false receipt": Way(charges_for_what_it_did_not_deliver, OWES),
    "receipt of another transaction": Way(receipt_names_another_transaction, CHEATED),
    "receipt of nothing": Way(signs_that_it_takes_nothing, CHEATED),
    "receipt of another session": Way(receipt_of_another_session, OWES),
    "refused and mined": Way(refused_and_mined, CHEATED),
    "claimed, refused and mined": Way(claimed_refused_and_mined, OWES),
    "flood": Way(flood, OWES),
    "mined in mid-session": Way(mined_in_mid_session, OWES),
    "cable killed": Way(killed_in_mid_session, OWES),
    "cable killed, socket away": Way(killed_and_never_found_again, OWES),
    "cable killed before the answer": Way(killed_between_version_and_answer, OWES),
    "cable killed, signed for less": Way(killed_and_signed_for_less, CHEATED),
    "cable killed after the final version": Way(killed_after_the_final_version, OWES),
    "cable restarted, older version told": Way(restarted_and_told_of_an_older_version, CHEATED),
}
HONESTY = {
    "honest": Way(honest, HONEST),
    "honest, cable restarted": Way(honest_and_restarted, HONEST),
}
WITH_REFUND = {
    "honest, bitcoind away": Way(honest_without_its_bitcoind, HONEST),
    "honest, cable killed": Way(honest_and_never_seen_again, HONEST),
}
"""Those need a way back over Lightning."""
