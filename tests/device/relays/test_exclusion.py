"""Locks on the hardware of relays: one process drives a chip or a line, whatever it was started with."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from wattline.device.relays.exclusion import MACHINE, RelayTakenError, check_unclaimed, claimed, locks_of
from wattline.device.relays.opening import RelaySettings
from wattline.device.relays.relay import RelayError

HOLDER = """
import sys
from pathlib import Path
from wattline.device.relays.opening import RelaySettings
from wattline.device.relays.exclusion import claimed
from pydantic import TypeAdapter
relay = TypeAdapter(RelaySettings).validate_json(sys.argv[1])
with claimed([relay], machine=[Path(sys.argv[2])]):
    print("held", flush=True)
    sys.stdin.read()
"""


def relay(**values: Any) -> RelaySettings:
    settings: RelaySettings = TypeAdapter(RelaySettings).validate_python(values)
    return settings


def expander(**changes: Any) -> RelaySettings:
    return relay(**{"driver": "pcf8574", "bus": 1, "address": 0x20, "bit": 0} | changes)


def refusal(settings: RelaySettings, *machine: Path) -> RelayError:
    with pytest.raises(RelayError) as caught, claimed([settings], patience_s=0, machine=machine or MACHINE):
        pass
    return caught.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (expander(), expander(bit=1)),
        (expander(), expander(driver="pca9554", bit=3)),
        (expander(bus="sim:toaster"), expander(bus="sim:toaster/default", bit=1)),
        (relay(driver="gpio", chip="/dev/null", line=4), relay(driver="gpio", chip="/dev/../dev/null", line=4)),
    ],
    ids=["another-pin", "another-driver", "the-same-world", "the-same-line"],
)
def test_what_a_write_touches_is_taken_once(one: RelaySettings, other: RelaySettings, tmp_path: Path) -> None:
    with claimed([one], machine=[tmp_path]):
        error = refusal(other, tmp_path)
        assert error.code == "relay_taken"
        assert other.place in error.message
        assert "lightning-cli plugin stop" in error.message
    with claimed([other], machine=[tmp_path]):
        pass


@pytest.mark.parametrize("other", [expander(address=0x21), expander(bus=2), expander(bus="sim:toaster")])
def test_other_hardware_is_free_meanwhile(other: RelaySettings, tmp_path: Path) -> None:
    with claimed([expander()], machine=[tmp_path]), claimed([other], machine=[tmp_path]):
        pass


def test_relays_of_one_chip_are_claimed_together(tmp_path: Path) -> None:
    with claimed([expander(bit=bit) for bit in range(8)], machine=[tmp_path]):
        assert [path.name for path in tmp_path.iterdir()] == ["wattline-i2c-1-0x20.lock"]


def test_when_one_of_several_is_taken_none_is_kept(tmp_path: Path) -> None:
    line, taken = relay(driver="gpio", chip="/dev/gpiochip0", line=4), expander()
    with claimed([taken], machine=[tmp_path]):
        with pytest.raises(RelayError), claimed([line, taken], patience_s=0, machine=[tmp_path]):
            pass
        with claimed([line], machine=[tmp_path]):
            pass


def test_who_lets_go_leaves_no_file_and_two_never_have_it_at_once(tmp_path: Path) -> None:
    inside = threading.Lock()

    def fight() -> None:
        for _ in range(30):
            with claimed([expander()], patience_s=30, machine=[tmp_path]):
                assert inside.acquire(blocking=False), "two have it"
                inside.release()

    with ThreadPoolExecutor(4) as pool:
        for fought in [pool.submit(fight) for _ in range(4)]:
            fought.result()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_lets_go_at_once(tmp_path: Path) -> None:
    arguments = [TypeAdapter(RelaySettings).dump_json(expander()).decode(), str(tmp_path)]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    error = refusal(expander(), tmp_path)
    assert isinstance(error, RelayTakenError)
    assert error.pid == holder.pid
    assert f"process {holder.pid}" in error.message
    holder.kill()
    holder.communicate()
    with claimed([expander()], patience_s=0, machine=[tmp_path]):
        pass


def test_a_lock_is_there_for_every_user_in_each_directory_that_can_be_used(tmp_path: Path) -> None:
    first, second, missing = tmp_path / "first", tmp_path / "second", tmp_path / "missing"
    first.mkdir()
    second.mkdir()
    with claimed([expander()], machine=[first, missing, second]):
        for place in (first, second):
            (lock,) = place.iterdir()
            assert lock.stat().st_mode & 0o777 == 0o644
            assert refusal(expander(), place).code == "relay_taken"


def test_where_no_lock_can_be_made_nothing_is_driven(tmp_path: Path) -> None:
    error = refusal(expander(), tmp_path / "missing")
    assert (error.code, str(tmp_path) in error.message) == ("relay_lock_unusable", True)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (path,) = locks_of(expander(), [tmp_path])
    path.symlink_to(tmp_path / "elsewhere")
    error = refusal(expander(), tmp_path)
    assert (error.code, str(path) in error.message) == ("relay_lock_unusable", True)
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_named_process_has_counts_as_free() -> None:
    settings = expander(bus="sim:toaster")
    with claimed([settings]):
        error = refusal(settings)
        assert isinstance(error, RelayTakenError)
        assert error.pid is not None
        check_unclaimed([settings], but_by=[error.pid])
        with pytest.raises(RelayTakenError):
            check_unclaimed([settings], but_by=[])
