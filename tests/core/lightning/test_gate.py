"""Whatever comes from the other side, from a configuration or from the node itself: each call that reaches lightningd
or bitcoind keeps to a strict form, by a judge that shares nothing with the gates, and nothing ends in another error
than ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.core.lightning.judge import BITCOIND, is_right
from wattline.core.bitcoin.address import address_of
from wattline.core.bitcoin.bitcoind import Bitcoind
from wattline.core.bitcoin.bitcoind_rpc import Access, BitcoindRpc
from wattline.core.bitcoin.chain import Outpoint, TxInput, TxOutput
from wattline.core.bitcoin.psbt import finalized_psbt
from wattline.core.bitcoin.transaction import make_tx
from wattline.core.errors import WattlineError
from wattline.core.lightning import rpc
from wattline.core.lightning.checked_calls import CALLS
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import Hop, Route
from wattline.core.lightning.onchain import Base
from wattline.core.lightning.onion import payment_hash_of

OWN, OTHER, THIRD = "02" + "aa" * 32, "02" + "33" * 32, "03" + "44" * 32
NO_POINT = "02" + "bb" * 32
PREIMAGE, SCRIPT = "11" * 32, "5120" + "ab" * 32
COIN = Outpoint("cd" * 32, 1)
TX = make_tx(2, 0, [TxInput(COIN, 0, witness=("aa" * 64,))], [TxOutput(600, SCRIPT)])
PSBT, BASE = finalized_psbt(TX, [TxOutput(1_000, SCRIPT)]), "cHNidP8BAAAA"


class Answering:
    """In place of the connection to lightningd: judges, and answers what a node would."""

    asked: list[str] = []  # noqa: RUF012 - of the property that runs

    def __init__(self, path: str, timeout_s: float) -> None:
        pass

    def call(self, method: str, params: dict[str, Any]) -> object:
        assert is_right(method, params), f"{method} was handed {params}"
        self.asked.append(method)
        return {
            "getinfo": {"id": OWN, "network": "regtest", "version": "v26.06.6", "blockheight": 1000},
            "feerates": {"perkw": {"floor": 253}},
            "newaddr": {"p2tr": ADDRESS},
            "createonion": {"onion": "00" * 1366, "shared_secrets": ["aa" * 32]},
            "addpsbtoutput": {"psbt": BASE},
            "reserveinputs": {"reservations": [{"reserved": True, "reserved_to_block": 9_000}]},
        }.get(method, {})


ADDRESS = address_of(SCRIPT, "regtest")


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_Connection", Answering)


def bitcoind() -> Bitcoind:
    made = Bitcoind(Access("127.0.0.1", 1, user="a", password="b"))

    def exchange(method: str, request: dict[str, Any]) -> object:
        assert BITCOIND[method](list(request["params"])), f"{method} was handed {request['params']}"
        return {"result": None, "error": None}

    made._rpc = type("Judged", (BitcoindRpc,), {"_exchange": staticmethod(exchange)})(made._rpc.access)
    return made


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """No other error than one of ours."""
    with contextlib.suppress(WattlineError):
        yield


# Whatever may come.

VALID = [
    *(OWN, OTHER, THIRD, NO_POINT, PREIMAGE, SCRIPT, PSBT, BASE, TX.raw, "d9" + "y" * 102, "104x1x0/0", "1" * 700),
    *("wattline:offer:1:" + "ab" * 32, "wattline:1:0123456789ABCDEFGHJKMNPQRS:3", "cHNidP8=", "", str(COIN)),
]


@st.composite
def _changed(draw: st.DrawFn) -> str:
    """Something right, with something wrong in it."""
    text = draw(st.sampled_from(VALID))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.text(max_size=3)) + text[place + draw(st.integers(0, 2)) :]


texts = st.one_of(st.sampled_from(VALID), _changed(), st.sampled_from(VALID).map(str.upper), st.text(max_size=80))
numbers = st.one_of(st.integers(-2, 3_000), st.integers(-(2**70), 2**70))
amounts = st.one_of(st.integers(1, 10**6), numbers)
hops = st.builds(Hop, texts, st.one_of(st.sampled_from([OTHER, THIRD]), texts), amounts, numbers, amounts, numbers)


def _routes(destination: str, amount_msat: int, chosen: list[Hop]) -> Route:
    return Route(destination, amount_msat, tuple(chosen))


routes = st.builds(_routes, st.one_of(st.just(OTHER), texts), amounts, st.lists(hops, max_size=3))
outputs = st.lists(st.builds(TxOutput, amounts, st.one_of(st.just(SCRIPT), texts)), min_size=1, max_size=3)
bases = st.builds(Base, texts, st.just(272))
DIRECT = Route(OTHER, 5_000, (Hop("104x1x0/0", OTHER, 5_000, 45, 5_000, 45),))


@example(OWN, 1_000, 10, 45)
@example(OTHER, 1_000, 10, 45)
@given(texts, amounts, numbers, numbers)
def test_a_route_is_asked_for_to_a_node_and_never_to_the_own_one(
    destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int
) -> None:
    with ours():
        CoreLightning("x").find_route(destination, amount_msat, maxfee_msat, final_cltv)


@example(DIRECT, payment_hash_of(PREIMAGE), PREIMAGE, "wattline:1:X:1", "wattline:1:X:1")
@given(routes, texts, st.one_of(st.just(PREIMAGE), texts), texts, texts)
def test_an_onion_is_made_of_points_and_bounded_payloads(
    route: Route, payment_hash: str, preimage: str, record: str, label: str
) -> None:
    with ours():
        CoreLightning("x").send(route, payment_hash, preimage, record, label)


@example("text", "d9" + "y" * 102, OTHER)
@example("text", "y" * 104, OTHER)
@given(texts, texts, texts)
def test_a_signature_is_asked_about_when_it_is_one(message: str, signature: str, node_id: str) -> None:
    with ours():
        CoreLightning("x").verify(message, signature, node_id)


@given(texts, numbers, numbers)
def test_hashes_texts_and_numbers_have_their_form(text: str, number: int, other: int) -> None:
    node = CoreLightning("x")
    for call in (
        lambda: node.sign(text),
        lambda: node.sent(text),
        lambda: node.wait(text, number),
        lambda: node.paid_since(number, other),
    ):
        with ours():
            call()


@example(Base(BASE, 272), [TxOutput(600, SCRIPT), TxOutput(1_000, "0014" + "ab" * 20)])
@example(Base(BASE, 272), [TxOutput(600, "1" * 700)])
@given(bases, outputs)
def test_a_version_has_addresses_of_our_own_encoding(base: Base, wanted: list[TxOutput]) -> None:
    with ours():
        CoreLightningFunds(rpc.NodeRpc("x")).sign(base, wanted)


@given(texts, texts, numbers, bases)
def test_whatever_else_the_wallet_is_asked_has_its_form(text: str, other: str, number: int, base: Base) -> None:
    funds = CoreLightningFunds(rpc.NodeRpc("x"))
    for call in (
        lambda: funds.send(text),
        lambda: funds.describe_income(Outpoint.parse(text), other),
        lambda: funds.bump(Outpoint(text, number), number),
        lambda: funds.reserve([Outpoint(other, number)]),
        lambda: funds.renew(base),
        lambda: funds.release(base),
    ):
        with ours():
            call()


@example(TX.raw, 0)
@given(texts, numbers)
def test_whatever_bitcoind_is_asked_has_its_form(text: str, number: int) -> None:
    chain = bitcoind()
    for call in (
        lambda: chain.broadcast(text),
        lambda: chain.verdict(text),
        lambda: chain.mempool_tx(text),
        lambda: chain.confirmations(text),
        lambda: chain.unspent(Outpoint(text, number), include_mempool=True),
        lambda: chain.mempool_spenders([Outpoint(text, number)]),
    ):
        with ours():
            call()


names = st.one_of(st.sampled_from(sorted(CALLS)), texts)
values = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none(), st.binary(max_size=3), st.floats()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(names, st.data())
def test_the_gates_judge_anything_at_all_without_an_error(method: str, data: st.DataObject) -> None:
    known = sorted(CALLS.get(method, {}))
    params = {name: data.draw(values) for name in known}
    with ours():
        rpc.NodeRpc("x").call(method, params)
    with ours():
        bitcoind()._rpc.call(method, *params.values())


def test_what_is_right_passes() -> None:
    Answering.asked.clear()
    node, funds = CoreLightning("x"), CoreLightningFunds(rpc.NodeRpc("x"))
    node.send(DIRECT, payment_hash_of(PREIMAGE), PREIMAGE, "wattline:1:X:1", "wattline:1:X:1")
    with ours():
        node.verify("text", "d9" + "y" * 102, OTHER)
    with ours():
        node.find_route(OTHER, 1_000, 10, 45)
    with ours():
        funds.sign(Base(BASE, 272), [TxOutput(600, SCRIPT)])
    with ours():
        funds.send(PSBT)
    wanted = ["createonion", "sendonion", "checkmessage", "getroutes", "addpsbtoutput", "signpsbt", "sendpsbt"]
    assert [method for method in Answering.asked if method != "getinfo"] == wanted
