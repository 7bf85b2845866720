"""Whatever a cable hands over as a PSBT: it is taken or refused by a code, bitcoind sees only what we wrote ourselves,
and the node gets a PSBT of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.plugin.fake_chain import psbt_of
from tests.plugin.still_stall import StillStall, Wallet
from wattline.core.aggregate import VersionRefused
from wattline.core.bitcoin.psbt import is_finalized
from wattline.core.bitcoin.transaction import read_tx, sized
from wattline.v1 import charging_pb2 as pb


@pytest.fixture(scope="module")
def stall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StillStall]:
    with StillStall(tmp_path_factory.mktemp("foreign") / "socket.sqlite3") as stall:
        yield stall


@pytest.fixture(scope="module")
def wallet(stall: StillStall) -> Wallet:
    return Wallet.of(stall.chain, stall.invite(stall.open()).script)


@pytest.fixture(autouse=True)
def _seen(stall: StillStall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transaction that the chain is shown is to the letter what we write."""
    verdict = stall.chain.verdict

    def judged(raw: str) -> object:
        assert read_tx(bytes.fromhex(raw)).raw == raw
        return verdict(raw)

    monkeypatch.setattr(stall.chain, "verdict", judged)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@example(0, 0, b"", 5, 2**31)
@given(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4), st.integers(-1, 5), st.integers(0, 2**32 - 1))
def test_a_psbt_with_anything_wrong_in_it_is_refused_by_a_code(
    stall: StillStall, wallet: Wallet, place: int, removed: int, put: bytes, value: int, number: int
) -> None:
    session = next(iter(stall.ledger.live_sessions())).session.session_id
    good = psbt_of(wallet.sign(1_000 + value))
    place %= len(good) + 1
    bad = good[:place] + put + good[place + removed :]
    try:
        stall.watch.intake.hand_over(session, pb.AggregateVersion(number=number, psbt=bad))
    except VersionRefused:
        return
    stored = stall.ledger.newest_version(session)
    assert stored is not None
    assert is_finalized(stored.psbt)


def test_a_key_that_only_a_stranger_knows_does_not_reach_the_node(stall: StillStall) -> None:
    session = stall.open(2, "A2")
    wallet = Wallet.of(stall.chain, stall.invite(session).script)
    good = psbt_of(wallet.sign(2_000))
    odd = sized(b"\xfc\x04oddly") + sized(b"\xff" * 40)
    (end,) = [at for at in range(len(good)) if good[at:].startswith(b"\x01\x13\x40")]
    stall.watch.intake.hand_over(session, pb.AggregateVersion(number=1, psbt=good[:end] + odd + good[end:]))
    stored = stall.ledger.newest_version(session)
    assert stored is not None
    assert is_finalized(stored.psbt)
    assert "b2RkbHk" not in stored.psbt
