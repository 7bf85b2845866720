"""The RPC methods take whatever JSON there is: a parameter within its range, or an error that says what is allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyln.client import RpcException

from tests.plugin.fakes import CABLE, new_session, session_id
from wattline.core.session.session import Session
from wattline.core.tariff import MAX_PRICE_MSAT, Tariff
from wattline.plugin.report import Json
from wattline.plugin.rpc import INVALID_PARAMETERS, add_methods

LEDGER_MAX = 2**63 - 1
SESSION, OVER = session_id(1), session_id(2)
EVIL = "\x1b[2J\n\u202e" + "x" * 5_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(EVIL) | st.just("9" * 5_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from((2**64, -1, 10**5000, "[1]", SESSION.lower(), CABLE.upper(), SESSION, CABLE, "5", "٣", 1.0))


class Told:
    """Takes what the methods hand on, and trusts nothing: what reaches it would reach the ledger."""

    def __init__(self) -> None:
        self.current = Tariff.of(300_000)

    def change(self, tariff: Tariff) -> None:
        assert isinstance(tariff, Tariff)

    def stop(self, session_id: str) -> Session | None:
        return new_session() if self._known(session_id) else None

    def sessions(self, session_id: str | None, limit: int) -> list[Json]:
        assert type(limit) is int
        assert 1 <= limit <= LEDGER_MAX
        return [{"stop_reason": "not_paid"}] if session_id in (None, OVER) or self._known(session_id) else []

    def totals(self, start: int, end: int) -> Json:
        assert 0 <= start <= end <= LEDGER_MAX
        return {}

    def forgive(self, cable_node_id: str) -> bool:
        assert len(cable_node_id) == 66
        return cable_node_id == CABLE

    def resolve(self, subject: str, outcome: str, reason: str) -> None:
        assert subject == "chain" or len(subject) == 26
        assert outcome.isprintable()
        assert reason.isprintable()
        assert len(outcome) <= 200
        assert len(reason) <= 200

    def refused_cables(self) -> list[Json]:
        return []

    def _known(self, session_id: str) -> bool:
        assert len(session_id) == 26
        return session_id == SESSION


class Lifecycle:
    """Of a socket that runs: each part of its app is one that takes what it is told."""

    def __init__(self) -> None:
        self.report = self.resolving = self.prices = self.sessions = Told()
        self.app = self.running_app = self

    def status(self) -> Json:
        return {"state": "running"}


class Methods:
    """What pyln would have registered."""

    def __init__(self) -> None:
        self.methods: dict[str, Callable[..., None]] = {}
        add_methods(self, Lifecycle())  # type: ignore[arg-type]

    def add_method(self, name: str, method: Callable[..., None], **_: Any) -> None:
        self.methods[name] = method

    def call(self, name: str, *values: object) -> Json | RpcException:
        request = Request()
        self.methods[name](request, *values)
        assert request.answered.wait(10)
        return request.answer


class Request:
    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: Any = None

    def set_result(self, result: Json) -> None:
        self._set(result)

    def set_exception(self, error: RpcException) -> None:
        self._set(error)

    def _set(self, answer: object) -> None:
        self.answer = answer
        self.answered.set()


METHODS = Methods()
PARAMETERS = {
    "wattline-status": 0,
    "wattline-sessions": 2,
    "wattline-tariff": 3,
    "wattline-stop": 1,
    "wattline-report": 2,
    "wattline-refused": 1,
    "wattline-resolve": 3,
}


def test_every_method_is_tried() -> None:
    assert set(METHODS.methods) == set(PARAMETERS)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(PARAMETERS)), st.data())
def test_whatever_json_a_parameter_is_there_is_a_result_or_a_word_on_what_is_allowed(name: str, data: Any) -> None:
    values = [data.draw(JSON) for _ in range(PARAMETERS[name])]
    answer = METHODS.call(name, *values)
    if isinstance(answer, RpcException):
        assert answer.code == INVALID_PARAMETERS, answer
        message = answer.message
        assert message.isprintable(), repr(message)
        assert len(message) < 300


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("wattline-refused", [1], "66 lower-case hex digits"),
        ("wattline-refused", CABLE.upper(), "66 lower-case hex digits"),
        ("wattline-stop", {"a": 1}, "26 characters"),
        ("wattline-stop", SESSION[:-1] + "u", "allowed are"),
        ("wattline-sessions", 5, "26 characters"),
        ("wattline-tariff", 1.5, f"0 to {MAX_PRICE_MSAT}"),
        ("wattline-tariff", "9" * 5_000, f"0 to {MAX_PRICE_MSAT}"),
        pytest.param("wattline-tariff", 10**5000, f"0 to {MAX_PRICE_MSAT}", id="of 5001 digits"),
        ("wattline-tariff", True, f"0 to {MAX_PRICE_MSAT}"),
        ("wattline-report", -1, "0 to"),
    ],
)
def test_a_wrong_parameter_is_told_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    answer = METHODS.call(name, value)
    assert isinstance(answer, RpcException)
    assert allowed in answer.message


def test_a_stop_says_how_the_session_stands_or_why_there_is_nothing_to_stop() -> None:
    assert METHODS.call("wattline-stop", SESSION) == {
        "session_id": SESSION,
        "stopped": True,
        "state": "open",
        "stop_reason": None,
    }
    for session, why in (
        (OVER, "no live session of that id: it is over (not_paid)"),
        (session_id(3), "no live session of that id"),
    ):
        answer = METHODS.call("wattline-stop", session)
        assert isinstance(answer, RpcException)
        assert answer.message == f"session_id: {why}"
