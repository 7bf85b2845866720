"""The chain as the node sees it: its height, when a transaction was mined, and what is new. Behind it is either the
practice chain, which is a file, or a bitcoind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NewBlock:
    height: int
    block_hash: str


class ChainView(Protocol):
    @property
    def height(self) -> int:
        """Of the newest block that the node has processed."""

    async def open(self) -> None:
        """Before anything else is asked. Raises RetryError when there is no chain yet."""

    async def news(self) -> Sequence[NewBlock]:
        """Process what has come since the last time. Raises RetryError when the chain cannot be asked now."""

    def confirmed_at(self, txid: str) -> tuple[int, int] | None:
        """Height and position of a transaction; None while it is in no block."""
