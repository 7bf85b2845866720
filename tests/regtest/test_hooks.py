"""Who is asked, in which order, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wattline.regtest.node.hooks import HookChain, Registration, ordered
from wattline.regtest.node.log import Log
from wattline.regtest.node.plugin import PluginGone

Json = dict[str, Any]


class Witness:
    """Registers plugins with fixed answers and writes down who was asked with what."""

    def __init__(self, directory: Path) -> None:
        self.chain = HookChain("htlc_accepted", Log(directory / "log", "debug"))
        self.asked: list[str] = []
        self.seen: list[Json] = []

    def register(self, name: str, answer: Json | None, before: Sequence[str] = (), after: Sequence[str] = ()) -> None:
        """``answer`` None: it dies instead."""

        async def ask(params: Json) -> Json:
            self.asked.append(name)
            self.seen.append(params)
            if answer is None:
                raise PluginGone
            return answer

        self.chain.register(Registration(name, ask, before, after))

    def run(self) -> Json:
        def changed(params: Json, answer: Json) -> Json:
            return {**params, "payload": answer["payload"]} if "payload" in answer else params

        return asyncio.run(self.chain.run({"payload": "00"}, lambda _: None, changed))


CONTINUE = {"result": "continue"}


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path)


def test_who_wants_to_be_before_another_is_asked_before_it(witness: Witness) -> None:
    witness.register("keysend", CONTINUE)
    witness.register("late", CONTINUE, after=("keysend",))
    witness.register("wattline", CONTINUE, before=("keysend",))
    assert witness.run()["result"] == "continue"
    assert witness.asked == ["wattline", "keysend", "late"]


def test_the_next_one_sees_what_the_last_one_put_in_place(witness: Witness) -> None:
    witness.register("first", {"result": "continue", "payload": "01"})
    witness.register("second", CONTINUE)
    assert witness.run()["params"] == {"payload": "01"}
    assert [params["payload"] for params in witness.seen] == ["00", "01"]


def test_a_refusal_ends_the_questions(witness: Witness) -> None:
    witness.register("first", {"result": "fail", "failure_message": "2002"})
    witness.register("second", CONTINUE)
    assert witness.run() == {"result": "fail", "failure_message": "2002"}
    assert witness.asked == ["first"]


def test_who_dies_is_taken_to_have_said_continue(witness: Witness) -> None:
    witness.register("first", None)
    witness.register("second", CONTINUE)
    assert witness.run()["result"] == "continue"
    assert witness.asked == ["first", "second"]


def test_after_a_refusal_a_newcomer_is_asked_last_whatever_it_wants_as_lightningd_has_it(witness: Witness) -> None:
    witness.register("keysend", {"result": "fail", "failure_message": "2002"})
    witness.run()
    witness.chain.leave("keysend")
    witness.asked.clear()
    witness.register("other", CONTINUE)
    witness.register("wattline", CONTINUE, before=("other",))
    witness.run()
    assert witness.asked == ["other", "wattline"]


def test_without_a_refusal_a_newcomer_is_asked_where_it_wants(witness: Witness) -> None:
    witness.register("other", CONTINUE)
    witness.run()
    witness.asked.clear()
    witness.register("wattline", CONTINUE, before=("other",))
    witness.run()
    assert witness.asked == ["wattline", "other"]


def test_wishes_that_contradict_each_other_are_refused() -> None:
    async def ask(params: Json) -> Json:
        return params

    with pytest.raises(ValueError, match="a, b"):
        ordered([Registration("a", ask, before=("b",)), Registration("b", ask, before=("a",))])
