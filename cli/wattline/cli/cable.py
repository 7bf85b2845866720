"""``wattline cable``: buy electricity, and see beforehand whether that would work."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from wattline.cable.closing import StopWish, Summary
from wattline.cable.opening import Equipment, MeterOpener
from wattline.cable.pay.settlement import forgive as forgive_socket
from wattline.cable.service import CableService, make_aftermath
from wattline.cable.settings import CableConfig
from wattline.cli.cable_check import Finding, Severity
from wattline.cli.cable_check import check as run_check
from wattline.cli.cable_view import LiveView, LogView, ending
from wattline.cli.chart import Course
from wattline.cli.command import LONGEST_S, handled, tell_error
from wattline.cli.meter_config import cable_in
from wattline.core.clock import WallWatch, since_boot_ns
from wattline.core.errors import StopError, UsageError
from wattline.core.ledger.database import LedgerError
from wattline.core.ledger.ledger import Ledger, open_ledger
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.notes import CoreLightningNotes
from wattline.core.lightning.rpc import NodeRpc
from wattline.core.ownership import holder_of, open_own
from wattline.core.payer import Payer
from wattline.device.meters.opening import open_meter
from wattline.device.meters.reading import Meter

cable_app = typer.Typer(name="cable", help="The buyer: a cable with its own meter and wallet.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The cable's configuration file (TOML).")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout; all else on stderr.")]


@cable_app.command()
def run(
    context: typer.Context,
    config: ConfigOption,
    seconds: Annotated[
        float | None,
        typer.Option("--for", min=0.1, max=LONGEST_S, help="Stop after so many seconds; else when told to."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Buy electricity until stopped (Ctrl-C), or until something is wrong."""
    cable = cable_in(config)
    _log_to_stderr(bool(context.obj and context.obj["verbose"]))
    wish = StopWish(None if seconds is None else round(seconds * 1000))
    console = Console(stderr=as_json)
    with _alone(cable.storage_path), open_ledger(cable.storage_path) as ledger, _signals(wish):
        view = LiveView(console) if console.is_terminal else LogView()
        with view:
            course = Course(view)
            summary = CableService(cable.settings, _equipment(cable, ledger), course, wish).run()
    _tell(replace(summary, course=course.points), as_json)
    if summary.ended_well and summary.objections:
        raise StopError("socket_untrue", summary.objections[0])
    raise typer.Exit(0 if summary.is_good else 1)


@cable_app.command()
def check(context: typer.Context, config: ConfigOption, as_json: JsonOption = False) -> None:
    """Try everything that a session needs, without paying: node, channel, fees, socket, price, meter."""
    cable = cable_in(config)
    _log_to_stderr(bool(context.obj and context.obj["verbose"]))
    node = CoreLightning(cable.rpc_path)
    findings: list[Finding] = []
    funds = CoreLightningFunds(NodeRpc(cable.rpc_path))

    def tell(finding: Finding) -> None:
        typer.echo(str(finding), err=as_json)
        findings.append(finding)

    with ExitStack() as stack:
        memory = None
        if cable.storage_path.exists():
            ledger = stack.enter_context(open_ledger(cable.storage_path))
            memory = ledger.cable_aggregates
            _look_back(cable, ledger, tell)
        for finding in run_check(cable.settings, node, _meter_opener(cable), funds, memory):
            tell(finding)
    bad = any(finding.severity is Severity.PROBLEM for finding in findings)
    if as_json:
        rows = [{"verdict": f.severity, "subject": f.subject, "text": f.text} for f in findings]
        typer.echo(json.dumps({"ready": not bad, "findings": rows}))
    raise typer.Exit(1 if bad else 0)


def _look_back(cable: CableConfig, ledger: Ledger, tell: Callable[[Finding], None]) -> None:
    """What became of earlier on-chain payments; a cable that is running just now looks itself."""

    def tell_line(text: str) -> None:
        severity = Severity.WARNING if text.startswith("warning: ") else Severity.OK
        tell(Finding(severity, "history", text.removeprefix("warning: ")))

    with suppress(UsageError), _alone(cable.storage_path):
        unfinished = ledger.cable_sessions.unfinished()
        aftermath = make_aftermath(cable.settings, _equipment(cable, ledger), tell_line)
        aftermath.look_at_all(unfinished.session_id if unfinished is not None else None)


