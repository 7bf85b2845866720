"""What bitcoind's answers mean: what no real one says at will, and amounts."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.bitcoin.fake_bitcoind import HASHES, FakeBitcoind, FakeBlocks, fake_bitcoind
from wattline.core.bitcoin.bitcoind import REORG_ATTEMPTS, Bitcoind, feerate_per_kw_of, sat_of
from wattline.core.bitcoin.bitcoind_rpc import Access
from wattline.core.bitcoin.chain import (
    BroadcastRefused,
    Chain,
    ChainRefused,
    ChainUnavailable,
    Floor,
    Outpoint,
    Tip,
    TxInput,
    TxOutput,
    Verdict,
)
from wattline.core.bitcoin.transaction import make_tx
from wattline.core.errors import StopError

SPENT = Outpoint("1f" * 32, 3)
RAW = make_tx(2, 0, [TxInput(SPENT, 0xFFFFFFFD)], [TxOutput(600, "5120" + "ab" * 32)]).raw
MOST_SAT = 21_000_000 * 100_000_000


@pytest.fixture
def fake() -> Iterator[FakeBitcoind]:
    with fake_bitcoind() as server:
        server.secret = "a:b"
        yield server


@pytest.fixture
def chain(fake: FakeBitcoind) -> Chain:
    return bitcoind(fake)


def bitcoind(fake: FakeBitcoind) -> Bitcoind:
    return Bitcoind(Access("127.0.0.1", fake.port, user="a", password="b"))


@given(st.integers(0, MOST_SAT))
def test_every_amount_is_read_to_the_satoshi(value_sat: int) -> None:
    written = f"{value_sat // 10**8}.{value_sat % 10**8:08d}"
    assert sat_of(Decimal(written)) == value_sat


@pytest.mark.parametrize("amount", [Decimal("0.000000001"), Decimal("NaN"), 0.5, True, "1"])
def test_what_is_no_exact_amount_is_refused(amount: object) -> None:
    with pytest.raises(ValueError, match=r"exact amount|whole number|cannot convert NaN"):
        sat_of(amount)  # type: ignore[arg-type]


@given(st.integers(0, 10**8))
def test_a_fee_rate_is_rounded_up_so_that_paying_it_is_enough(sat_per_kvb: int) -> None:
    per_kw = feerate_per_kw_of(Decimal(sat_per_kvb) / 10**8)
    assert (per_kw - 1) * 4 < sat_per_kvb <= per_kw * 4


@pytest.mark.parametrize(
    ("named", "network"),
    [("main", "bitcoin"), ("test", "testnet"), ("testnet4", "testnet4"), ("signet", "signet"), ("regtest", "regtest")],
)
def test_networks_are_called_as_core_lightning_calls_them(fake: FakeBitcoind, named: str, network: str) -> None:
    fake.result("getblockchaininfo", f'{{"chain": "{named}"}}')
    assert bitcoind(fake).network() == network


def test_a_bitcoind_that_still_catches_up_has_no_tip_yet(fake: FakeBitcoind, chain: Chain) -> None:
    head = f'"blocks": 5, "bestblockhash": "{HASHES[5]}"'
    fake.result("getblockchaininfo", f'{{{head}, "initialblockdownload": true}}')
    with pytest.raises(ChainUnavailable, match="catches up with the chain"):
        chain.tip()
    fake.result("getblockchaininfo", f'{{{head}, "initialblockdownload": false}}')
    assert chain.tip() == Tip(5, HASHES[5])


def test_a_bitcoind_that_is_too_old_or_elsewhere_is_said_at_once(fake: FakeBitcoind) -> None:
    node = bitcoind(fake)
    fake.result("getblockchaininfo", '{"chain": "main"}')
    fake.result("getnetworkinfo", '{"version": 230200, "subversion": "/Satoshi:23.2.0/"}')
    with pytest.raises(StopError, match=r"Satoshi:23\.2\.0.*v24") as caught:
        node.check("bitcoin")
    assert caught.value.code == "bitcoind_too_old"
    fake.result("getnetworkinfo", '{"version": 240000}')
    node.check("bitcoin")
    with pytest.raises(StopError, match="is on bitcoin, but lightningd is on regtest") as caught:
        node.check("regtest")
    assert caught.value.code == "bitcoind_other_network"


def test_the_floor_is_the_higher_of_two_and_raised_only_by_a_full_mempool(fake: FakeBitcoind, chain: Chain) -> None:
    fake.result("getmempoolinfo", '{"mempoolminfee": 0.00001000, "minrelaytxfee": 0.00001000}')
    assert chain.floor() == Floor(250, False)
    fake.result("getmempoolinfo", '{"mempoolminfee": 0.00001001, "minrelaytxfee": 0.00001000}')
    assert chain.floor() == Floor(251, True)
    fake.result("getmempoolinfo", '{"mempoolminfee": 0, "minrelaytxfee": 0.00000100}')
    assert chain.floor() == Floor(25, False)


def test_a_refusal_without_a_reason_is_a_refusal(fake: FakeBitcoind, chain: Chain) -> None:
    fake.result("testmempoolaccept", '[{"txid": "00"}]')
    assert chain.verdict(RAW) == Verdict(False, "no reason given")
    fake.result("testmempoolaccept", '[{"allowed": "yes", "reject-reason": "odd"}]')
    assert chain.verdict(RAW) == Verdict(False, "odd")


def test_an_answer_of_another_shape_is_refused(fake: FakeBitcoind, chain: Chain) -> None:
    fake.result("gettxout", '{"value": 0.000000001, "scriptPubKey": {"hex": ""}, "confirmations": 1}')
    with pytest.raises(ChainRefused, match=r"gettxout: unexpected answer: .*no whole number") as caught:
        chain.unspent(SPENT, include_mempool=False)
    assert caught.value.code == "bitcoind_refused"
    fake.result("testmempoolaccept", "[]")
    with pytest.raises(ChainRefused, match="testmempoolaccept: unexpected answer"):
        chain.verdict(RAW)


def test_not_being_let_in_is_never_taken_for_a_bad_transaction(fake: FakeBitcoind, chain: Chain) -> None:
    fake.secret = "another"
    for call in (chain.broadcast, chain.mempool_tx, chain.confirmations):
        with pytest.raises(ChainRefused) as caught:
            call(RAW if call == chain.broadcast else "00" * 32)
        assert caught.value.code == "bitcoind_not_permitted"


@pytest.mark.parametrize(
    ("rpc_code", "kind", "code"),
    [
        (-25, BroadcastRefused, "broadcast_refused"),
        (-26, BroadcastRefused, "broadcast_refused"),
        (-1, ChainRefused, "bitcoind_refused"),
        (-28, ChainUnavailable, "bitcoind_unavailable"),
    ],
)
def test_why_a_broadcast_failed_is_told_apart(
    fake: FakeBitcoind, chain: Chain, rpc_code: int, kind: type[StopError], code: str
) -> None:
    fake.error("sendrawtransaction", rpc_code, "because")
    with pytest.raises(kind, match="because") as caught:
        chain.broadcast(RAW)
    assert caught.value.code == code


def test_the_spender_is_looked_for_from_the_tip_down_and_no_further_than_needed(
    fake: FakeBitcoind, chain: Chain
) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.spent_in[17] = SPENT
    found = chain.mined_spender(SPENT, from_height=5)
    assert found is not None
    assert (found.height, found.block_hash) == (17, HASHES[17])
    assert found.tx.outpoints == {SPENT}
    assert found.tx.paid_to("5120") == 12_345
    assert [(HASHES.index(block), detail) for block, detail in fake.called("getblock")] == [
        (20, 0),
        (19, 0),
        (18, 0),
        (17, 0),
        (17, 2),
    ]


def test_the_spender_is_not_looked_for_below_the_given_height(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.spent_in[17] = SPENT
    assert chain.mined_spender(SPENT, from_height=18) is None
    assert len(fake.called("getblock")) == 3
    assert chain.mined_spender(SPENT, from_height=21) is None


def test_a_block_that_merely_holds_the_same_bytes_is_passed_over(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.mentioned_in[20] = SPENT
    blocks.spent_in[19] = SPENT
    found = chain.mined_spender(SPENT, from_height=10)
    assert found is not None
    assert found.height == 19
    assert [HASHES[20], 2] in fake.called("getblock")


def test_a_search_below_which_the_chain_was_reorganised_begins_anew(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)

    def reorganise(height: int) -> None:
        if height == 20:
            # While block 20 is read it is replaced by 30, whose chain holds the spender.
            blocks.stale.add(HASHES[20])
            blocks.height = 30
            blocks.spent_in[29] = SPENT

    blocks.on_block = reorganise
    found = chain.mined_spender(SPENT, from_height=10)
    assert found is not None
    assert found.height == 29


def test_a_spender_in_a_block_that_went_stale_meanwhile_is_not_told(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.spent_in[20] = SPENT

    def reorganise(height: int) -> None:
        blocks.stale.add(HASHES[20])
        blocks.height = 30

    blocks.on_block = reorganise
    assert chain.mined_spender(SPENT, from_height=28) is None


def test_a_chain_that_never_comes_to_rest_is_passing_trouble(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.on_block = lambda height: blocks.stale.add(HASHES[height])
    with pytest.raises(ChainUnavailable, match="reorganised"):
        chain.mined_spender(SPENT, from_height=20)
    assert len(fake.called("getblock")) == REORG_ATTEMPTS


def test_a_pruned_block_stops_the_search(fake: FakeBitcoind, chain: Chain) -> None:
    blocks = FakeBlocks(fake, height=20)
    blocks.pruned_below = 15
    assert chain.mined_spender(SPENT, from_height=15) is None
    with pytest.raises(ChainRefused, match="pruned"):
        chain.mined_spender(SPENT, from_height=14)


def test_an_output_that_is_still_there_costs_no_search(fake: FakeBitcoind, chain: Chain) -> None:
    FakeBlocks(fake, height=20)
    fake.result("gettxout", '{"value": 1, "scriptPubKey": {"hex": "5120"}, "confirmations": 1}')
    assert chain.mined_spender(SPENT, from_height=1) is None
    assert fake.called("getblock") == []
    assert fake.called("gettxout") == [[SPENT.txid, SPENT.vout, False]]


def test_asking_for_the_spenders_of_nothing_asks_nobody(fake: FakeBitcoind, chain: Chain) -> None:
    assert chain.mempool_spenders([]) == {}
    assert fake.calls == []
