from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.text import printable

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("no\nwattline: paid", r"no\nwattline: paid"),
        ("a\r\tb\x00\x7f\x9b", r"a\r\tb\x00\x7f\x9b"),
        ("\u2028\u2029\u202eabc\u2066", r"\u2028\u2029\u202eabc\u2066"),
        ("o\u200bk\u00ad\ufeff\u3164", r"o\u200bk\xad\ufeff\u3164"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("Zähler läuft, 5 €", "Zähler läuft, 5 €"),
        ("[red]not red[/red]", "[red]not red[/red]"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_what_could_do_something_is_written_out(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_marks_that_would_grow_over_other_lines_are_written_out() -> None:
    assert printable("e" + "\u0301" * 4) == "e\u0301\u0301\\u0301\\u0301"


def test_what_is_too_long_is_cut_and_says_how_long_it_was() -> None:
    assert printable("x" * 900_000, 40) == "x" * 17 + "... (900000 characters)"
    assert printable("\x1b" * 900_000, 40) == "\\x1b" * 4 + "... (900000 characters)"


@given(TEXT, st.integers(0, 200))
def test_whatever_comes_is_one_line_of_bounded_length_that_only_shows(raw: str, longest: int) -> None:
    shown = printable(raw, longest)
    assert len(shown) <= longest
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert printable(shown, longest) == shown
    shown.encode("utf-8")


def test_no_character_at_all_is_let_through_that_is_not_seen() -> None:
    for code in (*range(0x10000), *range(0xE0000, 0xE0200), sys.maxunicode):
        shown = printable(chr(code))
        assert shown.isprintable()
        assert shown == chr(code) or shown.isascii()
