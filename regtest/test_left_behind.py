"""The demo leaves no file outside of the checkout, however it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from wattline.regtest.places import Places, environment_of, left
from wattline.regtest.scene import script

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

Demo = subprocess.Popen[str]


def start(places: Places, seconds: int) -> Demo:
    environment = {**environment_of(places), "PYTHONUNBUFFERED": "1"}
    command = [str(script("wattline")), "demo", "--seconds", str(seconds)]
    # A group of its own, so that all of it can be interrupted as by a terminal.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def by_signal(number: signal.Signals, demo: Demo) -> None:
    os.killpg(demo.pid, number)


def by_closed_pipe(demo: Demo) -> None:
    assert demo.stdout is not None
    demo.stdout.close()


BY_CTRL_C = partial(by_signal, signal.SIGINT)
BY_SIGTERM = partial(by_signal, signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "interrupt"),
    [
        pytest.param("starting two practice nodes", BY_CTRL_C, id="starting-Ctrl-C"),
        pytest.param("opening a channel", BY_SIGTERM, id="opening-SIGTERM"),
        pytest.param("the cable buys", BY_CTRL_C, id="buying-Ctrl-C"),
        pytest.param("the cable buys", by_closed_pipe, id="buying-closed pipe"),
    ],
)
def test_a_demo_that_is_interrupted_leaves_no_file_behind(
    places: Places, moment: str, interrupt: Callable[[Demo], None]
) -> None:
    with start(places, 5) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert any(moment in line for line in demo.stdout)
        assert left(places) != [], "the network is where this test looks for what it leaves"
        interrupt(demo)
        said = demo.stderr.read()
        demo.wait(60)
    assert "logs are kept" not in said
    assert left(places) == [], said
