from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cable.conftest import Bench
from tests.cable.fakes import SOCKET_NODE, make_certificate, wait_for
from tests.core.ledger.samples import intent
from wattline.cli.main import main

NODE = "02" + "ab" * 32


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The command on a bench: node and meter are fakes, all between them and the terminal is real."""
    bench = Bench(tmp_path, make_certificate())
    monkeypatch.setattr("wattline.cli.cable.CoreLightning", lambda rpc_path: bench.node)
    monkeypatch.setattr("wattline.cli.cable.open_meter", lambda settings, max_power_mw: bench.meter)
    yield bench
    bench.socket.stop()
    bench.ledger.close()


def config(bench: Bench, price: int = 300_000) -> str:
    path = bench.folder / "cable.toml"
    path.write_text(f"""
[socket]
address = "{bench.socket.address}"
[node]
rpc = "lightning-rpc"
[meter]
driver = "ina228"
bus = "sim:toaster"
address = 0x41
shunt_ohms = 0.001
max_current_a = 40
[limits]
max_price_msat_per_kwh = {price}
max_prepaid_msat = 5_000
max_session_msat = 1_000_000
max_day_msat = 1_000_000
energy_tolerance_uwh = 200_000
""")
    return str(path)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_run_ends_with_one_json_object_on_stdout(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cable", "run", "--config", config(bench), "--for", "2", "--json") == 0
    captured = capsys.readouterr()
    assert len(captured.out.strip().splitlines()) == 1
    result = json.loads(captured.out)
    assert result["stop_reason"] == "done"
    assert result["credited_msat"] == result["charged_msat"] + result["refunded_msat"]
    assert result["payments"] > 0
    assert result["objections"] == []
    assert "session" in captured.err


def test_a_session_that_fails_is_status_1_and_still_one_json_object(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cable", "run", "--config", config(bench, price=1_000), "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["stop_reason"] == "price_too_high"
    assert result["payments"] == 0


def test_a_receipt_that_is_not_true_is_an_error_of_its_own(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.socket.lie_receipt = lambda receipt: setattr(receipt, "credited_msat", receipt.credited_msat - 1)
    assert run("cable", "run", "--config", config(bench), "--for", "2") == 1
    captured = capsys.readouterr()
    assert "done: the time is up" in captured.out
    assert "not true: the receipt credits" in captured.out
    assert "wattline: error: socket_untrue: " in captured.err
    assert captured.err.count("wattline: error: ") == 1


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP]],
    ids=["Ctrl-C", "SIGTERM", "a closed terminal", "systemd"],
)
def test_a_signal_closes_the_session_in_good_order(
    bench: Bench, capsys: pytest.CaptureFixture[str], numbers: list[signal.Signals]
) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(bench.socket.orders) >= 2)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert run("cable", "run", "--config", config(bench), "--json") == 0
    thread.join(10)
    result = json.loads(capsys.readouterr().out)
    assert (result["stop_reason"], any(number.name in result["message"] for number in numbers)) == ("operator", True)
    assert bench.socket.session.cable_reason == "operator"


def test_a_cable_that_is_started_deaf_to_a_closed_terminal_buys_on(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def interrupt() -> None:
            wait_for(lambda: len(bench.socket.orders) >= 2)
            os.kill(os.getpid(), signal.SIGHUP)

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        assert run("cable", "run", "--config", config(bench), "--for", "2", "--json") == 0
        thread.join(10)
        assert json.loads(capsys.readouterr().out)["stop_reason"] == "done"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_json_the_end_is_told_in_words(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cable", "run", "--config", config(bench), "--for", "1.5") == 0
    out = capsys.readouterr().out
    assert "done: the time is up" in out
    assert "refund" in out


def test_check_is_status_0_when_all_is_well_and_1_when_something_is_wrong(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cable", "check", "--config", config(bench)) == 0
    assert "problem" not in capsys.readouterr().out
    bench.socket.available = False
    assert run("cable", "check", "--config", config(bench), "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ready"] is False
    assert [row["subject"] for row in result["findings"] if row["verdict"] == "problem"] == ["outlet"]


def test_a_mistake_in_the_configuration_is_status_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cable.toml"
    path.write_text('[socket]\naddress = "127.0.0.1:9750"\n')
    assert run("cable", "run", "--config", str(path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("wattline: error: ")
    assert "any_node = true" in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_missing_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cable", "check", "--config", str(tmp_path / "none.toml")) == 2
    assert "no such file" in capsys.readouterr().err


def test_verbose_shows_where_an_error_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--verbose", "cable", "check", "--config", str(tmp_path / "none.toml")) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.strip().splitlines()[-1].startswith("wattline: error: ")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["cable", "run"], ["cable", "run", "--config", "x", "--for", "-1"], ["--nonsense"]]
)
def test_bad_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_cable_on_the_same_ledger_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(bench)
    with (bench.folder / "cable.sqlite3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("cable", "run", "--config", path, "--for", "1") == 2
    assert "another cable is running with this ledger" in capsys.readouterr().err


def test_a_payment_in_doubt_is_listed_and_ended_by_the_owner(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    doubt = intent(1, destination=SOCKET_NODE)
    bench.ledger.outgoing.add(doubt)
    assert run("cable", "resolve", "--config", config(bench)) == 0
    assert capsys.readouterr().out == f"{doubt.payment_hash} 1000 msat, session {doubt.session_id}\n"
    assert run("cable", "resolve", "--config", config(bench), doubt.payment_hash) == 2
    assert run("cable", "resolve", "--config", config(bench), doubt.payment_hash, "unpaid") == 0
    assert bench.ledger.outgoing.pending() == []
    assert run("cable", "resolve", "--config", config(bench), doubt.payment_hash, "paid") == 2
    assert "not_resolvable" in capsys.readouterr().err
