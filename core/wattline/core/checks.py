"""What a value has to be, where a domain value is made. Pure."""

from __future__ import annotations

import re

from wattline.core.errors import StopError, WattlineError

NODE_ID = re.compile(r"0[23][0-9a-f]{64}")
"""The form of a node id: a compressed point of secp256k1 in lower-case hex (BOLT #7)."""
HEX32 = re.compile(r"[0-9a-f]{64}")
"""The form of a payment_hash, a preimage or a txid."""


def is_whole(value: object, lowest: int, highest: int | None = None) -> bool:
    """Whether it is a whole number within these bounds, both included. To Python a bool is one, here it is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= lowest and (highest is None or value <= highest)


def check_whole(
    code: str,
    name: str,
    value: object,
    lowest: int,
    highest: int | None = None,
    error: type[WattlineError] = StopError,
) -> None:
    """Raises ``error`` with ``code`` unless ``value`` is a whole number within these bounds, both included."""
    if not is_whole(value, lowest, highest):
        allowed = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise error(code, f"{name}: a whole number {allowed}, not {value!r}")


def check_hex32(code: str, name: str, value: str) -> None:
    """Raises StopError with ``code`` unless these are 32 bytes in lower-case hex."""
    if not HEX32.fullmatch(value):
        raise StopError(code, f"{name}: 64 lower-case hex digits, not {value!r}")
