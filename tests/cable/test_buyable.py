"""Every configuration that is accepted can buy and sell; every other one is refused by the name of a key. And every
offer that is taken comes to deliver: what cannot begin is not paid for first."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.cable.policy.budget import PaymentAccount
from wattline.cable.policy.buyer import Buyer
from wattline.cable.policy.events import Arrived, OnchainTerms, SocketState, Statement
from wattline.cable.policy.offer import (
    BuyerLimits,
    Offer,
    OfferError,
    SessionTerms,
    begin_msat,
    check_keysend,
    check_onchain_begins,
    why_never,
)
from wattline.cable.policy.onchain import OnchainRefused, Scope, fund
from wattline.cable.policy.reconciliation import EnergyTrack
from wattline.cable.settings import CableSettings
from wattline.core.aggregate import SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.core.bitcoin.chain import Outpoint
from wattline.core.errors import UsageError
from wattline.core.lightning.onchain import WalletOutput
from wattline.core.session.event import CreditArrived, MeterValue
from wattline.core.session.machine import step
from wattline.core.session.session import Session, opened
from wattline.core.session.session import Terms as SocketTerms
from wattline.core.session.state import Method, State
from wattline.core.settings import parse_settings
from wattline.core.tariff import Tariff
from wattline.device.meters.reading import MIN_VOLTAGE_MV
from wattline.plugin.settings import SocketSettings

NODE = "02" + "ab" * 32
SESSION = "0" * 26
KEY = re.compile(r"the test: (?:\(file\): )?(?:limits|payment|onchain|session|tariff|outlet)[\w.]*: ")
METER = {"driver": "ina228", "bus": 1, "address": 0x40, "shunt_ohms": 0.001, "max_current_a": 40.0}
STEP_MS = 500
WORLD_MS = 30_000
amounts = st.integers(0, 7).flatmap(lambda digits: st.integers(10**digits, 10 ** (digits + 1)))
prices = st.just(0) | amounts


def names_a_key(message: str) -> None:
    assert KEY.match(message), message


def cable_settings(**tables: dict[str, Any]) -> CableSettings | None:
    """None where they are refused, which names a key."""
    values = {
        "socket": {"address": f"{NODE}@127.0.0.1:9750"},
        "node": {"rpc": "lightning-rpc"},
        "meter": METER,
        **tables,
    }
    try:
        found = parse_settings(values, CableSettings, "the test")
    except UsageError as error:
        names_a_key(error.message)
        return None
    never = reason(found)
    if never is not None:
        names_a_key(f"the test: {never}")
        return None
    return found


def reason(cable: CableSettings) -> str | None:
    """Why nothing can be bought with these settings."""
    return why_never(cable.payment.method, cable.limits.caps, cable.payment.pace, cable.onchain.limits)


def delivers(cable: CableSettings, terms: SocketTerms, min_increment_msat: int, onchain: OnchainTerms | None) -> bool:
    """An honest cable of these settings at an honest socket: whether the session comes to deliver."""
    session = opened(SESSION, "A1", Method.KEYSEND, terms, 0)
    session, _ = step(session, MeterValue(0, 0), 0)
    buyer = Buyer(
        terms=SessionTerms(
            SESSION, NODE, "A1", terms.tariff, terms.rated_power_mw, terms.credit_cap_msat, 1_000, min_increment_msat, 1
        ),
        limits=BuyerLimits(cable.limits.caps, cable.payment.pace, cable.limits.tolerance, 3, MIN_VOLTAGE_MV),
        account=PaymentAccount(),
        track=EnergyTrack(0),
        day_sent_msat=lambda account: account.sent_msat,
        next_sequence=1,
        opened_ms=0,
    )
    if onchain is not None:
        buyer.go_onchain(onchain, cable.onchain.limits)
    for now_ms in range(0, WORLD_MS, STEP_MS):
        session, _ = step(session, MeterValue(0, 0), now_ms)
        buyer.on_reading(now_ms, 0, 0, 48_000)
        buyer.on_statement(_statement(session, now_ms), now_ms)
        for payment in buyer.decide(now_ms):
            assert session.account.balance_msat + payment.amount_msat <= terms.credit_cap_msat
            session, _ = step(session, CreditArrived(payment.amount_msat), now_ms)
            buyer.on_payment(Arrived(payment.sequence, payment.amount_msat, payment.amount_msat, 50), now_ms)
        if session.state is State.DELIVERING:
            return True
        if buyer.stop is not None:
            return False
    return False


def _statement(session: Session, sequence: int) -> Statement:
    account, state = session.account, SocketState(session.state.value)
    return replace(
        Statement(SESSION, sequence, state, False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ""),
        credited_msat=account.credited_msat,
        balance_msat=account.balance_msat,
    )


def socket_terms(tariff: Tariff, **changes: int) -> SocketTerms:
    values = {
        "rated_power_mw": 1_000,
        "meter_interval_ms": 100,
        "pause_max_s": 300,
        "open_timeout_s": 300,
        "cable_lost_s": 60,
        "credit_cap_msat": 10**15,
        "min_refund_msat": 1,
    }
    return SocketTerms(tariff=tariff, **values | changes)


def allowed(data: st.DataObject, cable: CableSettings) -> Tariff:
    """Any prices that the limits allow."""
    limits = cable.limits
    return Tariff.of(
        data.draw(st.integers(0, limits.max_price_msat_per_kwh), "asked for energy"),
        data.draw(st.integers(0, limits.max_time_price_msat_per_hour), "asked for time"),
        data.draw(st.integers(0, limits.max_session_fee_msat), "asked for a session"),
    )


def offer_of(tariff: Tariff, credit_cap_msat: int = 0) -> Offer:
    return Offer(NODE, "regtest", tariff, (), ("keysend",), 0, credit_cap_msat, 1, 1_000, 60, 60, 60, 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_offer_within_the_limits_that_is_taken_comes_to_deliver(data: st.DataObject) -> None:
    def draw(strategy: st.SearchStrategy[int], name: str) -> int:
        return data.draw(strategy, name)

    day = draw(amounts, "day")
    cable = cable_settings(
        limits={
            "max_price_msat_per_kwh": draw(prices, "price"),
            "max_time_price_msat_per_hour": draw(prices, "time price"),
            "max_session_fee_msat": draw(prices, "fee"),
            "max_prepaid_msat": draw(amounts, "prepaid"),
            "max_session_msat": draw(st.integers(1, day), "session"),
            "max_day_msat": day,
            "max_fee_ratio": data.draw(st.sampled_from([0.0, 0.05, 1.0]), "fee ratio"),
        },
        payment={
            "min_increment_msat": draw(st.sampled_from([1, 10, 1_000]), "least"),
            "max_increment_msat": draw(st.sampled_from([10, 1_000, 100_000]), "most"),
            "max_in_flight": draw(st.integers(1, 4), "in flight"),
        },
    )
    if cable is None:
        return
    tariff, power_mw = allowed(data, cable), draw(st.sampled_from([1_000, 1_400_000]), "power")
    need_msat = begin_msat(tariff, power_mw)
    cap_msat = draw(st.sampled_from([need_msat, need_msat * 2, 10**17]), "credit cap")
    offer, most_msat = offer_of(tariff, cap_msat), min(cable.limits.max_prepaid_msat, cap_msat)
    try:
        check_keysend(cable.limits.caps, cable.payment.pace, offer, power_mw)
    except OfferError:
        assert most_msat < need_msat + cable.payment.min_increment_msat or cable.limits.max_session_msat < 2 * need_msat
        return
    assert need_msat <= most_msat
    assert delivers(cable, socket_terms(tariff, rated_power_mw=power_mw, credit_cap_msat=cap_msat), 1, None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_offer_that_is_taken_on_chain_comes_to_deliver(data: st.DataObject) -> None:
    session_msat = data.draw(st.integers(1, 3_000_000), "session")
    cable = cable_settings(
        limits={
            "max_price_msat_per_kwh": data.draw(prices, "price"),
            "max_session_fee_msat": data.draw(st.sampled_from([0, 1_000, 2_000_000]), "fee"),
            "max_prepaid_msat": 1_000,
            "max_session_msat": max(1_000, session_msat),
            "max_day_msat": 3_000_000,
        },
        payment={"method": "onchain"},
        onchain={
            "max_prepaid_sat": data.draw(st.sampled_from([1, 50, 500]), "prepaid"),
            "max_fee_ratio": data.draw(st.sampled_from([0.01, 0.2, 1.0]), "ratio"),
            "max_fee_sat": data.draw(st.sampled_from([1, 150, 2_000]), "most fee"),
            "min_feerate_per_kw": data.draw(st.sampled_from([253, 1_000]), "rate"),
        },
    )
    if cable is None:
        return
    rules = OnchainRules(SMALLEST_OUTPUT_SAT, 10**9, 10**9, 253, 10**6, 3_600, 1, 5)
    limits, wallet = cable.limits, [WalletOutput(Outpoint("11" * 32, 0), 10**8, 100)]
    tariff = allowed(data, cable)
    scope = Scope.within(tariff, 1_000, limits.max_session_msat, limits.max_day_msat, None)
    chosen = fund(wallet, 200, 253, rules, cable.onchain.limits, scope)
    try:
        check_onchain_begins(chosen, rules, cable.onchain.limits, scope)
    except OnchainRefused:
        caps_sat = SMALLEST_OUTPUT_SAT, limits.max_session_msat // 1000 - chosen.fee_sat
        assert max(begin_msat(tariff, 1_000), SMALLEST_OUTPUT_SAT * 1000) > min(caps_sat) * 1000
        return
    most_sat = min(chosen.most_sat, rules.exposure_cap_sat)
    assert delivers(cable, socket_terms(tariff), 1, OnchainTerms(rules.floor_sat, most_sat, 10**9, chosen.fee_sat))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_socket_that_is_accepted_can_be_bought_from(data: st.DataObject) -> None:
    """By a cable with money; over Lightning, and on-chain where that is on."""
    cap_msat, cap_sat = data.draw(st.integers(1_000, 10**7), "cap"), data.draw(st.integers(546, 20_000), "cap on-chain")
    values = {
        "outlet": [
            {
                "outlet_id": "A1",
                "max_power_w": data.draw(st.integers(1, 100_000), "watts"),
                "meter": METER,
                "relay": {"driver": "gpio", "chip": "/dev/gpiochip0", "line": 17, "active_low": False},
            }
        ],
        "tariff": {
            "energy_msat_per_kwh": data.draw(prices, "price"),
            "time_msat_per_hour": data.draw(prices, "time price"),
            "session_fee_msat": data.draw(prices, "fee"),
        },
        "session": {"meter_interval_ms": data.draw(st.integers(20, 400), "interval"), "credit_cap_msat": cap_msat},
        "payment": {"min_increment_msat": data.draw(st.integers(1, 10**5), "least")},
        "onchain": {
            "enabled": data.draw(st.booleans(), "onchain"),
            "credit_cap_sat": cap_sat,
            "exposure_cap_sat": data.draw(st.integers(546, 50_000), "exposure"),
        },
    }
    try:
        socket = parse_settings(values, SocketSettings, "the test")
    except UsageError as error:
        names_a_key(error.message)
        return
    terms = socket.terms("A1", socket.tariff.as_tariff())
    cable = rich()
    assert delivers(cable, terms, socket.payment.min_increment_msat, None)
    if socket.onchain.enabled:
        rules = socket.onchain
        onchain = OnchainTerms(rules.floor_sat, rules.exposure_cap_sat, rules.credit_cap_sat, 200)
        assert delivers(cable, replace(terms, credit_cap_msat=10**12), 1, onchain)


def rich() -> CableSettings:
    most = 10**12
    cable = cable_settings(
        limits={"max_price_msat_per_kwh": 0, "max_prepaid_msat": most, "max_session_msat": most, "max_day_msat": most},
        payment={"max_increment_msat": most},
        onchain={"max_prepaid_sat": 10**8, "max_increment_sat": 10**8},
    )
    assert cable is not None
    return cable


@pytest.mark.parametrize(
    ("table", "key", "value", "word"),
    [
        ("payment", "min_increment_msat", 150, "limits.max_session_msat"),
        ("payment", "method", "onchain", "limits.max_session_msat"),
    ],
)
def test_a_cable_that_could_never_buy_is_refused_by_the_key(table: str, key: str, value: Any, word: str) -> None:
    limits: dict[str, Any] = {
        "max_price_msat_per_kwh": 300_000_000,
        "max_session_fee_msat": 50,
        "max_prepaid_msat": 150,
        "max_session_msat": 150,
        "max_day_msat": 10_000,
        "max_fee_ratio": 0.05,
    }
    tables = {"limits": limits, "payment": {"min_increment_msat": 1}}
    base = {"socket": {"address": f"{NODE}@127.0.0.1:9750"}, "node": {"rpc": "lightning-rpc"}, "meter": METER}
    assert reason(parse_settings(base | tables, CableSettings, "the test")) is None
    tables[table] = tables[table] | {key: value}
    never = reason(parse_settings(base | tables, CableSettings, "the test"))
    assert never is not None
    assert never.startswith(word)


@pytest.mark.parametrize(
    ("tariff", "credit_cap_msat", "word"),
    [
        (Tariff.of(300_000, 0, 149), 0, "limits.max_prepaid_msat"),
        (Tariff.of(300_000, 0, 40), 60, "its own cap"),
        (Tariff.of(2_000_000), 0, "limits.max_prepaid_msat"),
    ],
)
def test_an_offer_that_cannot_begin_is_refused_by_what_does_not_allow_it(
    tariff: Tariff, credit_cap_msat: int, word: str
) -> None:
    limits = {"max_price_msat_per_kwh": 10**9, "max_session_fee_msat": 150, "max_session_msat": 1_000}
    cable = cable_settings(limits={**limits, "max_prepaid_msat": 150, "max_day_msat": 1_000})
    assert cable is not None
    check_keysend(cable.limits.caps, cable.payment.pace, offer_of(Tariff.of(300_000), credit_cap_msat), 1_400_000)
    with pytest.raises(OfferError) as caught:
        check_keysend(cable.limits.caps, cable.payment.pace, offer_of(tariff, credit_cap_msat), 1_400_000)
    assert caught.value.code == "prepaid_limit"
    assert word in caught.value.message
