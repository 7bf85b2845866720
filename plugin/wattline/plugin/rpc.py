"""The RPC methods, as `lightning-cli help` shows them.

Parameters of the RPC methods: whatever JSON a caller gives, each is of its type and within its range, or there is an
error that names the parameter, the value and what is allowed.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyln.client import Plugin, RpcException
from pyln.client.plugin import Request

from wattline.core.errors import WattlineError
from wattline.core.ids import decode_session_id
from wattline.core.lightning.node import is_node_id
from wattline.core.tariff import MAX_PRICE_MSAT, Tariff
from wattline.core.text import printable
from wattline.plugin.lifecycle import Lifecycle
from wattline.plugin.report import Json, tariff_object

log = logging.getLogger(__name__)

NOT_RUNNING = -1
MAX_SESSIONS = 10_000


def add_methods(plugin: Plugin, lifecycle: Lifecycle) -> None:
    """Register every method with lightningd."""

    def status() -> Json:
        """What the socket is doing: node, address, price, outlets (state, relay, power), the journal's cursor."""
        return lifecycle.status()

    def sessions(session_id: str | None = None, limit: int = 100) -> Json:
        """Sessions, newest first: energy in microwatt-hours, money in msat, state and stop reason.

        One with {session_id}, else at most {limit} (default 100)."""
        if session_id is not None:
            session_id = checked_session_id("session_id", session_id)
        found = lifecycle.app.report.sessions(session_id, checked_whole("limit", limit, 1, MAX_SESSIONS))
        if session_id is not None and not found:
            raise invalid("session_id", "no session of that id")
        return {"sessions": found}

    def tariff(
        energy_msat_per_kwh: int | None = None,
        time_msat_per_hour: int | None = None,
        session_fee_msat: int | None = None,
    ) -> Json:
        """Read the prices, or set those given for sessions opened from now on.

        Running sessions keep theirs; their cables are told."""
        now = lifecycle.running_app.prices.current
        wanted = {
            "energy_msat_per_kwh": energy_msat_per_kwh,
            "time_msat_per_hour": time_msat_per_hour,
            "session_fee_msat": session_fee_msat,
        }
        if all(value is None for value in wanted.values()):
            return tariff_object(now)
        prices = {
            key: getattr(now, key) if value is None else checked_whole(key, value, 0, MAX_PRICE_MSAT)
            for key, value in wanted.items()
        }
        lifecycle.running_app.prices.change(Tariff.of(**prices))
        return tariff_object(lifecycle.running_app.prices.current)

    def stop(session_id: str) -> Json:
        """End a session now: the relay opens, unused credit is refunded, the cable gets its receipt.

        One that is ending already goes on doing so, for the reason that is shown."""
        session_id = checked_session_id("session_id", session_id)
        session = lifecycle.running_app.sessions.stop(session_id)
        if session is None:
            over = [f"it is over ({found['stop_reason']})" for found in lifecycle.app.report.sessions(session_id, 1)]
            raise invalid("session_id", ": ".join(["no live session of that id", *over]))
        return {
            "session_id": session_id,
            "stopped": True,
            "state": session.state.value,
            "stop_reason": session.stop_reason.value if session.stop_reason else None,
        }

    def report(start_time: int | None = None, end_time: int | None = None) -> Json:
        """Totals of the sessions opened between {start_time} and {end_time} (Unix seconds; default: all)."""
        start = checked_whole("start_time", 0 if start_time is None else start_time, 0, 2**53)
        end = checked_whole("end_time", 2**53 if end_time is None else end_time, 0, 2**53)
        if end < start:
            raise invalid("end_time", f"must not be before start_time ({start})")
        return lifecycle.app.report.totals(start, end)

    def refused(forgive: str | None = None) -> Json:
        """Cables that are refused because they spent elsewhere what they had paid with on the chain.

        With {forgive} (a node id) that cable is let in again."""
        if forgive is not None and not lifecycle.app.report.forgive(checked_node_id("forgive", forgive)):
            raise invalid("forgive", "that cable is not refused")
        return {"refused": lifecycle.app.report.refused_cables()}

    def resolve(subject: str, outcome: str, reason: str) -> Json:
        """Say how something ended that the socket cannot find out; it is written down, with the {reason}.

        {subject} is a session: {outcome} paid or lost ends its payment on the chain; refund sends a refund that is owed
        (again), keep sends none, paid says that one in doubt has arrived. Or it is chain: accept takes the chain that
        bitcoind shows now."""
        subject = "chain" if subject == "chain" else checked_session_id("subject", subject)
        outcome = checked_text("outcome", outcome)
        lifecycle.app.resolving.resolve(subject, outcome, checked_text("reason", reason))
        return {"subject": subject, "outcome": outcome, "resolved": True}

    pool = ThreadPoolExecutor(2, thread_name_prefix="rpc")
    for name, method in (
        ("wattline-status", status),
        ("wattline-sessions", sessions),
        ("wattline-tariff", tariff),
        ("wattline-stop", stop),
        ("wattline-report", report),
        ("wattline-refused", refused),
        ("wattline-resolve", resolve),
    ):
        plugin.add_method(name, _in_worker(method, pool), background=True, description=method.__doc__)


