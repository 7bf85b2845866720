"""What becomes of an htlc that ends while it waits to be judged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wattline.regtest.node.htlcs import Htlcs
from wattline.regtest.node.store import Store


class NoChannels:
    """Every channel is closed."""

    def get(self, channel_id: str) -> None:
        return None


def test_an_htlc_that_is_gone_before_it_is_judged_can_be_judged_when_it_comes_again(tmp_path: Path) -> None:
    htlcs = object.__new__(Htlcs)
    htlcs._store = Store(tmp_path / "store.sqlite3")
    htlcs._channels = NoChannels()  # type: ignore[assignment]
    htlcs._judging = {("channel", 1)}
    asyncio.run(htlcs._judge("channel", 1))
    assert htlcs._judging == set()
