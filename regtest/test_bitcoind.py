"""Everything that is asked of the chain, asked of a real bitcoind. No lightningd is needed.

Skipped with a reason when there is no bitcoind and none can be fetched."""

from __future__ import annotations

import base64
import hmac
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from harness.needs import need_bitcoind

from wattline.core.bitcoin.address import AddressError, address_of, script_of
from wattline.core.bitcoin.bitcoind import Bitcoind, tx_of
from wattline.core.bitcoin.bitcoind_rpc import Access, BitcoindSettings, locate
from wattline.core.bitcoin.chain import (
    BroadcastRefused,
    Chain,
    ChainRefused,
    ChainUnavailable,
    NotATransaction,
    Outpoint,
)
from wattline.core.bitcoin.psbt import signed_tx
from wattline.core.bitcoin.transaction import read_tx
from wattline.core.errors import StopError
from wattline.regtest.chain import CONFIG, FIRST_BLOCKS
from wattline.regtest.chain import Chain as RegtestChain
from wattline.regtest.waiting import wait_until

SAT = Decimal(100_000_000)
COIN_SAT = 1_000_000
FEE_SAT = 1_000
SIGNALS_RBF = 0xFFFFFFFD


@pytest.fixture(scope="module")
def node() -> Iterator[RegtestChain]:
    need_bitcoind()
    with RegtestChain() as made:
        yield made


@pytest.fixture(scope="module")
def bitcoind(node: RegtestChain) -> Bitcoind:
    return Bitcoind(locate(BitcoindSettings(), _options(node), "regtest"))


@pytest.fixture
def chain(bitcoind: Bitcoind) -> Chain:
    return bitcoind


def _options(node: RegtestChain) -> Mapping[str, str]:
    return {"bitcoin-datadir": str(node.directory), "bitcoin-rpcport": str(node.rpc_port)}


class Purse:
    """Makes transactions by hand, with bitcoind's wallet for the signatures."""

    def __init__(self, node: RegtestChain) -> None:
        self.node = node

    def address(self, kind: str = "bech32m") -> str:
        return str(self.node.call("getnewaddress", "", kind))

    def coin(self, value_sat: int = COIN_SAT, *, mined: bool = True) -> Outpoint:
        """A new output of the wallet."""
        address = self.address()
        txid = self.node.send(address, value_sat)
        if mined:
            self.node.mine(1)
        outputs = self.node.call("gettransaction", txid, True, True)["decoded"]["vout"]
        return Outpoint(txid, next(o["n"] for o in outputs if o["scriptPubKey"].get("address") == address))

    def unsigned(self, coins: Sequence[Outpoint], value_sat: int, locktime: int = 0) -> str:
        inputs = [{"txid": coin.txid, "vout": coin.vout, "sequence": SIGNALS_RBF} for coin in coins]
        return str(self.node.call("createrawtransaction", inputs, [{self.address(): str(value_sat / SAT)}], locktime))

    def signed(self, coins: Sequence[Outpoint], value_sat: int = COIN_SAT - FEE_SAT) -> str:
        """Spends ``coins`` to one new address; what is left is the fee."""
        answer = self.node.call("signrawtransactionwithwallet", self.unsigned(coins, value_sat))
        assert answer["complete"]
        return str(answer["hex"])

    def psbt(self, coins: Sequence[Outpoint], *, sign: bool) -> str:
        """As a Lightning node hands it out: signed where asked, not finalised."""
        bare = self.node.call("converttopsbt", self.unsigned(coins, COIN_SAT - FEE_SAT))
        answer: dict[str, Any] = self.node.call("walletprocesspsbt", bare, sign, "DEFAULT", True, False)
        return str(answer["psbt"])


@pytest.fixture
def purse(node: RegtestChain) -> Purse:
    return Purse(node)


def test_the_bitcoind_of_a_lightningd_is_found_by_its_options_and_checked(bitcoind: Bitcoind) -> None:
    bitcoind.check("regtest")
    with pytest.raises(StopError, match="lightningd is on signet") as caught:
        bitcoind.check("signet")
    assert caught.value.code == "bitcoind_other_network"


def test_every_locktime_that_a_wallet_may_choose_on_a_new_chain_is_taken(node: RegtestChain, purse: Purse) -> None:
    coin = purse.coin()
    refused = {}
    # As far back as bitcoind's wallet and lightningd's date a transaction (against fee sniping).
    for locktime in range(FIRST_BLOCKS - 100, node.height + 1):
        raw = purse.unsigned([coin], COIN_SAT - FEE_SAT, locktime)
        signed = node.call("signrawtransactionwithwallet", raw)["hex"]
        (answer,) = node.call("testmempoolaccept", [signed])
        if not answer["allowed"]:
            refused[locktime] = answer["reject-reason"]
    assert refused == {}


