"""Session ids: 16 random bytes, written as 26 characters of Crockford base32.

Only the one canonical form counts (upper case, no separators, no look-alike letters): a session id stands inside
payment records and invoice descriptions, which are compared as text.
"""

from __future__ import annotations

from wattline.core.errors import StopError

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford base32: without I, L, O and U. Source: https://www.crockford.com/base32.html."""
SESSION_ID_BYTES = 16
SESSION_ID_CHARACTERS = 26

_VALUES = {character: value for value, character in enumerate(ALPHABET)}


def encode_session_id(raw: bytes) -> str:
    """16 bytes as a session id: the big-endian number in base 32, zeros in front. Raises StopError
    ``session_id_invalid`` for another length."""
    if len(raw) != SESSION_ID_BYTES:
        raise StopError("session_id_invalid", f"a session id has {SESSION_ID_BYTES} bytes, not {len(raw)}")
    number = int.from_bytes(raw, "big")
    shifts = range(5 * (SESSION_ID_CHARACTERS - 1), -1, -5)
    return "".join(ALPHABET[(number >> shift) & 31] for shift in shifts)


def decode_session_id(session_id: str) -> bytes:
    """The 16 bytes of a session id in its canonical form. Raises StopError ``session_id_invalid`` naming the fault."""
    if len(session_id) != SESSION_ID_CHARACTERS:
        raise _invalid(session_id, f"it needs {SESSION_ID_CHARACTERS} characters, not {len(session_id)}")
    number = 0
    for place, character in enumerate(session_id, start=1):
        value = _VALUES.get(character)
        if value is None:
            raise _invalid(session_id, f"character {place} is {character!r}, allowed are {ALPHABET}")
        number = number << 5 | value
    if number >> (8 * SESSION_ID_BYTES):
        # 26 characters hold 130 bits; the upper two must be 0, else two texts would name one session.
        raise _invalid(session_id, f"the first character is {session_id[0]!r}, allowed are 0 to 7")
    return number.to_bytes(SESSION_ID_BYTES, "big")


def _invalid(session_id: str, reason: str) -> StopError:
    return StopError("session_id_invalid", f"{session_id[:40]!r} is not a session id: {reason}")
