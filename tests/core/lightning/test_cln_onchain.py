"""Core Lightning's on-chain wallet behind the Protocols, on a socket that answers what v26.06.6 was seen to answer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.lightning.fake_lightningd import FakeLightningd, fake_lightningd
from wattline.core.bitcoin.address import address_of
from wattline.core.bitcoin.chain import Outpoint, TxInput, TxOutput
from wattline.core.bitcoin.psbt import finalized_psbt
from wattline.core.bitcoin.transaction import make_tx
from wattline.core.errors import RetryError
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import NodeRefused, NodeUnavailable
from wattline.core.lightning.onchain import RESERVE_BLOCKS, Base, PayingFunds, ReceivingFunds
from wattline.core.lightning.rpc import NodeRpc

A, B, C = (Outpoint(f"{number:02x}" * 32, number) for number in (1, 2, 3))
P2TR, P2WPKH = "5120" + "aa" * 32, "0014" + "bb" * 20
BASE = Base("cHNidP8BAA==", 272)
HEIGHT = 500
OWN_ADDRESS = address_of(P2TR, "regtest")
OWN_PSBT = finalized_psbt(
    make_tx(2, 0, [TxInput(A, 0, witness=("aa" * 64,))], [TxOutput(600, P2TR)]), [TxOutput(1_000, P2TR)]
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeLightningd]:
    with fake_lightningd(tmp_path) as fake:
        fake.result("getinfo", {"network": "regtest", "blockheight": HEIGHT})
        fake.result("feerates", {"perkw": {"floor": 253, "estimates": []}})
        fake.result("utxopsbt", {"psbt": BASE.psbt, "estimated_final_weight": 272, "reservations": []})
        fake.result("unreserveinputs", {"reservations": []})
        yield fake


@pytest.fixture
def funds(server: FakeLightningd) -> CoreLightningFunds:
    return CoreLightningFunds(NodeRpc(server.path, answer_timeout_s=5.0))


def output(outpoint: Outpoint, value_sat: int = 1_000, **others: object) -> dict[str, object]:
    return {
        "txid": outpoint.txid,
        "output": outpoint.vout,
        "amount_msat": value_sat * 1000,
        "scriptpubkey": P2TR,
        "status": "confirmed",
        "blockheight": 100,
        "reserved": False,
        **others,
    }


def tx(txid: str, spends: Outpoint, blockheight: int) -> dict[str, object]:
    return {
        "hash": txid,
        "blockheight": blockheight,
        "inputs": [{"txid": spends.txid, "index": spends.vout, "sequence": 0}],
        "outputs": [
            {"index": 0, "amount_msat": 7_000_000, "scriptPubKey": P2TR},
            {"index": 1, "amount_msat": 9_000, "scriptPubKey": P2WPKH},
        ],
    }


def test_it_is_the_wallet_of_either_side(funds: CoreLightningFunds) -> None:
    paying: PayingFunds = funds
    receiving: ReceivingFunds = funds
    assert paying.feerate_per_kw() == receiving.feerate_per_kw() == 253


@pytest.mark.parametrize(
    ("estimates", "feerate"),
    [
        ([], 253),
        ([(2, 9_000), (6, 4_000), (12, 2_000), (100, 300)], 4_000),
        ([(2, 9_000), (12, 2_000)], 9_000),
        ([(12, 2_000)], 253),
        ([(6, 100)], 253),
    ],
)
def test_the_fee_rate_is_that_of_six_blocks_and_never_below_the_floor(
    server: FakeLightningd, funds: CoreLightningFunds, estimates: list[tuple[int, int]], feerate: int
) -> None:
    rows = [{"blockcount": blocks, "feerate": rate, "smoothed_feerate": 1} for blocks, rate in estimates]
    server.result("feerates", {"perkw": {"floor": 253, "estimates": rows}})
    assert funds.feerate_per_kw() == feerate
    assert server.params("feerates") == {"style": "perkw"}


def test_outputs_that_cannot_be_spent_plainly_now_are_left_out(
    server: FakeLightningd, funds: CoreLightningFunds
) -> None:
    rows = [
        output(A, 1_000),
        output(B, 5_000, scriptpubkey=P2WPKH),
        output(C, 2_000, reserved=True, reserved_to_block=HEIGHT + 5),
        output(C, 3_000, status="unconfirmed"),
        output(C, 4_000, status="immature"),
        output(C, 6_000, scriptpubkey="0020" + "cc" * 32),
        output(C, 7_000, scriptpubkey="a914" + "cc" * 20 + "87", redeemscript="0014" + "cc" * 20),
    ]
    server.result("listfunds", {"outputs": rows, "channels": []})
    assert [(item.outpoint, item.value_sat, item.blockheight) for item in funds.outputs()] == [
        (B, 5_000, 100),
        (A, 1_000, 100),
    ]


def test_inputs_are_reserved_without_any_output_at_all(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    assert funds.reserve([A, B]) == BASE
    assert server.params("utxopsbt") == {
        "satoshi": 0,
        "feerate": "253perkw",
        "startweight": 42,
        "utxos": [str(A), str(B)],
        "locktime": 0,
        "reserve": RESERVE_BLOCKS,
    }
    assert [name for name, _ in server.calls] == ["feerates", "utxopsbt"]


def test_an_output_for_emergencies_gives_the_inputs_back(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    server.result("utxopsbt", {"psbt": BASE.psbt, "estimated_final_weight": 444, "change_outnum": 0})
    with pytest.raises(NodeRefused) as caught:
        funds.reserve([A])
    assert caught.value.code == "funds_kept_back"
    assert server.params("unreserveinputs")["psbt"] == BASE.psbt


def test_too_little_for_emergencies_is_told_alike(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    server.error("utxopsbt", 313, "We would not have enough left for min-emergency-msat 25000sat")
    with pytest.raises(NodeRefused, match="25000sat") as caught:
        funds.reserve([A])
    assert caught.value.code == "funds_kept_back"
    server.error("utxopsbt", -32602, "UTXO already reserved")
    with pytest.raises(NodeRefused, match="already reserved") as caught:
        funds.reserve([A])
    assert caught.value.code == "invalid_parameter"


@pytest.mark.parametrize(
    ("until", "taken_off"),
    [((HEIGHT + 72,), None), ((HEIGHT + 100,), 28), ((HEIGHT + 144, HEIGHT + 80), 8), ((HEIGHT + 71,), None)],
)
def test_what_a_renewal_adds_beyond_its_blocks_is_taken_off_again(
    server: FakeLightningd, funds: CoreLightningFunds, until: tuple[int, ...], taken_off: int | None
) -> None:
    rows = [{"reserved": True, "was_reserved": True, "reserved_to_block": height} for height in until]
    server.result("reserveinputs", {"reservations": rows})
    funds.renew(BASE)
    assert server.params("reserveinputs") == {"psbt": BASE.psbt, "exclusive": False, "reserve": RESERVE_BLOCKS}
    taken = [params["reserve"] for name, params in server.calls if name == "unreserveinputs"]
    assert taken == ([] if taken_off is None else [taken_off])


@pytest.mark.parametrize("rows", [[], [{"reserved": False, "was_reserved": False}]])
def test_a_renewal_that_reserved_nothing_is_an_error(
    server: FakeLightningd, funds: CoreLightningFunds, rows: list[dict[str, object]]
) -> None:
    server.result("reserveinputs", {"reservations": rows})
    with pytest.raises(NodeRefused) as caught:
        funds.renew(BASE)
    assert caught.value.code == "inputs_unknown"


def test_a_version_has_its_outputs_in_their_order(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    once, twice = "cHNidP8BAAAABAA==", "cHNidP8BAAAABAAAABAA=="
    server.answers["addpsbtoutput"] = lambda params: {
        "result": {"psbt": once if params["initialpsbt"] == BASE.psbt else twice}
    }
    server.answers["signpsbt"] = lambda params: {
        "result": {"signed_psbt": base64.b64encode(params["psbt"].encode()).decode()}
    }
    assert funds.sign(BASE, [TxOutput(600, P2TR), TxOutput(99_000, P2WPKH)]) == twice.encode()
    added = [
        (params["destination"], params["satoshi"], params["initialpsbt"])
        for name, params in server.calls
        if name == "addpsbtoutput"
    ]
    first, change = address_of(P2TR, "regtest"), address_of(P2WPKH, "regtest")
    assert added == [(first, "600sat", BASE.psbt), (change, "99000sat", once)]


def test_a_lapsed_reservation_has_a_code_of_its_own(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    server.error("signpsbt", -1, f"Aborting PSBT signing. UTXO {A} is not reserved")
    with pytest.raises(NodeRefused) as caught:
        funds.sign(BASE, [])
    assert caught.value.code == "reservation_lapsed"
    server.error("signpsbt", -1, "No wallet inputs to sign.")
    with pytest.raises(NodeRefused) as caught:
        funds.sign(BASE, [])
    assert caught.value.code == "node_refused"


def test_the_spender_that_was_mined_goes_before_one_that_was_only_seen(
    server: FakeLightningd, funds: CoreLightningFunds
) -> None:
    rows = [tx("11" * 32, A, 0), tx("22" * 32, A, 400), tx("33" * 32, B, 450)]
    server.result("listfunds", {"outputs": [], "channels": []})
    server.result("listtransactions", {"transactions": rows})
    found = funds.spender(A)
    assert found is not None
    assert (found.txid, found.blockheight, found.inputs) == ("22" * 32, 400, frozenset({A}))
    assert (found.paid_to(P2TR), found.paid_to(P2WPKH), found.paid_to("6a")) == (7_000, 9, 0)
    assert funds.spender(C) is None


def test_all_transactions_are_not_asked_for_while_the_output_is_in_the_wallet(
    server: FakeLightningd, funds: CoreLightningFunds
) -> None:
    server.result("listfunds", {"outputs": [output(A, reserved=True)], "channels": []})
    assert funds.spender(A) is None
    assert [name for name, _ in server.calls] == ["listfunds"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("error code: -26\\nerror message:\\nmin relay fee not met, 0 < 154\\n.", "broadcast_refused"),
        ("error code: -27\\nerror message:\\nTransaction outputs already in utxo set\\n.", "already_mined"),
    ],
)
def test_a_refused_broadcast_tells_the_reason_and_not_the_whole_transaction(
    server: FakeLightningd, funds: CoreLightningFunds, reason: str, code: str
) -> None:
    server.error("sendpsbt", -1, f"Error broadcasting transaction: {reason} Unsent tx discarded 0200000000")
    with pytest.raises(NodeRefused) as caught:
        funds.send(OWN_PSBT)
    assert caught.value.code == code
    assert reason.split("\\n")[2] in caught.value.message
    assert "0200000000" not in caught.value.message
    assert "\\" not in caught.value.message


def test_a_child_spends_all_of_that_output_at_the_given_rate(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    server.result("newaddr", {"p2tr": OWN_ADDRESS})
    server.result("withdraw", {"tx": "02", "txid": "44" * 32, "psbt": "x"})
    assert funds.bump(A, 5_000) == "44" * 32
    assert server.params("withdraw") == {
        "destination": OWN_ADDRESS,
        "satoshi": "all",
        "feerate": "5000perkw",
        "minconf": 0,
        "utxos": [str(A)],
    }
    assert server.params("newaddr") == {"addresstype": "p2tr"}


def test_income_that_is_not_booked_yet_is_described_later(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    server.result("bkpr-editdescriptionbyoutpoint", {"updated": []})
    with pytest.raises(RetryError) as caught:
        funds.describe_income(A, "wattline: X")
    assert caught.value.code == "income_not_booked"
    server.result("bkpr-editdescriptionbyoutpoint", {"updated": [{"tag": "deposit"}]})
    funds.describe_income(A, "wattline: X")
    assert server.params("bkpr-editdescriptionbyoutpoint") == {"outpoint": str(A), "description": "wattline: X"}


def test_only_what_was_set_is_told_of_the_way_to_bitcoind(server: FakeLightningd, funds: CoreLightningFunds) -> None:
    configs = {
        "network": {"value_str": "regtest", "source": "cmdline"},
        "bitcoin-datadir": {"value_str": "/srv/bitcoin", "source": "cmdline", "plugin": "bcli"},
        "bitcoin-rpcport": {"value_int": 18443, "source": "cmdline"},
        "bitcoin-rpcuser": {"source": "default"},
    }
    server.result("listconfigs", {"configs": configs})
    assert funds.bitcoin_options() == {"bitcoin-datadir": "/srv/bitcoin", "bitcoin-rpcport": "18443"}


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("newaddr", lambda funds: funds.new_address()),
        ("feerates", lambda funds: funds.feerate_per_kw()),
        ("listfunds", lambda funds: funds.outputs()),
        ("utxopsbt", lambda funds: funds.reserve([A])),
        ("reserveinputs", lambda funds: funds.renew(BASE)),
        ("unreserveinputs", lambda funds: funds.release(BASE)),
        ("signpsbt", lambda funds: funds.sign(BASE, [])),
        ("listfunds", lambda funds: funds.spender(A)),
        ("sendpsbt", lambda funds: funds.send(OWN_PSBT)),
        ("newaddr", lambda funds: funds.bump(A, 1_000)),
        ("bkpr-editdescriptionbyoutpoint", lambda funds: funds.describe_income(A, "x")),
        ("listconfigs", lambda funds: funds.bitcoin_options()),
    ],
)
def test_a_node_that_hangs_up_is_passing_trouble_and_a_strange_answer_is_not(
    server: FakeLightningd, funds: CoreLightningFunds, method: str, call: Callable[[CoreLightningFunds], Any]
) -> None:
    server.answers[method] = lambda _params: None
    with pytest.raises(NodeUnavailable):
        call(funds)
    server.error(method, -4, "plugin died")
    with pytest.raises(NodeUnavailable):
        call(funds)
    if method != "unreserveinputs":  # whose answer is not read
        server.result(method, {"strange": True})
        with pytest.raises(NodeRefused) as caught:
            call(funds)
        assert caught.value.code == "unexpected_answer"