def _in_worker(method: Callable[..., Json], pool: ThreadPoolExecutor) -> Callable[..., None]:
    """``method`` in a thread of its own, with our errors as lightningd's: pyln has one thread for everything, and no
    payment may wait there until the ledger answers an operator. pyln reads the parameters off ``__signature__``."""

    @functools.wraps(method)
    def call(request: Request, *args: Any, **kwargs: Any) -> None:
        pool.submit(_answer, request, functools.partial(method, *args, **kwargs))

    signature = inspect.signature(method)
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    vars(call)["__signature__"] = inspect.Signature([first, *parameters])
    return call


def _answer(request: Request, call: Callable[[], Json]) -> None:
    try:
        result = call()
    except WattlineError as error:
        request.set_exception(RpcException(f"{error.code}: {error.message}", NOT_RUNNING))
    except RpcException as error:
        request.set_exception(error)
    except Exception:
        log.exception("an RPC method failed")
        request.set_exception(RpcException("internal error, see the log", NOT_RUNNING))
    else:
        request.set_result(result)


INVALID_PARAMETERS = -32602
SHOWN = 60
MOST_DIGITS = 19
"""Of a number written as text, which lightning-cli makes of some: it fits into 63 bits or nearly."""


def checked_session_id(name: str, value: object) -> str:
    """A session id in its one form."""
    if isinstance(value, str):
        try:
            decode_session_id(value)
        except WattlineError as error:
            raise invalid(name, printable(error.message)) from error
        return value
    raise invalid(name, f"must be a session id (26 characters), not {_shown(value)}")


def checked_node_id(name: str, value: object) -> str:
    """A node id, lower case."""
    if isinstance(value, str) and is_node_id(value):
        return value
    raise invalid(name, f"must be a node id (66 lower-case hex digits beginning with 02 or 03), not {_shown(value)}")


def checked_whole(name: str, value: object, lowest: int, highest: int) -> int:
    """A whole number, both ends included."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise invalid(name, f"must be a whole number from {lowest} to {highest}, not {_shown(value)}")
    return value


def checked_text(name: str, value: object, longest: int = 200) -> str:
    """Words of the operator's, on one line."""
    if isinstance(value, str) and len(value) <= longest:
        return printable(value, longest)
    raise invalid(name, f"must be a text of at most {longest} characters, not {_shown(value)}")


def invalid(name: str, message: str) -> RpcException:
    """For the caller; ``message`` says what is allowed."""
    return RpcException(f"{name}: {message}", INVALID_PARAMETERS)


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # Python does not even write out one of some thousand digits
    return printable(repr(value), SHOWN)
