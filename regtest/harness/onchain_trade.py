"""A trade that is paid on-chain, at a price at which a few seconds are worth a transaction; and what must hold when one
of its sessions is over and its block is mined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyln.client import RpcError

from wattline.core.aggregate import MSAT_PER_SAT, final_value_sat
from wattline.core.errors import RetryError
from wattline.core.ledger.cable import CableAggregate
from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.payment import Kind
from wattline.core.tariff import Tariff, cost_msat
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import CableProcess, Json, Scene, Trade
from wattline.regtest.settlement import Settlement, confirmed, prevouts, smallest_vsize, transaction
from wattline.regtest.waiting import wait_until

PRICE_MSAT_PER_KWH = 800_000_000
"""1300 W cost 289 sat a second, which is two seconds for the floor."""
FLOOR_SAT = 546
CONFIRMATIONS = 3
FUNDS_SAT = 200_000
TRADE = Trade(
    energy_msat_per_kwh=PRICE_MSAT_PER_KWH,
    profiles=("constant-1300", "constant-1300", "constant-1300"),
    session={
        "min_refund_msat": 1_000,
        "pause_max_s": 30,
        "cable_lost_s": 30,
        "statement_interval_ms": 300,
        "credit_cap_msat": 2_000_000,
    },
    payment={"refund_retry_s": 1, "journal_interval_s": 1},
    onchain={"confirmations": CONFIRMATIONS, "final_timeout_s": 3, "watch_interval_ms": 100},
)
LARGEST_VSIZE_MARGIN = 5
"""A transaction may be so much larger than the smallest possible of its kind, vB."""


def cable_changes(**tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cable's configuration for that price; ``tables`` on top of it."""
    changes: dict[str, dict[str, Any]] = {
        "payment": {"method": "onchain"},
        "limits": {
            "max_prepaid_msat": 1_000_000,
            "max_session_msat": 100_000_000,
            "max_day_msat": 1_000_000_000,
            "max_price_msat_per_kwh": 10**9,
        },
        "onchain": {"max_prepaid_sat": 1_000},
    }
    for table, values in tables.items():
        changes.setdefault(table, {}).update(values)
    return changes


def ledger_of(cable_config: Path) -> Path:
    return cable_config.with_name(f"{cable_config.stem}.sqlite3")


def live_session(scene: Scene, outlet_id: str = "A1", increments: int = 1) -> Json:
    """The session that the outlet serves, once so many versions are credited and energy flows."""

    def reached() -> Json | None:
        status = told(scene.status)
        outlet = next((item for item in status.get("outlets", []) if item["outlet_id"] == outlet_id), None)
        if outlet is None or outlet["session_id"] is None or outlet["relay"] != "closed":
            return None
        session = told(lambda: scene.session(outlet["session_id"]))
        return session if session.get("onchain", {}).get("increments", 0) >= increments else None

    return wait_until(f"{increments} versions at outlet {outlet_id}", reached, 40)


def told(ask: Callable[[], Json]) -> Json:
    """What the plugin answers. Raises RetryError while it is not there."""
    try:
        return ask()
    except (RpcError, OSError) as error:
        raise RetryError("plugin_away", f"no answer: {error}") from error


def session_when(
    scene: Scene, session_id: str, what: str, is_so: Callable[[Json], bool], timeout_s: float = 40
) -> Json:
    """The session as soon as it is so."""

    def look() -> Json | None:
        session = told(lambda: scene.session(session_id))
        return session if is_so(session) else None

    return wait_until(f"session {session_id} {what}", look, timeout_s)


def closed(scene: Scene, session_id: str, timeout_s: float = 40) -> Json:
    """The session, once it is closed."""
    return session_when(scene, session_id, "closed", lambda session: bool(session["state"] == "closed"), timeout_s)


def end(scene: Scene, cable: CableProcess, session_id: str) -> tuple[Settlement, Json]:
    """As by Ctrl-C at the cable, and a block; what was settled, and the cable's summary."""
    cable.interrupt()
    closed(scene, session_id)
    settlement = confirmed(scene, scene.network, session_id)
    status, summary = cable.result()
    assert status == 0, (summary, cable.log_text())
    return settlement, summary


