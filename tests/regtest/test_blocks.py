"""The practice chain, and what a channel's opener must keep for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wattline.regtest.node.blocks import FIRST_BLOCKS, PracticeBlocks
from wattline.regtest.node.channels import commitment_fee_msat


def test_a_payment_is_confirmed_by_the_next_block_and_can_be_spent_once(tmp_path: Path) -> None:
    blocks = PracticeBlocks(tmp_path / "chain")
    txid = blocks.pay([("toast", 1_000)])
    assert blocks.waiting() == [txid]
    assert blocks.confirmed_at(txid) is None
    assert blocks.mine(3) == FIRST_BLOCKS + 3
    assert blocks.confirmed_at(txid) == (FIRST_BLOCKS + 1, 1)
    (output,) = blocks.unspent(["toast"])
    assert (output.value_sat, output.height) == (1_000, FIRST_BLOCKS + 1)
    blocks.pay([("butter", 900)], [(output.txid, output.number)])
    assert blocks.unspent(["toast"]) == []


def test_another_process_s_block_is_noticed(tmp_path: Path) -> None:
    one, other = PracticeBlocks(tmp_path / "chain"), PracticeBlocks(tmp_path / "chain")
    assert asyncio.run(one.news()) == []
    other.mine(2)
    assert [block.height for block in asyncio.run(one.news())] == [FIRST_BLOCKS + 1, FIRST_BLOCKS + 2]
    assert asyncio.run(one.news()) == []


def test_the_opener_keeps_what_lightningd_keeps_for_the_fee() -> None:
    # 700,000,000 msat of its own, a reserve of 10,000,000, and lightningd said 685,709,000 (recordings/direct.jsonl).
    assert commitment_fee_msat(untrimmed_htlcs=1) == 700_000_000 - 10_000_000 - 685_709_000
