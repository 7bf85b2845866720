from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.bitcoin.address import PREFIXES, AddressError, address_of, script_of

plain_scripts = st.one_of(
    st.binary(min_size=20, max_size=20).map(lambda key: "0014" + key.hex()),
    st.binary(min_size=32, max_size=32).map(lambda key: "5120" + key.hex()),
)
networks = st.sampled_from(sorted(PREFIXES))


@pytest.mark.parametrize(
    ("network", "script", "address"),
    [
        # BIP 173 and BIP 350, test vectors.
        ("bitcoin", "0014751e76e8199196d454941c45d1b3a323f1433bd6", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
        (
            "bitcoin",
            "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
            "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        ),
        (
            "testnet",
            "5120000000c4a5cad46221b2a187905e5266362b99d5e91c6ce24d165dab93e86433",
            "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c",
        ),
    ],
)
def test_a_script_has_the_address_of_the_standard(network: str, script: str, address: str) -> None:
    assert address_of(script, network) == address
    assert script_of(address, network) == script


@given(plain_scripts, networks)
def test_every_script_is_found_again_in_its_address(script: str, network: str) -> None:
    assert script_of(address_of(script, network), network) == script


@given(plain_scripts, networks, st.data())
def test_an_address_that_differs_in_anything_is_none(script: str, network: str, data: st.DataObject) -> None:
    address = address_of(script, network)
    place = data.draw(st.integers(0, len(address) - 1))
    other = data.draw(st.characters(exclude_characters=address[place]))
    for wrong in (
        address[:place] + other + address[place + 1 :],
        address[:place],
        address + other,
        address.upper(),
        address[:place] + address[place:].upper() if address[place:].upper() != address[place:] else "",
        address * 12,
    ):
        with pytest.raises(AddressError):
            script_of(wrong, network)


@given(st.text(max_size=100), networks)
def test_any_text_at_all_is_an_address_or_refused(text: str, network: str) -> None:
    for call in (script_of, address_of):
        try:
            call(text, network)
        except AddressError:
            continue


@pytest.mark.parametrize(
    ("script", "network"),
    [
        ("", "regtest"),
        ("0020" + "ab" * 32, "regtest"),  # P2WSH
        ("5120" + "AB" * 32, "regtest"),
        ("5120" + "ab" * 31, "regtest"),
        ("5120" + "ab" * 32 + "\n", "regtest"),
        ("76a914" + "ab" * 20 + "88ac", "regtest"),
        ("5120" + "ab" * 32, "liquid"),
    ],
)
def test_what_no_wallet_of_lightningd_makes_has_no_address(script: str, network: str) -> None:
    with pytest.raises(AddressError):
        address_of(script, network)


def test_an_address_of_another_network_is_refused() -> None:
    script = "5120" + "ab" * 32
    with pytest.raises(AddressError):
        script_of(address_of(script, "bitcoin"), "regtest")