def clean(scene: Scene) -> None:
    """What a failed test left behind does not stand in the way of the next: no cable, no live session, all loads as at
    the beginning."""
    scene.kill_cables()
    for outlet in told(scene.status)["outlets"]:
        if outlet["session_id"] is not None:
            scene.node.rpc.call("wattline-stop", {"session_id": outlet["session_id"]})
            closed(scene, outlet["session_id"])
    for circuit, profile in enumerate(scene.trade.profiles):
        scene.world.plug(circuit, profile)


def keysend_msat(scene: Scene, session_id: str) -> int:
    """What the socket's ledger has booked of payments over Lightning."""
    with open_ledger(scene.ledger_path) as ledger:
        return sum(row.amount_msat for row in ledger.payments(session_id) if row.kind is Kind.CREDIT)


def cable_row(cable_config: Path, session_id: str) -> CableAggregate:
    """What the cable's ledger says of a session's aggregate."""
    with open_ledger(ledger_of(cable_config)) as ledger:
        row = ledger.cable_aggregates.of(session_id)
    assert row is not None, "the cable has no aggregate of that session"
    return row


def check_settled(scene: Scene, session_id: str, settlement: Settlement, *, is_final: bool = True) -> Json:
    """Everything that must hold once the block is mined, and nobody has cheated: ledger, wallet and chain agree to the
    sat, by one transaction, as small as such a one can be, with one fee. ``is_final``: it pays exactly the charge; else
    the newest version was mined."""
    session = scene.session(session_id)
    chain = scene.network.chain
    assert session["state"] == "closed"
    assert settlement.agrees, (settlement, session)
    assert session["lost_msat"] == 0
    tariff = Tariff.of(energy_msat_per_kwh=session["energy_msat_per_kwh"])
    assert session["charged_msat"] == cost_msat(tariff, session["energy_uwh"], session["delivered_ms"], started=True)
    by_keysend_msat = keysend_msat(scene, session_id)
    assert session["credited_msat"] == by_keysend_msat + session["onchain_credited_msat"]
    assert session["credited_msat"] - session["charged_msat"] - session["refunded_msat"] == session["balance_msat"] >= 0
    assert session.get("max_unpaid_msat", 0) == 0, "nothing was delivered unpaid"
    newest_sat = session["onchain_credited_msat"] // MSAT_PER_SAT
    if is_final:
        due_sat = min(newest_sat, final_value_sat(session["charged_msat"], by_keysend_msat, FLOOR_SAT))
        assert settlement.value_sat == due_sat, (settlement, session)
    else:
        assert settlement.value_sat == newest_sat, (settlement, session)
    if settlement.value_sat == 0:
        return session
    tx = transaction(chain, settlement.txid)
    assert tx is not None
    spent = [output["scriptPubKey"]["type"] for output in prevouts(chain, tx)]
    paid = [output["scriptPubKey"]["type"] for output in tx["vout"]]
    assert len(paid) == 2
    smallest = smallest_vsize(spent, paid)
    assert smallest <= settlement.vsize <= smallest + LARGEST_VSIZE_MARGIN
    onchain = session["onchain"]
    told = (onchain["txid"], onchain["mined_txid"], onchain["fee_sat"], onchain["vsize"])
    assert told == (settlement.txid, settlement.txid, settlement.fee_sat, settlement.vsize)
    assert settlement.fee_sat >= settlement.vsize, "at least 1 sat/vB"
    assert onchain["exposure_sat"] == 0
    return session


def bury(scene: Scene, session_id: str) -> Json:
    """Enough blocks that the settlement counts as final; the session then."""
    scene.network.mine(CONFIRMATIONS)
    return session_when(
        scene, session_id, "final on the chain", lambda session: session["onchain"]["status"] not in ("open", "sent")
    )


def income(node: Node, txid: str) -> list[Json]:
    """What the node's bookkeeper has as income from that transaction."""
    events = node.rpc.call("bkpr-listincome")["income_events"]
    return [event for event in events if event["tag"] == "deposit" and event.get("outpoint", "").startswith(txid)]
