"""Where sockets and cables meet: one real bitcoind, a wallet for the sockets and one for the cables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from harness.attacker import Wallet
from harness.cable import Cable
from harness.needs import need_bitcoind
from harness.nodes import SocketFunds, node_id
from harness.stall import EXPOSURE_CAP_SAT, Stall
from wattline.core.aggregate import MSAT_PER_SAT, AggregateStatus
from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import Access
from wattline.regtest.chain import CONFIG, Chain
from wattline.regtest.waiting import DEADLINE_S, wait_until

P = TypeVar("P", bound="Place")

COIN_SAT = 1_000_000
MUCH_SAT = 9_000
"""More than any version in a trial, and less than the exposure cap."""
FAR_FUTURE = 2**40
FIRST_CABLE = 100
"""The key of the first cable's node."""


class Place:
    """One chain and the two wallets on it."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.socket_wallet, self.cable_wallet = Wallet(chain, "socket"), Wallet(chain, "cable")
        self._cables = FIRST_CABLE

    @property
    def access(self) -> Access:
        """How a socket reaches bitcoind."""
        return Access("127.0.0.1", self.chain.rpc_port, cookie=self.chain.directory / "regtest" / ".cookie")

    def stall(self, directory: Path, chain: Bitcoind | None = None, **onchain: Any) -> Stall:
        """A socket whose ledger is in ``directory``."""
        return Stall(directory, chain or Bitcoind(self.access), SocketFunds(self.socket_wallet), **onchain)

    def again(self, directory: Path, before: Stall) -> Stall:
        """The same socket in a new process."""
        chain, funds = Bitcoind(self.access), SocketFunds(self.socket_wallet)
        return Stall(directory, chain, funds, before.hardware)

    def cable(self, stall: Stall, *values_sat: int) -> Cable:
        """A new cable with confirmed coins of these values."""
        coins = self.cable_wallet.fund(values_sat or [COIN_SAT])
        return Cable(stall, self.cable_wallet, self.new_node_id(), coins)

    def new_node_id(self) -> str:
        self._cables += 1
        return node_id(self._cables)

    def paying_cable(self, stall: Stall, *values_sat: int, outlet_id: str = "A1") -> Cable:
        """A cable whose session delivers, paid by versions of these values."""
        cable = self.cable(stall)
        begin(cable, *values_sat, outlet_id=outlet_id)
        wait_until("the relay to close", lambda: stall.is_relay_closed(outlet_id))
        wait_until("the fee to be due", lambda: stall.session(cable.session_id).account.charged_msat > 0)
        return cable

    def settle(self, stall: Stall, session_id: str, timeout_s: float = DEADLINE_S) -> AggregateStatus:
        """Mine until the session's aggregate is final; how it ended."""

        def is_final() -> bool:
            if not stall.aggregate(session_id).status.is_live:
                return True
            self.chain.mine(1)
            return False

        wait_until(f"the aggregate of {session_id} to be final", is_final, timeout_s)
        return stall.aggregate(session_id).status

    def is_mined_as_chosen(self, stall: Stall, session_id: str, value_sat: int) -> None:
        """What the receipt promises is final on the chain, and it is worth ``value_sat``."""
        wait_until("the session to be over", lambda: stall.is_over(session_id))
        assert self.settle(stall, session_id) is AggregateStatus.SETTLED
        aggregate, receipt = stall.aggregate(session_id), stall.receipt(session_id)
        assert aggregate.mined_txid == receipt.onchain_txid
        assert aggregate.mined_value_sat == receipt.onchain_value_sat == value_sat

    def end(self, stall: Stall, cable: Cable) -> AggregateStatus:
        """The session comes to its end, then its aggregate does."""
        wait_until("the session to be over", lambda: stall.is_over(cable.session_id))
        return self.settle(stall, cable.session_id)


def begin(cable: Cable, *values_sat: int, outlet_id: str = "A1") -> None:
    """Open, ask for the address and hand over versions of these values."""
    cable.open(outlet_id)
    answer = cable.request()
    assert answer.HasField("onchain_invitation"), answer
    for value_sat in values_sat:
        cable.pay(value_sat)


@contextmanager
def place(kind: Callable[[Chain], P], *options: str) -> Iterator[P]:
    """On a bitcoind of its own with these lines in its configuration; see :mod:`harness.needs` where there is none."""
    need_bitcoind()
    chain = Chain()
    (chain.directory / "bitcoin.conf").write_text(CONFIG + "\n".join(options), encoding="utf-8")
    with chain:
        yield kind(chain)


def check_books(stall: Stall, cable: Cable) -> int:
    """The ledger says what the chain says: credited - returned - missing == mined. What is missing, sat."""
    session_id = cable.session_id
    aggregate, session = stall.aggregate(session_id), stall.session(session_id)
    mined_sat = stall.funds.received_sat(cable.address)
    credited_msat = stall.ledger.onchain_credited_msat(session_id)
    missing_msat = aggregate.lost_msat
    is_paid = mined_sat * MSAT_PER_SAT >= session.account.charged_msat and mined_sat > 0

    assert aggregate.mined_value_sat == mined_sat
    assert credited_msat - session.returned_msat - missing_msat == mined_sat * MSAT_PER_SAT
    assert session.account.credited_msat == credited_msat
    assert 0 <= missing_msat <= EXPOSURE_CAP_SAT * MSAT_PER_SAT
    assert (aggregate.status is AggregateStatus.LOST) == (missing_msat > 0 and not is_paid)
    assert stall.ledger.totals(0, FAR_FUTURE).missing_msat >= missing_msat
    return missing_msat // MSAT_PER_SAT


def is_refused(stall: Stall, cable: Cable) -> bool:
    """Neither invited nor let in again, nor are its coins taken from anybody."""
    coins = [stall.ledger.refused_input(coin.outpoint) for coin in cable.coins]
    again = Cable(stall, cable.wallet, cable.node_id, cable.coins)
    invitation, version = cable.late_refusals(MUCH_SAT)
    return invitation == "not_invited" and version != "" and again.refusal_to_open() == "cable_refused" and all(coins)


def opened_after_ms(stall: Stall, since_ms: int, outlet_id: str = "A1") -> int:
    """How long after ``since_ms`` the relay opened; it must."""
    wait_until("the relay to open", lambda: not stall.is_relay_closed(outlet_id), 10)
    return stall.hardware[outlet_id].opened_ms - since_ms


def ends_as_if_nothing_had_been_tried(ground: Place, stall: Stall, cable: Cable) -> None:
    """What was accepted still counts, and the session goes on to be paid exactly what it owes."""
    session_id = cable.session_id
    (newest,) = {draft.outputs[0].value_sat for draft in cable.versions}
    assert stall.credited_sat(session_id) == newest
    assert stall.ledger.increments(session_id) == 1
    assert stall.session(session_id).state.is_live
    assert any(stall.is_relay_closed(outlet_id) for outlet_id in stall.hardware)

    cable.close()

    assert ground.end(stall, cable) is AggregateStatus.SETTLED
    (due,) = {message.value_sat for message in cable.finals_due}
    assert check_books(stall, cable) == 0
    assert stall.aggregate(session_id).mined_value_sat == due < newest
    assert stall.ledger.refused_cable(cable.node_id) is None
