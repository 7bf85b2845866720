"""What a socket cannot be paid without and others can take away: looked for at the start and every half minute."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence

from wattline.core.clock import Clock
from wattline.core.errors import WattlineError
from wattline.core.lightning.node import Journal, Wallet

log = logging.getLogger(__name__)

LOOK_S = 30.0
FRESH_S = 1.0
"""Who asks is told what is true now, not what was half a minute ago."""
NO_KEYSEND = (
    "keysend_off: lightningd's keysend plugin does not run, so no cable can pay over Lightning: "
    "start lightningd without disable-plugin=keysend"
)
NO_CHANNEL = (
    "no_channel: no channel is usable (open, peer connected), so no cable can pay over Lightning: "
    "lightning-cli listpeerchannels shows them"
)
NO_INBOUND = (
    "no_inbound: no channel can receive anything, so no cable can pay over Lightning: "
    "have a channel opened to this node, or spend something"
)


class Preconditions:
    """Thread-safe. Raises nothing: what cannot be asked now stays as it was."""

    def __init__(self, wallet: Wallet, journal: Journal, onchain_trouble: Callable[[], str], clock: Clock) -> None:
        """``onchain_trouble``: why payments on the chain cannot be taken now; empty when they can, or are off."""
        self._wallet = wallet
        self._journal = journal
        self._clock = clock.monotonic
        self._onchain_trouble = onchain_trouble
        self._lightning: tuple[str, ...] = ()
        self._looked_at = -math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preconditions", daemon=True)
        self.takes_keysend = True

    @property
    def problems(self) -> Sequence[str]:
        """As they are now, a line each: a code, what it means, what to do."""
        if self._clock() - self._looked_at > FRESH_S:
            self.look()
        trouble = self._onchain_trouble()
        return (*self._lightning, *([f"onchain_unavailable: {trouble}"] if trouble else []))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """Ask the node; what is new is logged once."""
        self._looked_at = self._clock()
        try:
            takes_keysend, channels = self._journal.takes_keysend(), self._wallet.channels()
        except WattlineError as error:
            log.info("what payments need cannot be looked for now: %s", error)
            return
        found = [] if takes_keysend else [NO_KEYSEND]
        if not channels:
            found.append(NO_CHANNEL)
        elif not any(channel.receivable_msat for channel in channels):
            found.append(NO_INBOUND)
        for problem in found:
            if problem not in self._lightning:
                log.warning("%s", problem)
        self._lightning, self.takes_keysend = tuple(found), takes_keysend

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                log.exception("what payments need could not be looked for")
