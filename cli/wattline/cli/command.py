"""What commands have in common: how an error looks, and ending in good order on a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer


def tell_error(text: str) -> None:
    """``text`` is the code and what there is to say of it: ``config_missing: x.toml: no such file``."""
    # Where nobody can be told, the exit status still says it.
    with contextlib.suppress(OSError):
        typer.echo(f"wattline: error: {' '.join(text.split())}", err=True)


LONGEST_S = 10 * 365 * 86_400
"""What runs until it is interrupted may be told to end by itself, after ten years at the latest."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, by KeyboardInterrupt."""
    hung_up = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal hung_up
        del frame
        if number == signal.SIGHUP:
            if hung_up:
                # A closed terminal tells everybody, and the shell does so once more: it must not cut the end short.
                return
            hung_up = True
        raise KeyboardInterrupt

    with handled(stop, signal.SIGTERM, signal.SIGHUP):
        yield


@contextmanager
def handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """``handler`` gets these signals meanwhile; but not SIGHUP where whoever started us wants it ignored (nohup)."""
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
