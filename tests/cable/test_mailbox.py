from __future__ import annotations

from dataclasses import replace

from tests.cable.test_buyer import STATEMENT
from wattline.cable.link.stream import Cut, Mailbox
from wattline.cable.policy.events import Arrived, FinalDue, PaymentRefused, RefusedVersion, VersionAccepted
from wattline.device.meters.reading import Reading

READING = Reading(0, 0, 0, 0, 0)


def mailbox() -> Mailbox:
    return Mailbox(lambda: 5)


def contents(box: Mailbox) -> list[object]:
    found: list[object] = []
    while (taken := box.take(0)) is not None:
        found.append(taken[1])
    return found


def test_of_what_the_socket_says_only_the_newest_of_each_kind_waits() -> None:
    box = mailbox()
    for number in range(10_000):
        box.put(replace(STATEMENT, sequence=number))
        box.put(PaymentRefused("", 1, "over_credit_cap", "x" * 200))
        box.put(FinalDue(number, 0, 0))
        box.put(RefusedVersion(number % 2, "policy", ""))
        box.put(VersionAccepted(number, 0, False))
        assert len(box) <= 6
    assert contents(box) == [
        RefusedVersion(0, "policy", ""),
        replace(STATEMENT, sequence=9_999),
        PaymentRefused("", 1, "over_credit_cap", "x" * 200, more=9_999),
        FinalDue(9_999, 0, 0),
        RefusedVersion(1, "policy", ""),
        VersionAccepted(9_999, 0, False),
    ]


def test_what_is_our_own_is_kept_in_its_order_however_much_the_socket_says() -> None:
    box = mailbox()
    for number in range(100):
        box.put(READING)
        box.put(STATEMENT)
        box.put(Arrived(number, 1, 1, 1))
    assert [item for item in contents(box) if not isinstance(item, type(STATEMENT))] == [
        item for number in range(100) for item in (READING, Arrived(number, 1, 1, 1))
    ]


def test_what_comes_again_stands_where_it_came_last() -> None:
    box = mailbox()
    box.put(STATEMENT)
    box.put(Cut("gone"))
    box.put(replace(STATEMENT, sequence=2))
    assert contents(box) == [Cut("gone"), replace(STATEMENT, sequence=2)]
