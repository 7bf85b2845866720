"""The RPC methods, as `lightning-cli help` shows them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from pyln.client import Plugin, RpcException

from wattline.errors import WattlineError
from wattline.plugin.report import Json, Report, tariff_object
from wattline.plugin.smart_socket import SmartSocket
from wattline.session import decode_session_id
from wattline.tariff import Tariff

INVALID_PARAMETERS = -32602
NOT_RUNNING = -1
MAX_SESSIONS = 10_000


class Shop(Protocol):
    """The parts that the methods work on; raises WattlineError while the socket is not running."""

    @property
    def seller(self) -> SmartSocket: ...

    @property
    def report(self) -> Report: ...

    def status(self) -> Json:
        """Also answers when the socket failed to start."""


def add_methods(plugin: Plugin, shop: Shop) -> None:
    """Register every method with lightningd."""

    def status() -> Json:
        """What the socket is doing: node, address, price, outlets (state, relay, power), the journal's cursor."""
        return shop.status()

    def sessions(session_id: str | None = None, limit: int = 100) -> Json:
        """Sessions, newest first: energy in microwatt-hours, money in msat, state and stop reason.

        One with {session_id}, else at most {limit} (default 100)."""
        if session_id is not None:
            session_id = _session_id(session_id)
        found = shop.report.sessions(session_id, _whole("limit", limit, 1, MAX_SESSIONS))
        if session_id is not None and not found:
            raise _invalid("session_id", "no session of that id")
        return {"sessions": found}

    def tariff(
        energy_msat_per_kwh: int | None = None,
        time_msat_per_hour: int | None = None,
        session_fee_msat: int | None = None,
    ) -> Json:
        """Read the prices, or set those given for sessions opened from now on.

        Running sessions keep theirs; their cables are told."""
        now = shop.seller.tariff
        wanted = {
            "energy_msat_per_kwh": energy_msat_per_kwh,
            "time_msat_per_hour": time_msat_per_hour,
            "session_fee_msat": session_fee_msat,
        }
        if all(value is None for value in wanted.values()):
            return tariff_object(now)
        prices = {
            key: getattr(now, key) if value is None else _whole(key, value, 0, 10**15) for key, value in wanted.items()
        }
        shop.seller.change_tariff(Tariff.of(**prices))
        return tariff_object(shop.seller.tariff)

    def stop(session_id: str) -> Json:
        """End a session now: the relay opens, unused credit is refunded, the cable gets its receipt."""
        session_id = _session_id(session_id)
        if not shop.seller.stop_session(session_id):
            raise _invalid("session_id", "no live session of that id")
        return {"session_id": session_id, "stopped": True}

    def report(start_time: int | None = None, end_time: int | None = None) -> Json:
        """Totals of the sessions opened between {start_time} and {end_time} (Unix seconds; default: all)."""
        start = _whole("start_time", 0 if start_time is None else start_time, 0, 2**53)
        end = _whole("end_time", 2**53 if end_time is None else end_time, 0, 2**53)
        if end < start:
            raise _invalid("end_time", f"must not be before start_time ({start})")
        return shop.report.totals(start, end)

    for name, method in (
        ("wattline-status", status),
        ("wattline-sessions", sessions),
        ("wattline-tariff", tariff),
        ("wattline-stop", stop),
        ("wattline-report", report),
    ):
        plugin.add_method(name, _translating(method), description=method.__doc__)


def _translating(method: Callable[..., Json]) -> Callable[..., Json]:
    """``method`` with our errors as lightningd's. pyln reads the parameters off ``__signature__``."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Json:
        try:
            return method(*args, **kwargs)
        except WattlineError as error:
            raise RpcException(f"{error.code}: {error.message}", NOT_RUNNING) from error

    vars(call)["__signature__"] = inspect.signature(method)
    return call


def _session_id(value: object) -> str:
    try:
        decode_session_id(str(value))
    except WattlineError as error:
        raise _invalid("session_id", error.message) from error
    return str(value)


def _whole(name: str, value: object, lowest: int, highest: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise _invalid(name, f"must be a whole number from {lowest} to {highest}, not {value!r}")
    return value


def _invalid(name: str, message: str) -> RpcException:
    return RpcException(f"{name}: {message}", INVALID_PARAMETERS)
