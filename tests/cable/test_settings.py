from __future__ import annotations

from pathlib import Path

import pytest

from wattline.cable.settings import CableConfig, SocketAddress, load_cable, parse_address
from wattline.core.errors import UsageError

NODE = "02" + "ab" * 32
GOOD = f"""
[socket]
address = "{NODE}@192.0.2.7:9750"

[node]
rpc = "lightning-rpc"

[meter]
driver = "ina228"
bus = 1
address = 0x41
shunt_ohms = 0.001
max_current_a = 40

[limits]
max_price_msat_per_kwh = 400_000
max_prepaid_msat = 2_000
max_session_msat = 100_000
max_day_msat = 1_000_000
"""


METER = GOOD[GOOD.index("[meter]") : GOOD.index("[limits]")] + "[limits]"
TOO_HIGH = (
    METER.replace("ina228", "ina219").replace("0.001", "0.01").replace("= 40", "= 8") + "\nmin_voltage_mv = 26_001"
)


def load(folder: Path, text: str) -> CableConfig:
    path = folder / "cable.toml"
    path.write_text(text)
    return load_cable(path)


def mistake(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    assert str(folder / "cable.toml") in caught.value.message
    return caught.value.message


def test_a_small_configuration_is_enough(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.settings.socket.parsed == SocketAddress("192.0.2.7", 9750, NODE)
    assert config.storage_path == tmp_path / "cable.sqlite3"
    assert config.rpc_path == tmp_path / "lightning-rpc"
    assert config.settings.limits.tolerance.allowed_uwh(100_000_000) == 3_000_000
    assert config.settings.payment.max_in_flight == 4
    assert config.settings.node.identify is False


def test_paths_are_read_against_the_file_they_stand_in(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + '\n[storage]\npath = "data/ledger.sqlite3"\n')
    assert config.storage_path == tmp_path / "data" / "ledger.sqlite3"


def test_any_node_is_opt_in(tmp_path: Path) -> None:
    bare = GOOD.replace(f"{NODE}@", "")
    assert "any_node = true" in mistake(tmp_path, bare)
    config = load(tmp_path, bare.replace('9750"', '9750"\nany_node = true'))
    assert config.settings.socket.parsed.node_id is None


def test_a_pinned_node_and_any_node_contradict_each_other(tmp_path: Path) -> None:
    assert "any_node" in mistake(tmp_path, GOOD.replace('9750"', '9750"\nany_node = true'))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("max_prepaid_msat = 2_000", "max_prepaid_msat = 200_000", "max_prepaid_msat"),
        ("max_day_msat = 1_000_000", "max_day_msat = 1_000", "max_session_msat"),
        ("max_day_msat = 1_000_000", "", "limits.max_day_msat"),
        ("max_prepaid_msat = 2_000", "max_prepaid_msat = 0", "limits.max_prepaid_msat"),
        ("max_prepaid_msat = 2_000", "max_prepaid_msat = 2.5", "limits.max_prepaid_msat"),
        ("[limits]", "[limits]\nmax_fee_ratio = 1.5", "limits.max_fee_ratio"),
        ("[limits]", "[limits]\nmax_fee = 1", "limits.max_fee: unknown key"),
        ("[limits]", "[limits]\nmax_session_fee_msat = 3_000", "max_session_fee_msat"),
        (":9750", ":97500", "address"),
        (NODE, "02abcd", "node id"),
        ("[limits]", "[payment]\nmin_increment_msat = 20_000\n[limits]", "min_increment_msat"),
        (
            "[limits]",
            "[payment]\nmin_increment_msat = 5_000\n[limits]",
            "payment.min_increment_msat: must not exceed limits.max_prepaid_msat",
        ),
        ("[limits]", '[payment]\nmethod = "cash"\n[limits]', "payment.method"),
        (METER, TOO_HIGH, "limits.min_voltage_mv: must not exceed 26000 mV"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in GOOD
    assert key in mistake(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("prepaid", "written", "kept"),
    [(5_000, "", 1_000), (300, "", 100), (100_000, "", 10_000), (5_000, "max_kept_msat = 7_000", 7_000)],
)
def test_unless_told_otherwise_a_socket_may_keep_a_small_part_of_what_is_prepaid(
    tmp_path: Path, prepaid: int, written: str, kept: int
) -> None:
    text = GOOD.replace("max_prepaid_msat = 2_000", f"max_prepaid_msat = {prepaid}\n{written}")
    assert load(tmp_path, text).settings.limits.most_kept_msat == kept


def test_a_limit_on_the_session_fee_above_the_prepaid_one_is_refused_only_where_it_is_paid_out_of_that(
    tmp_path: Path,
) -> None:
    text = GOOD.replace("[limits]", "[limits]\nmax_session_fee_msat = 3_000")
    assert "max_session_fee_msat" in mistake(tmp_path, text)
    for method in ("onchain", "auto"):
        larger = text.replace("max_session_msat = 100_000", "max_session_msat = 2_000_000")
        larger = larger.replace("max_day_msat = 1_000_000", "max_day_msat = 2_000_000")
        config = load(tmp_path, f'{larger}\n[payment]\nmethod = "{method}"\n')
        assert config.settings.limits.max_session_fee_msat == 3_000


def test_addresses_of_ipv6_are_in_brackets() -> None:
    address = parse_address(f"{NODE}@[::1]:9750")
    assert (address.host, address.port) == ("::1", 9750)
    assert address.target == "[::1]:9750"


@pytest.mark.parametrize("text", ["", "host", "host:", ":9750", "a@b@c:1", "host:0", "ho st:1", "::1:9750"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|node id"):
        parse_address(text)


def test_a_mark_that_an_editor_puts_before_the_text_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "cable.toml").write_text(GOOD, encoding="utf-8-sig")
    assert load_cable(tmp_path / "cable.toml").settings.socket.parsed == SocketAddress("192.0.2.7", 9750, NODE)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (GOOD.encode("utf-16"), "it is UTF-16"),
        (GOOD.replace("lightning", "l\u00efghtning").encode("latin-1"), "(0xef) is no UTF-8; save it as UTF-8"),
    ],
    ids=["UTF-16", "Latin-1"],
)
def test_a_file_in_another_encoding_is_told_as_that(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "cable.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_cable(path)
    assert caught.value.code == "config_unreadable"
    assert str(path) in caught.value.message
    assert told in caught.value.message