def test_the_tip_follows_the_newest_block(node: RegtestChain, chain: Chain) -> None:
    height = node.mine(1)
    chain.check("regtest")
    with pytest.raises(StopError) as caught:
        chain.check("bitcoin")
    assert caught.value.code == "bitcoind_other_network"
    tip = chain.tip()
    assert (tip.height, tip.block_hash) == (height, node.call("getblockhash", height))
    assert chain.confirmations(tip.block_hash) == 1
    node.mine(2)
    assert chain.confirmations(tip.block_hash) == 3
    assert chain.confirmations("00" * 32) == 0


def test_an_output_is_told_with_its_value_to_the_satoshi_and_its_confirmations(
    node: RegtestChain, chain: Chain, purse: Purse
) -> None:
    coin = purse.coin(12_345_679, mined=False)
    assert chain.unspent(coin, include_mempool=False) is None
    waiting = chain.unspent(coin, include_mempool=True)
    assert waiting is not None
    assert (waiting.value_sat, waiting.confirmations) == (12_345_679, 0)
    node.mine(2)
    mined = chain.unspent(coin, include_mempool=False)
    assert mined is not None
    assert (mined.value_sat, mined.confirmations) == (12_345_679, 2)
    assert mined.script.startswith("5120")
    assert len(mined.script) == 68
    assert chain.unspent(Outpoint("77" * 32, 0), include_mempool=True) is None


def test_an_output_is_spent_for_the_mempool_before_it_is_spent_for_the_chain(
    node: RegtestChain, chain: Chain, purse: Purse
) -> None:
    coin = purse.coin()
    chain.broadcast(purse.signed([coin]))
    assert chain.unspent(coin, include_mempool=True) is None
    assert chain.unspent(coin, include_mempool=False) is not None
    node.mine(1)
    assert chain.unspent(coin, include_mempool=False) is None


def test_the_spender_in_the_mempool_is_the_newest_of_those_that_replaced_each_other(
    node: RegtestChain, chain: Chain, purse: Purse
) -> None:
    coin, other = purse.coin(), purse.coin()
    assert chain.mempool_spenders([coin, other]) == {}
    first = chain.broadcast(purse.signed([coin]))
    assert chain.mempool_spenders([coin, other]) == {coin: first}
    seen = chain.mempool_tx(first)
    assert seen is not None
    assert seen.outpoints == {coin}
    second = chain.broadcast(purse.signed([coin], COIN_SAT - 5 * FEE_SAT))
    assert chain.mempool_spenders([coin, other]) == {coin: second}
    assert chain.mempool_tx(first) is None
    node.mine(1)
    assert chain.mempool_spenders([coin, other]) == {}
    # bitcoind of the harness has an index of all transactions, and still this one is in the mempool no more.
    assert chain.mempool_tx(second) is None
    assert chain.mempool_tx("77" * 32) is None


def test_the_spender_in_the_chain_is_told_with_its_block(node: RegtestChain, chain: Chain, purse: Purse) -> None:
    coin, other = purse.coin(), purse.coin()
    start = node.height
    assert chain.mined_spender(coin, start) is None
    raw = purse.signed([coin, other], 2 * COIN_SAT - FEE_SAT)
    txid = chain.broadcast(raw)
    assert chain.mined_spender(coin, start) is None
    height = node.mine(1)
    node.mine(3)
    for outpoint in (coin, other):
        found = chain.mined_spender(outpoint, start)
        assert found is not None
        assert (found.height, found.block_hash) == (height, node.call("getblockhash", height))
        assert (found.tx.txid, found.tx.raw) == (txid, raw)
        assert found.tx == read_tx(bytes.fromhex(raw))
    assert chain.mined_spender(coin, height) is not None
    assert chain.mined_spender(coin, height + 1) is None


def test_a_reorganisation_takes_a_spender_out_of_the_chain_and_puts_another_in(
    node: RegtestChain, chain: Chain, purse: Purse
) -> None:
    coin = purse.coin()
    start = node.height
    chain.broadcast(purse.signed([coin]))
    node.mine(1)
    first = chain.mined_spender(coin, start)
    assert first is not None
    node.call("invalidateblock", first.block_hash)
    assert chain.confirmations(first.block_hash) == 0
    assert chain.mined_spender(coin, start) is None
    assert chain.mempool_spenders([coin]) == {coin: first.tx.txid}
    rival = chain.broadcast(purse.signed([coin], COIN_SAT - 5 * FEE_SAT))
    node.mine(2)
    second = chain.mined_spender(coin, start)
    assert second is not None
    assert second.tx.txid == rival
    assert chain.confirmations(second.block_hash) == 2


