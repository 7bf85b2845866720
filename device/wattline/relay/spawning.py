"""Starting a guard, and finding the one that runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from wattline.relay.guard_settings import GuardSettings
from wattline.relay.lease import TIMEOUT_S, GuardClient
from wattline.relay.relay import RelayError

START_TIMEOUT_S = 15.0
LOOK_AGAIN_S = 0.02


def guard_for(settings: GuardSettings, timeout_s: float = START_TIMEOUT_S) -> GuardClient:
    """A connection to the guard of ``settings`` that may hold relays: the one that runs, else a new one.

    A guard with other settings is told to go first. Raises RelayError: ``guard_busy`` when another client holds its
    relays, ``guard_start`` when none could be started.
    """
    try:
        client = GuardClient.connect(settings.socket)
    except RelayError:
        return spawn_guard(settings, timeout_s)
    try:
        state = client.state()
        if state.fingerprint == settings.fingerprint and not state.leaving:
            client.take()
            return client
        client.bye()
    except RelayError as error:
        client.close()
        if error.code == "guard_busy":
            raise
    client.close()
    return spawn_guard(settings, timeout_s)


def spawn_guard(settings: GuardSettings, timeout_s: float = START_TIMEOUT_S) -> GuardClient:
    """Start a guard that outlives this process, and take it; every relay has been opened by then.

    It has a session, a standard input and a standard output of its own. It waits for an older guard to end. Raises
    RelayError ``guard_start``, ``guard_busy``; ``relay_taken`` when a guard at another socket drives one of the relays.
    """
    deadline = time.monotonic() + timeout_s
    report, reporting = os.pipe()
    try:
        os.set_blocking(report, False)
        try:
            _start(settings, timeout_s, reporting)
        finally:
            os.close(reporting)
        return _awaited(settings, deadline, timeout_s, report)
    finally:
        os.close(report)


def _start(settings: GuardSettings, timeout_s: float, reporting: int) -> None:
    command = [sys.executable, "-P", "-m", "wattline.relay.guard", "--config", "-", "--report", str(reporting)]
    try:
        started = subprocess.run(
            command,
            input=settings.model_dump_json(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd="/",
            pass_fds=(reporting,),
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RelayError("guard_start", f"the guard did not start: {error}") from error
    if started.returncode != 0:
        reason = started.stderr.strip().splitlines() or [f"exit status {started.returncode}"]
        raise RelayError("guard_start", f"the guard did not start: {reason[-1]}")


def _awaited(settings: GuardSettings, deadline: float, timeout_s: float, report: int) -> GuardClient:
    while True:
        try:
            return _connected(settings)
        except RelayError as error:
            if error.code == "guard_busy":
                raise
            _check_not_refused(report)
            if time.monotonic() > deadline:
                reason_now = f"{error}; its log is {settings.log}"
                raise RelayError("guard_start", f"no guard after {timeout_s:g} s: {reason_now}") from error
        time.sleep(LOOK_AGAIN_S)


def _check_not_refused(report: int) -> None:
    """Raises the RelayError with which the guard has said that it may not work."""
    refusal = b""
    with contextlib.suppress(BlockingIOError):
        # Shorter than what a pipe takes at once, so it comes whole; nothing when the guard has closed it.
        refusal = os.read(report, 4096)
    if refusal:
        told = json.loads(refusal)
        raise RelayError(told["code"], told["message"])


def _connected(settings: GuardSettings) -> GuardClient:
    """To the guard with these very settings. Raises RelayError."""
    client = GuardClient.connect(Path(settings.socket), TIMEOUT_S)
    try:
        state = client.state()
        if state.fingerprint != settings.fingerprint or state.leaving:
            waiting = ", ".join(f"{s.outlet_id} ({s.fault})" for s in state.relays if s.fault) or "its end"
            raise RelayError("guard_start", f"an older guard has not ended; it waits for {waiting}")
        client.take()
    except RelayError:
        client.close()
        raise
    return client
