"""The command line as a person calls it."""

from __future__ import annotations

import pytest

from wattline.cli.main import main


def run(*words: str) -> int:
    """The exit status of ``wattline WORDS``."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code
