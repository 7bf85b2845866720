"""Where bitcoind is looked for: socket.toml, lightningd's options, bitcoin.conf, and what is usual."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.core.bitcoin.bitcoind_rpc import Access, BitcoindSettings, ConfFile, locate
from wattline.core.errors import UsageError
from wattline.core.settings import parse_settings

NOTHING = BitcoindSettings()


def settings(**values: str) -> BitcoindSettings:
    return parse_settings(values, BitcoindSettings, "socket.toml")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".bitcoin").mkdir()
    return tmp_path


def conf(home: Path, text: str, name: str = "bitcoin.conf") -> None:
    (home / ".bitcoin" / name).write_text(text)


@pytest.mark.parametrize(
    ("network", "port", "cookie"),
    [
        ("bitcoin", 8332, ".cookie"),
        ("testnet", 18332, "testnet3/.cookie"),
        ("testnet4", 48332, "testnet4/.cookie"),
        ("signet", 38332, "signet/.cookie"),
        ("regtest", 18443, "regtest/.cookie"),
    ],
)
def test_without_a_word_it_is_the_users_own_bitcoind_of_that_network(
    home: Path, network: str, port: int, cookie: str
) -> None:
    assert locate(NOTHING, {}, network, home) == Access("127.0.0.1", port, cookie=home / ".bitcoin" / cookie)


def test_lightningds_options_say_where_else(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {
        "bitcoin-datadir": str(elsewhere),
        "bitcoin-rpcconnect": "10.0.0.7",
        "bitcoin-rpcport": "1234",
        "bitcoin-rpcuser": "alice",
    }
    # A user without a password is known by the cookie, as with bitcoin-cli.
    assert locate(NOTHING, options, "signet", home) == Access("10.0.0.7", 1234, cookie=elsewhere / "signet/.cookie")
    options["bitcoin-rpcpassword"] = "secret"
    assert locate(NOTHING, options, "signet", home) == Access("10.0.0.7", 1234, user="alice", password="secret")


def test_what_lightningd_was_not_told_stands_in_bitcoin_conf(home: Path) -> None:
    conf(home, "rpcuser=bob\nrpcpassword = secret  # mine\nrpcconnect=node.test\nrpcport=99\n")
    assert locate(NOTHING, {}, "bitcoin", home) == Access("node.test", 99, user="bob", password="secret")
    options = {"bitcoin-rpcpassword": "other", "bitcoin-rpcport": "100"}
    assert locate(NOTHING, options, "bitcoin", home) == Access("node.test", 100, user="bob", password="other")


def test_what_socket_toml_says_goes_before_all_else(home: Path) -> None:
    conf(home, "rpcuser=bob\nrpcpassword=secret\nrpcport=99\n")
    options = {"bitcoin-rpcpassword": "other", "bitcoin-rpcport": "100", "bitcoin-rpcconnect": "10.0.0.7"}
    chosen = settings(url="http://10.0.0.8:1", user="carol", password="third")
    assert locate(chosen, options, "bitcoin", home) == Access("10.0.0.8", 1, user="carol", password="third")
    assert locate(settings(cookie="/run/b/.cookie"), options, "bitcoin", home) == Access(
        "10.0.0.7", 100, cookie=Path("/run/b/.cookie")
    )
    assert locate(settings(url="http://[::1]"), options, "bitcoin", home) == Access(
        "::1", 8332, user="bob", password="other"
    )


def test_a_networks_section_goes_before_what_is_above_it_and_the_first_line_counts(home: Path) -> None:
    conf(
        home,
        "rpcuser=all\nregtest.rpcuser=dotted\nrpcpassword=first\nrpcpassword=second\n"
        "[signet]\nrpcuser=signet\n[regtest]\nrpcuser=late\n-rpcport=5\n[main]\nrpcuser=main\n",
    )
    assert locate(NOTHING, {}, "regtest", home) == Access("127.0.0.1", 5, user="dotted", password="first")
    assert locate(NOTHING, {}, "signet", home).user == "signet"
    assert locate(NOTHING, {}, "testnet", home).user == "all"
    assert locate(NOTHING, {}, "bitcoin", home).user == "main"


def test_a_port_above_all_sections_is_of_the_main_network_alone(home: Path) -> None:
    conf(home, "rpcport=99\n")
    assert locate(NOTHING, {}, "bitcoin", home).port == 99
    assert locate(NOTHING, {}, "regtest", home).port == 18443


@pytest.mark.parametrize(
    ("connect", "place"),
    [
        ("node.test:77", ("node.test", 77)),
        ("::1", ("::1", 8332)),
        ("[::1]:77", ("::1", 77)),
        ("10.0.0.7", ("10.0.0.7", 8332)),
    ],
)
def test_rpcconnect_may_hold_a_port(home: Path, connect: str, place: tuple[str, int]) -> None:
    access = locate(NOTHING, {"bitcoin-rpcconnect": connect}, "bitcoin", home)
    assert (access.host, access.port) == place
    access = locate(NOTHING, {"bitcoin-rpcconnect": connect, "bitcoin-rpcport": "5"}, "bitcoin", home)
    assert (access.host, access.port) == (place[0], 5)


def test_bitcoin_conf_may_send_on_to_another_directory_and_another_cookie(home: Path) -> None:
    conf(home, "datadir=/srv/bitcoin\nrpccookiefile=my.cookie\n")
    (home / "given").mkdir()
    given = locate(NOTHING, {"bitcoin-datadir": str(home / "given")}, "regtest", home)
    assert given.cookie == home / "given/regtest/.cookie"
    with pytest.raises(UsageError, match=r"/srv/bitcoin;"):
        locate(NOTHING, {}, "regtest", home)
    conf(home, f"datadir={home / 'given'}\nrpccookiefile=my.cookie\n")
    assert locate(NOTHING, {}, "regtest", home).cookie == home / "given/regtest/my.cookie"
    conf(home, "rpccookiefile=/run/bitcoind.cookie\n")
    assert locate(NOTHING, {}, "regtest", home).cookie == Path("/run/bitcoind.cookie")


def test_included_files_count_after_the_file_itself(home: Path) -> None:
    conf(home, "includeconf=more.conf\nrpcuser=own\n[regtest]\nincludeconf=regtest.conf\n")
    conf(home, "rpcuser=more\nrpcpassword=of-more\n", "more.conf")
    conf(home, "regtest.rpcpassword=of-regtest\n", "regtest.conf")
    assert locate(NOTHING, {}, "signet", home) == Access("127.0.0.1", 38332, user="own", password="of-more")
    assert locate(NOTHING, {}, "regtest", home) == Access("127.0.0.1", 18443, user="own", password="of-regtest")


def test_a_mark_before_the_text_is_not_part_of_its_first_key(home: Path) -> None:
    conf(home, "\ufeffrpcuser=own\nrpcpassword=secret\n")
    assert ConfFile.read(home / ".bitcoin", "main").get("rpcuser") == "own"


def test_a_conf_file_that_cannot_be_read_is_named(home: Path) -> None:
    conf(home, "includeconf=gone.conf\n")
    with pytest.raises(UsageError, match=r"gone\.conf: cannot be read") as caught:
        ConfFile.read(home / ".bitcoin", "main")
    assert caught.value.code == "config_unreadable"
    (home / ".bitcoin" / "bitcoin.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"bitcoin\.conf: cannot be read"):
        ConfFile.read(home / ".bitcoin", "main")


def test_where_there_is_nothing_to_go_by_the_way_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"nor its directory .*\.bitcoin; set url, .* in \[bitcoind\] of socket\.toml"
    ) as caught:
        locate(NOTHING, {}, "bitcoin", tmp_path)
    assert caught.value.code == "bitcoind_unknown"
    assert locate(settings(user="a", password="b"), {}, "bitcoin", tmp_path).user == "a"


@pytest.mark.parametrize(
    "options",
    [{"bitcoin-rpcport": "http"}, {"bitcoin-rpcport": "0"}, {"bitcoin-rpcport": "65536"}, {"bitcoin-rpcconnect": ":5"}],
)
def test_a_place_that_is_none_is_said(home: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"rpcport=|rpcconnect=") as caught:
        locate(NOTHING, options, "bitcoin", home)
    assert caught.value.code == "bitcoind_unknown"


def test_a_network_without_a_bitcoind_is_said(home: Path) -> None:
    with pytest.raises(UsageError, match="liquid"):
        locate(NOTHING, {}, "liquid", home)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user": "a"}, "user and password belong together"),
        ({"password": "b"}, "user and password belong together"),
        ({"user": "a", "password": "b", "cookie": "c"}, "either cookie, or user and password"),
        ({"url": "localhost:8332"}, "must be http://host:port"),
        ({"url": "https://localhost:8332"}, "must be http://host:port"),
        ({"url": "http://localhost:99999"}, "must be http://host:port"),
        ({"url": "http://localhost:8332/wallet/x"}, "must be http://host:port"),
        ({"url": "http://a:geheim@localhost:8332"}, "must be http://host:port"),
        ({"cookie": ""}, "cookie: "),
        ({"port": "8332"}, "port: unknown key"),
    ],
)
def test_a_mistake_in_the_table_is_named_without_a_secret(values: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**values)
    assert message in caught.value.message
    assert "geheim" not in caught.value.message
