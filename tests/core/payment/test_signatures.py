"""A version is refused unless its signatures cover all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wattline.core.aggregate import VersionRefused
from wattline.core.bitcoin.chain import Outpoint, Tx, TxInput, Unspent
from wattline.core.version_check import check_signatures

COIN = Outpoint("ab" * 32, 0)
TAPROOT, KEYHASH = "5120" + "11" * 32, "0014" + "22" * 20
SCHNORR = "5c" * 64
DER = "3044" + "02" * 68
KEY = "02" + "33" * 32


def signed(*witness: str, script_sig: str = "") -> Tx:
    return Tx("cd" * 32, 2, 0, (TxInput(COIN, 0xFFFFFFFD, script_sig, witness),), (), 154, "")


def check(tx: Tx, script: str) -> None:
    check_signatures(tx, {COIN: Unspent(10_000, script, 1)})


@pytest.mark.parametrize(
    ("witness", "script"),
    [((SCHNORR,), TAPROOT), ((SCHNORR + "01",), TAPROOT), ((DER + "01", KEY), KEYHASH)],
    ids=["P2TR by default", "P2TR of all", "P2WPKH of all"],
)
def test_a_signature_of_everything_by_one_key_is_taken(witness: tuple[str, ...], script: str) -> None:
    check(signed(*witness), script)


@pytest.mark.parametrize("sighash", ["02", "03", "81", "82", "83", "00"])
@pytest.mark.parametrize(("signature", "rest", "script"), [(SCHNORR, (), TAPROOT), (DER, (KEY,), KEYHASH)])
def test_a_signature_of_less_is_refused(signature: str, rest: tuple[str, ...], script: str, sighash: str) -> None:
    with pytest.raises(VersionRefused) as caught:
        check(signed(signature + sighash, *rest), script)
    assert caught.value.code == "not_signed"


@pytest.mark.parametrize(
    ("tx", "script"),
    [
        (signed(), TAPROOT),
        (signed(SCHNORR, "50"), TAPROOT),
        (signed(SCHNORR, script_sig="00"), TAPROOT),
        (signed(DER + "01"), KEYHASH),
        (signed(KEY, DER + "01"), KEYHASH),
    ],
    ids=["no witness", "an annex or script path", "a scriptSig", "no key", "out of order"],
)
def test_any_other_witness_is_refused(tx: Tx, script: str) -> None:
    with pytest.raises(VersionRefused) as caught:
        check(tx, script)
    assert caught.value.code == "not_signed"


@pytest.mark.parametrize(
    "script", ["76a914" + "44" * 20 + "88ac", "a914" + "44" * 20 + "87", "0020" + "44" * 32, "51", ""]
)
def test_an_input_that_is_not_of_one_key_is_refused(script: str) -> None:
    with pytest.raises(VersionRefused) as caught:
        check(signed(SCHNORR), script)
    assert caught.value.code == "bad_input"


def test_every_input_is_looked_at() -> None:
    other = Outpoint("ef" * 32, 1)
    tx = signed(SCHNORR)
    tx = replace(tx, inputs=(*tx.inputs, TxInput(other, 0xFFFFFFFD, "", (SCHNORR + "81",))))
    with pytest.raises(VersionRefused, match=str(other)):
        check_signatures(tx, {COIN: Unspent(10_000, TAPROOT, 1), other: Unspent(10_000, TAPROOT, 1)})
