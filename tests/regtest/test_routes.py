"""The cheapest single way, as askrene with one part finds it."""

from __future__ import annotations

from wattline.regtest.node.routes import Edge, cheapest

FINAL_CLTV = 40


def edge(
    scid: str, source: str, destination: str, max_msat: int = 1_000_000, fee_base_msat: int = 1, enabled: bool = True
) -> Edge:
    return Edge(scid, 0, source, destination, max_msat, source == "me", fee_base_msat, 10, enabled)


def way(edges: list[Edge], amount_msat: int = 10_000) -> list[str] | None:
    steps = cheapest(edges, "me", "you", amount_msat, FINAL_CLTV)
    return None if steps is None else [step.edge.scid for step in steps]


def test_a_hop_gets_its_fee_and_its_blocks_and_the_payer_asks_nothing_of_itself() -> None:
    steps = cheapest([edge("1x1x1", "me", "hub"), edge("2x1x1", "hub", "you")], "me", "you", 10_000, FINAL_CLTV)
    assert steps is not None
    figures = [(s.amount_in_msat, s.amount_out_msat, s.cltv_in, s.cltv_out) for s in steps]
    assert figures == [(10_001, 10_001, 46, 46), (10_001, 10_000, 46, 40)]


def test_the_cheaper_way_is_taken_even_if_it_is_longer() -> None:
    dear = [edge("1x1x1", "me", "a"), edge("2x1x1", "a", "you", fee_base_msat=1_000)]
    long = [edge("3x1x1", "me", "b"), edge("4x1x1", "b", "c"), edge("5x1x1", "c", "you")]
    assert way(dear + long) == ["3x1x1", "4x1x1", "5x1x1"]


def test_of_two_channels_that_are_equally_good_one_is_taken() -> None:
    assert way([edge("1x1x1", "me", "you"), edge("2x1x1", "me", "you")]) == ["1x1x1"]
    hubs = [edge(f"{n}x1x1", "me", "hub") for n in (1, 2)] + [edge(f"{n}x1x1", "hub", "you") for n in (3, 4)]
    found = way(hubs)
    assert found is not None
    assert len(found) == 2


def test_what_is_too_small_or_disabled_is_not_a_way() -> None:
    assert way([edge("1x1x1", "me", "you", max_msat=9_999)]) is None
    assert way([edge("1x1x1", "me", "you", enabled=False)]) is None
    assert way([edge("1x1x1", "me", "you", max_msat=9_999), edge("2x1x1", "me", "you")]) == ["2x1x1"]


def test_a_channel_must_carry_the_fees_of_the_later_ones_too() -> None:
    assert way([edge("1x1x1", "me", "hub", max_msat=10_000), edge("2x1x1", "hub", "you")]) is None
