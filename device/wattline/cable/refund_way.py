"""Whether unused credit could come back at the end, and what is said when not."""

from __future__ import annotations

from wattline.cable.offer import Offer
from wattline.cable.view import sat

NO_WAY_BACK = "no_way_back"
"""A problem of ``wattline cable check``, whose purpose is to find such things; a warning of ``wattline cable run``,
since no more than the prepaid cap can be owed."""


def can_come_back(receivable_msat: int, offer: Offer) -> bool:
    """Whether the smallest refund that the socket makes fits through the channels of the cable's node, the best of
    which can receive ``receivable_msat`` now."""
    return receivable_msat >= max(1, offer.min_refund_msat)


def owed(max_prepaid_msat: int) -> str:
    """What it means, in one line."""
    return (
        f"nothing can come back through the node's channels yet; unused credit, at most {sat(max_prepaid_msat)}, stays "
        "owed until the socket's side of one has grown"
    )