def test_a_transaction_may_be_broadcast_again_in_the_mempool_and_in_the_chain(
    node: RegtestChain, chain: Chain, purse: Purse
) -> None:
    raw = purse.signed([purse.coin()])
    txid = chain.broadcast(raw)
    assert chain.broadcast(raw) == txid
    assert chain.verdict(raw).reason == "txn-already-in-mempool"
    node.mine(1)
    assert chain.broadcast(raw) == txid
    assert not chain.verdict(raw).allowed


def test_a_broadcast_that_the_mempool_does_not_take_says_why(node: RegtestChain, chain: Chain, purse: Purse) -> None:
    coin = purse.coin()
    cheap = purse.signed([coin], COIN_SAT - 10)
    with pytest.raises(BroadcastRefused, match="min relay fee not met"):
        chain.broadcast(cheap)
    assert chain.mempool_spenders([coin]) == {}
    chain.broadcast(purse.signed([coin], COIN_SAT - 5 * FEE_SAT))
    with pytest.raises(BroadcastRefused, match="insufficient fee"):
        chain.broadcast(purse.signed([coin]))
    node.mine(1)
    with pytest.raises(BroadcastRefused, match="missingorspent"):
        chain.broadcast(cheap)


def test_the_mempools_verdict_is_asked_without_handing_anything_over(chain: Chain, purse: Purse) -> None:
    coin = purse.coin()
    raw = purse.signed([coin])
    verdict = chain.verdict(raw)
    assert (verdict.allowed, verdict.reason) == (True, "")
    assert chain.mempool_spenders([coin]) == {}
    assert chain.verdict(purse.signed([coin], COIN_SAT - 10)).reason.startswith("min relay fee not met")
    assert chain.verdict(purse.unsigned([coin], COIN_SAT - FEE_SAT)).allowed is False


def test_a_signature_with_one_wrong_bit_is_found_by_the_verdict(chain: Chain, purse: Purse) -> None:
    raw = purse.signed([purse.coin()])
    # The witness of a P2TR key path: one item of 64 bytes, then the locktime.
    broken = bytearray.fromhex(raw)
    broken[-10] ^= 1
    assert read_tx(bytes(broken)).txid == read_tx(bytes.fromhex(raw)).txid
    verdict = chain.verdict(broken.hex())
    assert (verdict.allowed, verdict.is_unsigned) == (False, True)
    assert "Schnorr" in verdict.reason


def test_a_signed_psbt_becomes_the_transaction_that_it_is(chain: Chain, purse: Purse) -> None:
    coin = purse.coin()
    tx = signed_tx(base64.b64decode(purse.psbt([coin], sign=True)))
    assert tx.outpoints == {coin}
    assert (tx.version, tx.locktime) == (2, 0)
    assert [item.sequence for item in tx.inputs] == [SIGNALS_RBF]
    assert [output.value_sat for output in tx.outputs] == [COIN_SAT - FEE_SAT]
    # One P2TR input (57.5 vB), one P2TR output (43), and 10.5 around them.
    assert tx.vsize == 111
    assert chain.verdict(tx.raw).allowed
    assert chain.broadcast(tx.raw) == tx.txid


def test_a_psbt_that_lacks_a_signature_is_none_yet(chain: Chain, purse: Purse) -> None:
    with pytest.raises(NotATransaction, match="lacks") as caught:
        signed_tx(base64.b64decode(purse.psbt([purse.coin()], sign=False)))
    assert caught.value.code == "psbt_incomplete"


def test_a_transaction_is_read_as_bitcoind_reads_it(node: RegtestChain, purse: Purse) -> None:
    for raw in (purse.signed([purse.coin(), purse.coin()]), purse.unsigned([purse.coin()], COIN_SAT - FEE_SAT)):
        tx, theirs = read_tx(bytes.fromhex(raw)), node.call("decoderawtransaction", raw, True)
        assert tx == tx_of(theirs, raw)


def test_what_is_no_transaction_is_not_passed_on(chain: Chain) -> None:
    with pytest.raises(ChainRefused) as caught:
        chain.broadcast("02000000")
    assert caught.value.code == "call_refused"