@cable_app.command()
def forgive(
    config: ConfigOption,
    node_id: Annotated[str, typer.Argument(help="The socket's node id, as the error names it.")],
) -> None:
    """Buy again from a socket that had more mined on-chain than was agreed, or still owes what it took too much."""
    cable = cable_in(config)
    with _alone(cable.storage_path), open_ledger(cable.storage_path) as ledger:
        count = forgive_socket(ledger.cable_aggregates, node_id)
    if not count:
        raise UsageError("not_refused", f"node {node_id} is not refused by this cable")
    typer.echo(f"node {node_id} may sell again; {count} session(s) forgiven")


@cable_app.command()
def resolve(
    config: ConfigOption,
    payment_hash: Annotated[str | None, typer.Argument(help="Of the payment; without it, those in doubt.")] = None,
    outcome: Annotated[str | None, typer.Argument(help="paid or unpaid.")] = None,
) -> None:
    """Say what became of a payment in doubt of which the own node knows nothing (any more), or list those in doubt.

    Until then it counts as spent, and takes from what later sessions may prepay."""
    cable = cable_in(config)
    with _alone(cable.storage_path), open_ledger(cable.storage_path) as ledger:
        if payment_hash is None:
            for intent in ledger.outgoing.pending():
                typer.echo(f"{intent.payment_hash} {intent.amount_msat} msat, session {intent.session_id}")
            return
        if outcome not in ("paid", "unpaid"):
            raise UsageError("not_resolvable", "the outcome is paid or unpaid")
        payer = Payer(CoreLightning(cable.rpc_path), ledger.outgoing)
        found = payer.decide(payment_hash, is_paid=outcome == "paid", why="said by wattline cable resolve")
    typer.echo(f"payment {payment_hash}: {found.status}")


def _equipment(cable: CableConfig, ledger: Ledger) -> Equipment:
    node = CoreLightning(cable.rpc_path)
    rpc = NodeRpc(cable.rpc_path)
    latest = ledger.cable_sessions.latest(1)
    return Equipment(
        node=node,
        payer=Payer(node, ledger.outgoing),
        ledger=ledger,
        funds=CoreLightningFunds(rpc),
        open_meter=_meter_opener(cable),
        clock_ms=lambda: since_boot_ns() // 1_000_000,
        sent_since=CoreLightningNotes(rpc).sent_since,
        wall=WallWatch(known=latest[0].saved if latest else None),
    )


def _meter_opener(cable: CableConfig) -> MeterOpener:
    def opener(max_power_mw: int | None) -> Meter:
        return open_meter(cable.settings.meter, max_power_mw)

    return opener


def _tell(summary: Summary, as_json: bool) -> None:
    lines = ending(summary).splitlines()
    if not summary.ended_well:
        tell_error(lines.pop(0))
    if lines:
        typer.echo("\n".join(lines), err=as_json)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))


@contextmanager
def _alone(storage_path: Path) -> Iterator[None]:
    """One cable at a time pays from a ledger. Raises UsageError when another one does, LedgerError when there can be no
    ledger."""
    path = storage_path.with_name(storage_path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_own(path)
    except OSError as error:
        raise LedgerError("ledger_not_writable", f"{path}: cannot be opened for writing: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            whose = holder_of(lock) or "its process is not seen from here"
            raise UsageError(
                "cable_running", f"{storage_path}: another cable is running with this ledger ({whose})"
            ) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _signals(wish: StopWish) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the session in good order; a second SIGINT or SIGTERM ends the process at once. A
    closed terminal says SIGHUP more than once, and systemd may say it beside SIGTERM: it does not count."""
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        del frame
        if number != signal.SIGHUP:
            if told:
                raise KeyboardInterrupt
            told = True
        wish.want("operator", f"stopped by {signal.Signals(number).name}")

    with handled(stop, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
