"""``wattline outlet``: try an outlet out before it sells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from wattline.cli.command import interruptible
from wattline.cli.meter import quantities
from wattline.cli.meter_config import outlets_in
from wattline.cli.outlet_guard import check_not_beside_the_plugin, own_guard, relieve_left_over
from wattline.cli.outlet_trial import Trial, find, put_back, try_out
from wattline.core.errors import WattlineError
from wattline.device.meters.reading import Reading
from wattline.device.relays.relay import RelayError

outlet_app = typer.Typer(name="outlet", help="The outlets of a socket.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class _Result:
    outlet_id: str
    trial: Trial | None
    problem: str

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"outlet_id": self.outlet_id, "ok": not self.problem, "problem": self.problem}
        return row if self.trial is None else row | self.trial.to_json()


@outlet_app.callback()
def _group() -> None:
    """The outlets of a socket."""


@outlet_app.command("test")
def try_outlets(
    config: Annotated[Path, typer.Option("--config", help="The socket.toml.")],
    outlet: Annotated[str | None, typer.Option("--outlet", help="This outlet only; else one after the other.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=10, help="How long the relay is closed.")] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on stdout; all else on stderr.")
    ] = False,
) -> None:
    """Close the relay of each outlet for a moment: WHATEVER IS PLUGGED IN GETS POWER.

    Shows what relay and meter say before, meanwhile and after; the relay opens again whatever happens.

    The plugin must not run.
    """
    outlets = outlets_in(config, outlet)
    results: list[_Result] = []

    def tell(text: str) -> None:
        typer.echo(text, err=as_json)

    with interruptible():
        check_not_beside_the_plugin(config, outlets)
        relieve_left_over(config, [settings.outlet_id for settings in outlets], tell)
        try:
            for settings in outlets:
                tell(f"{settings.outlet_id}: closing its relay for {seconds:g} s")
                trial, stuck = None, False
                try:
                    found = find(settings)
                    with own_guard(settings, config) as guard:
                        trial = try_out(settings, guard, seconds)
                    problem = trial.problem
                    # Its guard has ended: nobody opens the relay the wrong way round again.
                    if trial.flows_while_open and found.contradicts and put_back(settings):
                        problem = _wrong_way_round(trial)
                except WattlineError as error:
                    problem = f"{error.code}: {error.message}"
                    # While one relay does not obey, no other is touched; this may have been a Ctrl-C, too.
                    stuck = isinstance(error, RelayError)
                results.append(_Result(settings.outlet_id, trial, problem))
                if trial is not None:
                    tell(_told(settings.outlet_id, trial))
                tell(f"{settings.outlet_id}: {problem or _verdict(trial)}")
                if stuck:
                    break
        except KeyboardInterrupt:
            # By now the guard is told to open the relay, and has done so or goes on trying.
            tell("interrupted: the relay is open again")
            results.append(_Result(settings.outlet_id, None, "interrupted"))
    ok = not any(result.problem for result in results)
    if as_json:
        typer.echo(json.dumps({"ok": ok, "outlets": [result.to_json() for result in results]}))
    raise typer.Exit(0 if ok else 1)


def _told(outlet_id: str, trial: Trial) -> str:
    def line(when: str, closed: bool, reading: Reading) -> str:
        volts, amperes, watts, _ = quantities(reading)
        return f"{outlet_id}: {when:<6} relay {'closed' if closed else 'open':<6}  {volts}  {amperes}  {watts}"

    lines = [
        line("before", trial.relay_before, trial.before),
        line("closed", trial.relay_meanwhile, trial.meanwhile),
        line("after", trial.relay_after, trial.after),
    ]
    return "\n".join(lines)


def _verdict(trial: Trial | None) -> str:
    if trial is not None and trial.without_load:
        return (
            "its relay switched, but no power was seen: plug something in and try again; if something is plugged in,"
            " the relay or the meter is another outlet's (bit, line or address)"
        )
    return "works"


def _wrong_way_round(trial: Trial) -> str:
    return (
        f"{trial.before.power_mw / 1000:.0f} W flowed when the relay was to be open, and none before:"
        f" active_low = {str(trial.active_low).lower()} is wrong. The pin is back as it was found, and no power flows"
    )
