"""How bitcoind is asked: connections, cookies, deadlines, and what each of its failures means."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from tests.core.bitcoin.fake_bitcoind import COOKIE, FakeBitcoind, fake_bitcoind
from wattline.core.bitcoin.bitcoind_rpc import CONNECTIONS_KEPT, Access, BitcoindRpc, BitcoindSettings, locate
from wattline.core.bitcoin.chain import ChainRefused, ChainUnavailable
from wattline.core.errors import RetryError, StopError


@pytest.fixture
def fake() -> Iterator[FakeBitcoind]:
    with fake_bitcoind() as server:
        server.result("getmempoolinfo", "7")
        yield server


@pytest.fixture
def cookie(tmp_path: Path) -> Path:
    path = tmp_path / ".cookie"
    path.write_text(COOKIE)
    return path


@pytest.fixture
def rpc(fake: FakeBitcoind, cookie: Path) -> BitcoindRpc:
    return BitcoindRpc(Access("127.0.0.1", fake.port, cookie=cookie), answer_timeout_s=20.0)


def test_calls_one_after_the_other_share_a_connection(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    assert [rpc.call("getmempoolinfo") for _ in range(5)] == [7] * 5
    assert fake.connections == 1


def test_a_connection_that_bitcoind_has_closed_meanwhile_is_replaced_unseen(
    fake: FakeBitcoind, rpc: BitcoindRpc
) -> None:
    rpc.call("getmempoolinfo")
    fake.hang_up()
    assert rpc.call("getmempoolinfo") == 7
    assert fake.connections == 2


def test_a_call_that_fails_on_a_new_connection_is_not_tried_again(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    fake.answer("getmempoolinfo", None)
    with pytest.raises(ChainUnavailable):
        rpc.call("getmempoolinfo")
    assert fake.connections == 1


def test_calls_at_the_same_time_have_connections_of_their_own_and_few_are_kept(
    fake: FakeBitcoind, rpc: BitcoindRpc
) -> None:
    callers = CONNECTIONS_KEPT + 2
    together = threading.Barrier(callers)

    def call(_number: int) -> object:
        together.wait(10)
        return rpc.call("getmempoolinfo")

    fake.hold.clear()
    with ThreadPoolExecutor(callers) as pool:
        answers = pool.map(call, range(callers))
        while len(fake.called("getmempoolinfo")) < callers:
            threading.Event().wait(0.005)
        fake.hold.set()
        assert list(answers) == [7] * callers
    assert fake.connections == callers
    assert len(rpc._idle) == CONNECTIONS_KEPT
    rpc.close()
    assert rpc.call("getmempoolinfo") == 7


def test_numbers_with_a_decimal_point_come_as_they_are_written(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    fake.result("getmempoolinfo", '{"value": 0.00000001, "other": 20999999.97690000}')
    assert rpc.call("getmempoolinfo") == {"value": Decimal("0.00000001"), "other": Decimal("20999999.97690000")}


def test_a_restarted_bitcoind_is_known_by_its_new_cookie(fake: FakeBitcoind, rpc: BitcoindRpc, cookie: Path) -> None:
    rpc.call("getmempoolinfo")
    fake.secret = "__cookie__:11aa"
    fake.hang_up()
    cookie.write_text(fake.secret)
    assert rpc.call("getmempoolinfo") == 7


def test_a_bitcoind_that_does_not_know_us_is_no_passing_trouble(
    fake: FakeBitcoind, rpc: BitcoindRpc, cookie: Path
) -> None:
    fake.secret = "someone:else"
    with pytest.raises(ChainRefused, match=r"does not accept .*\.cookie.*\[bitcoind\] of socket\.toml") as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "bitcoind_not_permitted"
    assert isinstance(caught.value, StopError)


def test_a_password_is_used_instead_of_a_cookie_and_never_shown(fake: FakeBitcoind) -> None:
    fake.secret = "alice:se:cret"
    access = Access("127.0.0.1", fake.port, user="alice", password="se:cret")
    assert BitcoindRpc(access).call("getmempoolinfo") == 7
    wrong = Access("127.0.0.1", fake.port, user="alice", password="geheim")
    with pytest.raises(ChainRefused, match="does not accept user alice") as caught:
        BitcoindRpc(wrong).call("getmempoolinfo")
    assert "geheim" not in f"{caught.value} {wrong!r} {wrong}"


def test_an_access_needs_some_way_to_be_known() -> None:
    with pytest.raises(ValueError, match="cookie or a password"):
        Access("127.0.0.1", 8332)


def test_a_caller_from_a_forbidden_place_is_told_so(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    fake.answer("getmempoolinfo", (403, b""))
    with pytest.raises(ChainRefused, match="rpcallowip") as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "bitcoind_not_permitted"


def test_without_a_cookie_bitcoind_counts_as_not_running(rpc: BitcoindRpc, cookie: Path) -> None:
    cookie.unlink()
    with pytest.raises(ChainUnavailable, match=r"\.cookie: No such file.*not running"):
        rpc.call("getmempoolinfo")


def test_a_cookie_of_another_user_is_no_passing_trouble(
    rpc: BitcoindRpc, cookie: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    # The tests may run as root, who may read everything.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ChainRefused, match="Permission denied: let this user read it") as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "bitcoind_not_permitted"


@pytest.mark.parametrize(
    "answer",
    [
        (503, b"Work queue depth exceeded"),
        (200, b"[]"),
        (200, b'{"id": 1}'),
        (200, b'{"result": tr'),
        (500, b'{"result":null,"error":{"code":-28,"message":"Loading block index"},"id":1}'),
        None,
    ],
    ids=["busy", "a list", "no result", "cut", "starting", "hung up"],
)
def test_an_answer_that_is_none_is_passing_trouble(
    fake: FakeBitcoind, rpc: BitcoindRpc, answer: tuple[int, bytes] | None
) -> None:
    fake.answer("getmempoolinfo", answer)
    with pytest.raises(ChainUnavailable, match=f"127.0.0.1:{fake.port}, getmempoolinfo") as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "bitcoind_unavailable"
    assert isinstance(caught.value, RetryError)
    fake.result("getmempoolinfo", "8")
    assert rpc.call("getmempoolinfo") == 8


def test_nobody_listening_is_passing_trouble(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    fake.close()
    with pytest.raises(ChainUnavailable, match=r"no answer: .*refused"):
        rpc.call("getmempoolinfo")


def test_a_bitcoind_that_is_silent_for_too_long_is_passing_trouble(fake: FakeBitcoind, cookie: Path) -> None:
    hasty = BitcoindRpc(Access("127.0.0.1", fake.port, cookie=cookie), answer_timeout_s=0.05)
    hasty_used = BitcoindRpc(Access("127.0.0.1", fake.port, cookie=cookie), answer_timeout_s=0.5)
    hasty_used.call("getmempoolinfo")
    fake.hold.clear()
    for rpc in (hasty, hasty_used):
        with pytest.raises(ChainUnavailable, match="timed out"):
            rpc.call("getmempoolinfo")
    assert len(fake.called("getmempoolinfo")) == 3


def test_an_error_keeps_its_code_and_text(fake: FakeBitcoind, rpc: BitcoindRpc) -> None:
    fake.error("getmempoolinfo", -8, "out of range")
    with pytest.raises(ChainRefused, match="getmempoolinfo: out of range") as caught:
        rpc.call("getmempoolinfo")
    assert (caught.value.code, caught.value.rpc_code) == ("bitcoind_refused", -8)


def test_an_ipv6_address_is_written_with_brackets() -> None:
    assert Access("::1", 8332, password="x").address == "[::1]:8332"


def test_a_bitcoind_that_cannot_be_found_is_looked_for_at_each_call(fake: FakeBitcoind, tmp_path: Path) -> None:
    """A socket goes on selling over Lightning meanwhile, and needs no restart."""
    settings = BitcoindSettings(url=f"http://127.0.0.1:{fake.port}")
    rpc = BitcoindRpc(lambda: locate(settings, {}, "regtest", home=tmp_path))
    with pytest.raises(ChainRefused, match="no way to a bitcoind") as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "bitcoind_unknown"
    folder = tmp_path / ".bitcoin" / "regtest"
    folder.mkdir(parents=True)
    (tmp_path / ".bitcoin" / "bitcoin.conf").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ChainRefused) as caught:
        rpc.call("getmempoolinfo")
    assert caught.value.code == "config_unreadable"
    (tmp_path / ".bitcoin" / "bitcoin.conf").unlink()
    (folder / ".cookie").write_text(COOKIE)
    assert rpc.call("getmempoolinfo") == 7
