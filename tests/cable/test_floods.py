"""However often a socket says a thing, over real gRPC: the cable keeps no more of it, and shows no more lines."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from google.protobuf.json_format import MessageToDict

from tests.cable.conftest import Bench
from tests.cable.fake_funds import RULES, rules_message
from tests.cable.fakes import Account, wait_for
from tests.cable.test_onchain import aggregate, dear
from tests.core.wire.messages import EVIL
from wattline.cable.link.stream import Happening, Mailbox, SocketStream
from wattline.cable.onchain_side import MOST_LINES
from wattline.cable.opening import LineLimit
from wattline.cable.policy.delivery import MOST_CLAIMS
from wattline.core.tariff import Tariff
from wattline.device.meters.reading import Reading
from wattline.v1 import charging_pb2 as pb

OF_THE_RUN = 40
"""So many lines are the run's own."""
KINDS = 16
"""Of what may wait: one of each."""
MORE = 50 + MOST_CLAIMS
"""Objects that come and go as a session does, and statements that wait for a reading to be compared with."""
WIRE = {pb.ChargeResponse.__module__}
"""Those messages are the fake socket's, too."""
FIRST = 100_000
"""No number that this session comes to."""
LAST = {"refusal", "receipt"}
"""Nothing is read of a stream after one of them."""
FLOODS: dict[str, Callable[[int, Account], pb.ChargeResponse]] = {
    "opened": lambda n, account: pb.ChargeResponse(
        opened=pb.Opened(
            session_id=account.session_id,
            tariff=pb.Tariff(tariff_id=account.tariff.tariff_id),
            statement=statement_of(n, account),
            resumed=True,
        )
    ),
    "statement": lambda n, account: pb.ChargeResponse(statement=statement_of(n, account)),
    "tariff_change": lambda n, account: pb.ChargeResponse(
        tariff_change=pb.TariffChange(tariff=pb.Tariff(tariff_id=f"T{n}", energy_msat_per_kwh=n))
    ),
    "payment_refused": lambda n, account: pb.ChargeResponse(
        payment_refused=pb.PaymentRefused(payment_hash=f"{n:064x}", amount_msat=n, code="over_credit_cap", message=EVIL)
    ),
    "onchain_invitation": lambda n, account: pb.ChargeResponse(
        onchain_invitation=pb.OnchainInvitation(
            address=account.onchain.address if account.onchain is not None else "",
            script=account.onchain.script if account.onchain is not None else "",
            rules=rules_message(RULES),
            newest_number=n % 1_000,
            newest_value_sat=n,
        )
    ),
    "version_accepted": lambda n, account: pb.ChargeResponse(
        version_accepted=pb.VersionAccepted(number=n, value_sat=n, is_final=n % 2 == 0)
    ),
    "version_refused": lambda n, account: pb.ChargeResponse(
        version_refused=pb.VersionRefused(
            number=n % 3 and n, code=f"code_{n}" if n % 3 else "onchain_unavailable", message=f"{n} {EVIL}"
        )
    ),
    "final_due": lambda n, account: pb.ChargeResponse(
        final_due=pb.FinalDue(value_sat=n, charged_msat=n, keysend_msat=n)
    ),
    "nothing": lambda n, account: pb.ChargeResponse(),
    "what cannot be": lambda n, account: pb.ChargeResponse(statement=pb.Statement(session_id=f"{n}")),
}


def statement_of(n: int, account: Account) -> pb.Statement:
    return pb.Statement(
        session_id=account.session_id, sequence=10**6 + n, state=pb.SESSION_STATE_PAUSED, stop_reason=f"code_{n}"
    )


def test_every_kind_is_flooded_with() -> None:
    kinds = {field.name for field in pb.ChargeResponse.DESCRIPTOR.fields}
    assert kinds == set(FLOODS) - {"nothing", "what cannot be"} | LAST
    account = Account("0" * 26, b"", Tariff.of(1), "A1")
    for kind in kinds - LAST:
        assert list(MessageToDict(FLOODS[kind](1, account), preserving_proto_field_name=True)) == [kind]


def kept() -> Counter[str]:
    """Objects of ours that live, by kind."""
    gc.collect()
    names = (type(each) for each in gc.get_objects())
    ours = (each for each in names if str(each.__module__).startswith("wattline.") and each.__module__ not in WIRE)
    return Counter(each.__qualname__ for each in ours)


@pytest.mark.parametrize("count", [1_000, pytest.param(2_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_leaves_no_more_behind_than_one(
    bench: Bench, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.cable.service.MINED_WAIT_S", 0.0)
    monkeypatch.setattr("wattline.cable.closing.HURRY_MS", 500)
    bench.payment["method"] = "onchain"
    dear(bench)
    may_decide = threading.Event()
    may_decide.set()
    monkeypatch.setattr(bench.listener, "show", lambda snapshot: may_decide.wait(100))
    monkeypatch.setattr(bench.socket, "close_session", lambda *_: None)
    heard, waiting, boxes = Counter[str](), [0], list[Mailbox]()
    put, believable = Mailbox.put, SocketStream._believable

    def watched_put(box: Mailbox, happening: Happening) -> None:
        put(box, happening)
        boxes[:] = [box]
        with box._changed:
            waiting[0] = max(waiting[0], sum(not isinstance(item, Reading) for _, item in box._waiting.values()))

    def counted(connection: SocketStream, response: pb.ChargeResponse) -> object:
        heard["all"] += 1
        return believable(connection, response)

    monkeypatch.setattr(Mailbox, "put", watched_put)
    monkeypatch.setattr(SocketStream, "_believable", counted)
    bench.start()
    wait_for(lambda: bench.socket.sessions and aggregate(bench).number >= 1, what="a version")
    account, threads = bench.socket.session, threading.active_count()

    def flood(first: int) -> Counter[str]:
        """While the deciding thread is busy with something else."""
        may_decide.clear()
        wanted = heard["all"] + count
        for n in range(first, first + count):
            bench.socket._send(account, FLOODS[kind](n, account))
        wait_for(lambda: heard["all"] >= wanted, 100, "all of it is heard")
        may_decide.set()
        wait_for(lambda: len(boxes[-1]) < KINDS, 100, "all of it is looked at")
        return kept()

    before = flood(FIRST)
    grown = flood(FIRST + count) - before
    assert sum(grown.values()) < MORE, grown
    assert waiting[0] <= KINDS
    assert threading.active_count() <= threads + 2
    bench.finish("operator")
    assert len(bench.listener.lines) <= LineLimit.LINES + MOST_LINES + OF_THE_RUN
    assert all(line.isprintable() for line in bench.listener.lines)
