"""Where the ``wattline`` command begins."""

from __future__ import annotations

import signal
import sys

from wattline.core.loading import loading


def main() -> None:
    """Run the command line and exit."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        # Until the program is there, which ends in order, Ctrl-C ends the process at once and without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with loading():
        from wattline.cli.main import assemble, run

        words = sys.argv[1:]
        app = assemble(words)
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run(app, words)
