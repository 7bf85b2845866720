"""Reads the cable's own meter ten times a second or more in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wattline.core.errors import WattlineError
from wattline.device.meters.reading import Meter, MeterError, Reading, next_look_ms

INTERVAL_MS = 100


class MeterThread:
    """Hands every reading to ``emit``; after the first error it hands that on and ends. Owns and closes the meter."""

    def __init__(
        self, meter: Meter, emit: Callable[[Reading | MeterError], None], interval_ms: int = INTERVAL_MS
    ) -> None:
        self._meter = meter
        self._emit = emit
        self._interval_ms = interval_ms
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cable-meter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        else:
            self._meter.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                reading = self._meter.read()
                self._emit(reading)
                self._stopping.wait(next_look_ms(reading, self._interval_ms) / 1000)
        except MeterError as error:
            self._emit(error)
        except WattlineError as error:
            self._emit(MeterError("meter_bus_error", f"{error.code}: {error.message}"))
        except Exception as error:  # noqa: BLE001 - whatever it was, there is no trustworthy reading any more
            self._emit(MeterError("meter_bus_error", f"{type(error).__name__}: {error}"))
        finally:
            self._meter.close()
