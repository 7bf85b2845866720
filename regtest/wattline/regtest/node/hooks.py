"""Who is asked about an htlc, and in which order (lightningd/plugin_hook.c)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattline.regtest.node.log import Log
from wattline.regtest.node.plugin import PluginGone

Json = dict[str, Any]
Ask = Callable[[Json], Awaitable[Json]]


@dataclass(slots=True)
class Registration:
    """One who wants to be asked."""

    name: str
    ask: Ask
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    is_gone: bool = field(default=False)


class HookChain:
    """One hook with all who registered for it.

    While somebody is being asked the order stays as it is, newcomers at the end; the new order waits until nobody is.
    An answer other than ``continue`` leaves lightningd counting the hook as in use for ever (v26.06.6: the callback
    returns without hook_done), so after one the order is never renewed. That is a fault, and a plugin has to live with
    it."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self._log = log
        self._chain: list[Registration] = []
        self._next: list[Registration] | None = None
        self._users = 0

    def register(self, registration: Registration) -> None:
        self._chain.append(registration)
        wanted = ordered([one for one in self._chain if not one.is_gone])
        if self._users:
            self._next = wanted
        else:
            self._chain = wanted

    def leave(self, name: str) -> None:
        """It is not asked any more."""
        for registration in (*self._chain, *(self._next or [])):
            if registration.name == name:
                registration.is_gone = True
        if not self._users:
            self._chain = [one for one in self._chain if not one.is_gone]

    async def run(self, params: Json, asking: Callable[[str], None], changed: Callable[[Json, Json], Json]) -> Json:
        """The verdict: the first answer that is not ``continue``, else ``continue``.

        ``asking`` hears whose turn it is, ``changed`` makes the next one's parameters of the last one's and its answer.
        Who dies is taken to have said ``continue``.
        """
        self._users += 1
        chain = self._chain
        position = 0
        while position < len(chain):
            registration = chain[position]
            position += 1
            if registration.is_gone:
                continue
            asking(registration.name)
            try:
                answer = await registration.ask(params)
            except PluginGone:
                self._log.debug(f"Plugin died from {self.name} hook call")
                continue
            if answer.get("result") != "continue":
                return answer
            params = changed(params, answer)
        self._users -= 1
        if self._users == 0 and self._next is not None:
            self._log.unusual(f"Updating hooks for {self.name} now usage is done.")
            self._chain, self._next = [one for one in self._next if not one.is_gone], None
        return {"result": "continue", "params": params}


def ordered(registrations: Sequence[Registration]) -> list[Registration]:
    """By their wishes, otherwise as they came. Raises ValueError when the wishes contradict each other."""
    waiting, done = list(registrations), []
    while waiting:
        names = {one.name for one in waiting}
        for one in waiting:
            earlier = {other.name for other in waiting if one.name in other.before} | (names & set(one.after))
            if not earlier - {one.name}:
                break
        else:
            raise ValueError(f"{', '.join(sorted(names))} want to be before each other")
        waiting.remove(one)
        done.append(one)
    return done
