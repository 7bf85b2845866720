"""Parameters of the RPC methods: whatever JSON a caller gives, each is of its type and within its range, or there is an
error that names the parameter, the value and what is allowed."""

from __future__ import annotations

from pyln.client import RpcException

from wattline.core.errors import WattlineError
from wattline.core.ids import decode_session_id
from wattline.core.lightning.node import is_node_id
from wattline.core.text import printable

INVALID_PARAMETERS = -32602
SHOWN = 60
MOST_DIGITS = 19
"""Of a number written as text, which lightning-cli makes of some: it fits into 63 bits or nearly."""


def session_id(name: str, value: object) -> str:
    """A session id in its one form."""
    if isinstance(value, str):
        try:
            decode_session_id(value)
        except WattlineError as error:
            raise invalid(name, printable(error.message)) from error
        return value
    raise invalid(name, f"must be a session id (26 characters), not {_shown(value)}")


def node_id(name: str, value: object) -> str:
    """A node id, lower case."""
    if isinstance(value, str) and is_node_id(value):
        return value
    raise invalid(name, f"must be a node id (66 lower-case hex digits beginning with 02 or 03), not {_shown(value)}")


def whole(name: str, value: object, lowest: int, highest: int) -> int:
    """A whole number, both ends included."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise invalid(name, f"must be a whole number from {lowest} to {highest}, not {_shown(value)}")
    return value


def text(name: str, value: object, longest: int = 200) -> str:
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
