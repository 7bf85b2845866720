"""Invoices as text."""

from __future__ import annotations

import pytest

from wattline.regtest.node.bolt11 import Invoice, decode
from wattline.regtest.node.keys import NodeKey

KEY = NodeKey(b"1" * 32)
# Made by a real v26.06.6 (regtest/recordings/direct.jsonl, `invoice`).
REAL = (
    "lnbcrt20n1p4sxm7nsp5ksmtllvqtgmxkh4u8a4vmtpf7tmj2jccc953rm9wu4304cd22zvspp5u9l2gg2mvjrhhp495c6ukm4lv8cxt5r8s75qs8"
    "0ds34alwzgvcwsdqgvysxxatsxqyjw5qcqp29qxpqysgq2tkjyrxd0p53qzq572jler43tns9xc3tdgxm8xaratr8jtu2m86q2l9jregsn7p2j4t3"
    "q99q5jw8ytahxvsa8e8re7rna8lhdujrf9gpl44v06"
)


@pytest.mark.parametrize("amount_msat", [None, 1, 2_000, 12_345, 100_000_000])
def test_an_invoice_is_read_as_it_was_written(amount_msat: int | None) -> None:
    invoice = Invoice("ab" * 32, "cd" * 32, amount_msat, "a cup of coffee", 1_795_387_347, KEY.node_id)
    assert decode(invoice.encode(KEY)) == invoice


def test_an_invoice_of_lightningd_is_understood() -> None:
    invoice = decode(REAL)
    assert invoice.payee == "025e901eb67f486ce65f6e2c44cb0a42690be77b31d4fbdc4043553ae472649342"
    assert (invoice.amount_msat, invoice.description) == (2_000, "a cup")
    assert invoice.payment_hash == "e17ea4215b64877b86a5a635cb6ebf61f065d06787a8081ded846bdfb848661d"
    assert invoice.payment_secret == "b436bffd805a366b5ebc3f6acdac29f2f7254b18c16911ecaee562fae1aa5099"


def test_a_mistyped_invoice_is_refused() -> None:
    with pytest.raises(ValueError, match="not an invoice"):
        decode(REAL[:50] + ("q" if REAL[50] != "q" else "p") + REAL[51:])