def test_an_address_of_ours_is_bitcoinds(node: RegtestChain, purse: Purse) -> None:
    for kind in ("bech32m", "bech32"):
        address = purse.address(kind)
        theirs = node.call("validateaddress", address)
        script = script_of(address, "regtest")
        assert (theirs["isvalid"], theirs["scriptPubKey"]) == (True, script)
        assert address_of(script, "regtest") == address
    for kind in ("p2sh-segwit", "legacy"):
        with pytest.raises(AddressError):
            script_of(purse.address(kind), "regtest")


def test_bitcoinds_restart_is_passing_trouble_and_its_new_cookie_is_used(node: RegtestChain, chain: Chain) -> None:
    height = chain.tip().height
    cookie = (node.directory / "regtest" / ".cookie").read_bytes()
    node.stop()
    with pytest.raises(ChainUnavailable):
        chain.tip()
    node.start()
    assert chain.tip().height == height
    assert (node.directory / "regtest" / ".cookie").read_bytes() != cookie


def test_a_user_and_a_password_are_found_in_bitcoin_conf_as_bitcoin_cli_finds_them(tmp_path: Path) -> None:
    need_bitcoind()
    server, client = tmp_path / "server", tmp_path / "client"
    for directory, lines in (
        (server, f"rpcauth={_rpcauth('alice', 'of-regtest')}\n"),
        (client, "rpcuser=alice\nrpcpassword=of-all\n[regtest]\nrpcpassword=of-regtest\n[signet]\nrpcuser=bob\n"),
    ):
        directory.mkdir()
        (directory / "bitcoin.conf").write_text(lines)
    with RegtestChain(server) as node:
        access = locate(BitcoindSettings(), {**_options(node), "bitcoin-datadir": str(client)}, "regtest")
        assert (access.user, access.password) == ("alice", "of-regtest")
        cli = [str(node.programs.cli), f"-datadir={client}", "-regtest", f"-rpcport={node.rpc_port}", "getblockcount"]
        height = int(subprocess.run(cli, check=True, capture_output=True, text=True).stdout)
        assert Bitcoind(access).tip().height == height
        with pytest.raises(ChainRefused, match="does not accept user alice") as caught:
            Bitcoind(Access(access.host, access.port, user="alice", password="of-all")).tip()
        assert caught.value.code == "bitcoind_not_permitted"


def _rpcauth(user: str, password: str) -> str:
    """As bitcoind's share/rpcauth/rpcauth.py writes it."""
    salt = "00112233445566778899aabbccddeeff"
    return f"{user}:{salt}${hmac.new(salt.encode(), password.encode(), 'sha256').hexdigest()}"


def test_a_full_mempool_raises_the_floor(tmp_path: Path) -> None:
    need_bitcoind()
    # The smallest that bitcoind allows, in megabytes.
    (tmp_path / "bitcoin.conf").write_text(f"{CONFIG}maxmempool=5\n")
    with RegtestChain(tmp_path) as node:
        chain, purse = Bitcoind(locate(BitcoindSettings(), _options(node), "regtest")), Purse(node)
        before = chain.floor()
        assert not before.is_raised
        coin = purse.coin()
        cheap = purse.signed([coin], COIN_SAT - 200)
        assert chain.verdict(cheap).allowed
        _fill_mempool(node, chain)
        full = chain.floor()
        assert full.is_raised
        assert full.feerate_per_kw > before.feerate_per_kw
        assert chain.verdict(cheap).reason.startswith("mempool min fee not met")
        with pytest.raises(BroadcastRefused, match="mempool min fee not met"):
            chain.broadcast(cheap)


def _fill_mempool(node: RegtestChain, chain: Chain) -> None:
    """Broadcast large transactions, each paying more than the one before, until the cheapest are thrown out."""
    fan = [node.call("getnewaddress", "", "bech32m") for _ in range(60)]
    txid = node.send_many(fan, 10_000_000)
    node.mine(1)
    # As large as a transaction may be to be relayed: 400,000 weight units.
    outputs = 2_300
    for number in range(len(fan)):
        fee_sat = 600_000 + number * 40_000
        value_sat = (10_000_000 - fee_sat) // outputs
        script = "5120" + f"{number:02x}" * 32
        out = value_sat.to_bytes(8, "little").hex() + "22" + script
        bare = (
            "0200000001" + bytes.fromhex(txid)[::-1].hex() + number.to_bytes(4, "little").hex() + "00fdffffff"
            "fd" + outputs.to_bytes(2, "little").hex() + out * outputs + "00000000"
        )
        signed = node.call("signrawtransactionwithwallet", bare)
        assert signed["complete"]
        chain.broadcast(signed["hex"])
        if chain.floor().is_raised:
            return
    wait_until("the mempool to be full", lambda: chain.floor().is_raised, timeout_s=0.0)
