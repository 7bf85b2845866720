"""The one place where text of somebody else's becomes text for people: log, terminal, ledger and JSON get nothing else.

Pure. What is escaped: control characters (C0, C1, DEL), line and paragraph separators, marks that turn the direction of
writing (bidi), whatever has no width or no shape of its own, lone surrogates, and characters that Unicode has not
assigned or leaves to private use. What is left stays on its line and is seen.
Amounts, energy and power as people read them stand here, too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

LONGEST = 400
"""Characters of one text, where whoever calls does not say less."""
_MARKS_IN_A_ROW = 2
"""More combining marks than that on one letter grow over the lines above and below."""

# Default_Ignorable_Code_Point of Unicode 15 as far as str.isprintable() lets it pass: letters or marks by category that
# show nothing.
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2800, 0x2800),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)


def printable(text: object, longest: int = LONGEST) -> str:
    """``text`` on one line and at most ``longest`` characters long; where something was cut, its end says of how many
    characters. A text that is fit already comes back unchanged. It may still hold brackets: where markup is read, it
    has to be shown as it stands."""
    whole = str(text)
    if len(whole) <= longest and whole.isascii() and whole.isprintable():
        return whole
    pieces = list(_pieces(whole[: longest + 1]))
    shown = "".join(pieces)
    if len(shown) <= longest:
        return shown
    note = f"... ({len(whole)} characters)"[:longest]
    room = longest - len(note)
    while len(shown) > room:
        shown = shown[: len(shown) - len(pieces.pop())]
    return shown + note


def _pieces(text: str) -> Iterator[str]:
    """Each character, or what stands for it."""
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if character.isprintable() and character not in _INVISIBLE and marks <= _MARKS_IN_A_ROW:
            yield character
        else:
            yield _escaped(ord(character))


def _escaped(code: int) -> str:
    """As Python and C write it."""
    named = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code)
    if named is not None:
        return named
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def sat(amount_msat: int) -> str:
    """An amount in sat with its msat as decimals: ``1 234.567 sat``."""
    whole, rest = divmod(abs(amount_msat), 1000)
    grouped = f"{whole:,}".replace(",", " ")
    return f"{'-' if amount_msat < 0 else ''}{grouped}.{rest:03d} sat"


def energy(energy_uwh: int) -> str:
    """Energy in Wh, or kWh from 1 kWh on."""
    return f"{energy_uwh / 1e6:.3f} Wh" if energy_uwh < 10**9 else f"{energy_uwh / 1e9:.4f} kWh"


def power(power_mw: int) -> str:
    """Power in W."""
    return f"{power_mw / 1000:.1f} W"
