"""``wattline meter``: what the meters of a socket or a cable see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from wattline.cli.command import LONGEST_S, interruptible
from wattline.cli.meter_config import NamedMeter, meters_in
from wattline.core.text import energy, power
from wattline.device.meters.opening import open_meter
from wattline.device.meters.reading import Meter, MeterError, Reading

meter_app = typer.Typer(name="meter", help="The meters of a socket or a cable.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="A socket.toml or a cable.toml.")]
OutletOption = Annotated[str | None, typer.Option("--outlet", help="Of a socket: this outlet only.")]

LOOK_S = 0.2
"""Between two looks at a meter, whatever is shown: one that does not count by itself must be read often."""
REOPEN_S = 1.0
TABLE_INTERVAL_S = 0.5
WIDE = 1000
"""More than any table needs."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a meter said: a reading or an error."""

    name: str
    driver: str
    found: Reading | MeterError

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"name": self.name, "driver": self.driver}
        if isinstance(self.found, MeterError):
            return row | {"code": self.found.code, "message": self.found.message}
        return row | {
            "energy_uwh": self.found.energy_uwh,
            "power_mw": self.found.power_mw,
            "voltage_mv": self.found.voltage_mv,
            "current_ma": self.found.current_ma,
            "at_ms": self.found.at_ms,
        }

    def __str__(self) -> str:
        if isinstance(self.found, MeterError):
            return f"{self.name}: {self.found.code}: {self.found.message}"
        return f"{self.name}: {', '.join(quantities(self.found))}"


class WatchedMeter:
    """A meter that is opened again after it has failed, as the socket does."""

    def __init__(self, meter: NamedMeter) -> None:
        self._meter = meter
        self._opened: Meter | None = None
        self._error: MeterError | None = None
        self._retry_at = 0.0

    def look(self) -> Look:
        """Never raises MeterError: it is what was found."""
        name, driver = self._meter.name, self._meter.settings.driver
        if self._opened is None and self._error is not None and time.monotonic() < self._retry_at:
            return Look(name, driver, self._error)
        try:
            if self._opened is None:
                self._opened = open_meter(self._meter.settings, self._meter.max_power_mw)
            return Look(name, driver, self._opened.read())
        except MeterError as error:
            self.close()
            self._error, self._retry_at = error, time.monotonic() + REOPEN_S
            return Look(name, driver, error)

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


def quantities(reading: Reading) -> tuple[str, str, str, str]:
    """Voltage, current, power and energy for people."""
    volts, amperes = f"{reading.voltage_mv / 1000:.3f} V", f"{reading.current_ma / 1000:.3f} A"
    return volts, amperes, power(reading.power_mw), energy(reading.energy_uwh)


@meter_app.command()
def read(
    config: ConfigOption,
    outlet: OutletOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look at every meter once. Exit status 1 when one of them cannot be trusted."""
    looks = []
    for named in meters_in(config, outlet):
        meter = WatchedMeter(named)
        try:
            looks.append(meter.look())
        finally:
            meter.close()
    if as_json:
        typer.echo(_json(looks))
    else:
        for look in looks:
            typer.echo(str(look))
    raise typer.Exit(_status(looks))


@meter_app.command()
def watch(
    config: ConfigOption,
    outlet: OutletOption = None,
    interval: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, help="Seconds between two lines; a table is drawn anew twice a second at least."
        ),
    ] = 1.0,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0.1, max=LONGEST_S, help="End after so many seconds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")] = False,
) -> None:
    """Look at every meter until Ctrl-C: a table on a terminal that has room for it, lines anywhere else."""
    meters = [WatchedMeter(named) for named in meters_in(config, outlet)]
    console = Console()
    looks: list[Look] = []
    try:
        with interruptible():
            if console.is_terminal and not as_json:
                begun = time.monotonic()
                live = Live(console=console, auto_refresh=False)
                try:
                    for looks in _looks(meters, min(interval, TABLE_INTERVAL_S), seconds):
                        rows = table(looks)
                        if not fits(console, rows):
                            break
                        live.start()
                        live.update(rows, refresh=True)
                    else:
                        raise typer.Exit(_status(looks))
                finally:
                    live.stop()
                # Lines from now on, for the rest of the time.
                seconds = None if seconds is None else seconds - (time.monotonic() - begun)
            for looks in _looks(meters, interval, seconds):
                for line in [_json(looks)] if as_json else [str(look) for look in looks]:
                    typer.echo(line)
    except KeyboardInterrupt:
        # How it is meant to end.
        pass
    finally:
        for meter in meters:
            meter.close()
    raise typer.Exit(_status(looks))


def table(looks: Sequence[Look]) -> Table:
    """The present state, one row for each meter."""
    rows = Table()
    for title in ("meter", "chip", "voltage", "current", "power", "energy"):
        rows.add_column(title, justify="left" if title in ("meter", "chip") else "right")
    for look in looks:
        if isinstance(look.found, MeterError):
            rows.add_row(look.name, look.driver, f"[red]{look.found.code}[/red]", "", "", "")
        else:
            rows.add_row(look.name, look.driver, *quantities(look.found))
    rows.caption = "\n".join(look.found.message for look in looks if isinstance(look.found, MeterError)) or None
    return rows


def fits(console: Console, rows: Table) -> bool:
    """Whether the terminal has room for the table: in one that has not, rich shows dots where the values were."""
    if console.measure(rows, options=console.options.update(width=WIDE)).maximum > console.width:
        return False
    return len(console.render_lines(rows, pad=False)) <= console.height


def _looks(meters: Sequence[WatchedMeter], interval_s: float, seconds: float | None) -> Iterator[list[Look]]:
    """What all of them say, every ``interval_s``, for ``seconds`` or for ever."""
    begun = time.monotonic()
    shown = 0
    while True:
        looks = [meter.look() for meter in meters]
        now = time.monotonic()
        over = seconds is not None and now - begun >= seconds
        if now - begun >= shown * interval_s or over:
            shown = int((now - begun) / interval_s) + 1
            yield looks
        if over:
            return
        next_at = begun + shown * interval_s
        ends_at = next_at if seconds is None else min(next_at, begun + seconds)
        time.sleep(max(0.0, min(LOOK_S, ends_at - now)))


def _json(looks: Sequence[Look]) -> str:
    return json.dumps({"meters": [look.to_json() for look in looks]})


def _status(looks: Sequence[Look]) -> int:
    """Nothing seen is no success."""
    return 0 if looks and not any(isinstance(look.found, MeterError) for look in looks) else 1
