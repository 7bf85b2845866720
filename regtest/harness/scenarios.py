"""What is recorded: everything that wattline asks of a node, the good answers and the bad ones, and what its plugin
hears.

Each scenario is played on real nodes by :mod:`harness.recorder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.onchain_scenario import emergency, onchain
from harness.recorder import Recorder
from wattline.core.errors import WattlineError
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import Route
from wattline.core.lightning.onion import payment_hash_of
from wattline.core.record import format_record

SESSION = "0123456789ABCDEFGHJKMNPQRS"
FINAL_CLTV = 40
NOBODY = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


def preimage(number: int) -> str:
    """A preimage that a replay chooses again."""
    return f"{number:02x}" * 32


def pay(wallet: CoreLightning, route: Route, number: int, wait_s: float = 30) -> str:
    """One payment with the preimage of that number; its hash. Failures are recorded, not raised."""
    payment_hash = payment_hash_of(preimage(number))
    record = format_record(SESSION, number)
    wallet.send(route, payment_hash, preimage(number), record, record)
    wallet.wait(payment_hash, wait_s)
    return payment_hash


def quietly(call: Callable[[], Any]) -> None:
    """A call whose refusal is what shall be recorded."""
    try:
        call()
    except WattlineError:
        return


def alone(recorder: Recorder) -> None:
    """A node without channels: what it knows, signs, and refuses."""
    recorder.node("socket", autoclean_paidinvoices_age=86_400)
    socket = recorder.wallet("socket")
    heard = recorder.heard("socket", "getmanifest", "init")
    assert [message["method"] for message in heard] == ["getmanifest", "init"]
    socket.info()
    socket.channels()
    socket.autoclean_paid_age_s()
    signature = socket.sign("wattline:offer:1:" + "ab" * 32)
    node_id = recorder.stage.node("socket").node_id
    socket.verify("wattline:offer:1:" + "ab" * 32, signature, node_id)
    socket.verify("wattline:offer:1:" + "ac" * 32, signature, node_id)
    socket.verify("wattline:offer:1:" + "ab" * 32, signature, NOBODY)
    socket.verify("hello", "not zbase32!", node_id)
    socket.verify("hello", signature[:-4], node_id)
    recorder.call("socket", "checkmessage", {"message": "hello", "zbase": signature, "pubkey": "02" + "00" * 32})
    recorder.call("socket", "checkmessage", {"message": "hello", "zbase": signature})
    quietly(lambda: socket.find_route(NOBODY, 1_000, 10, FINAL_CLTV))
    socket.paid_since(0, 10)
    recorder.call("socket", "waitanyinvoice", {"lastpay_index": 0, "timeout": 1})
    quietly(lambda: socket.wait("cd" * 32, 1))
    socket.sent("cd" * 32)
    recorder.call("socket", "listsendpays", {"index": "created", "start": 1, "limit": 500})
    recorder.call("socket", "listdatastore", {"key": ["wattline", "receipts"]})
    for number, mode in ((7, "create-or-replace"), (8, "create-or-replace"), (9, "must-create")):
        note = {"key": ["wattline", "receipts"], "string": str(number), "mode": mode}
        recorder.call("socket", "datastore", note)
    recorder.call("socket", "listdatastore", {"key": ["wattline", "receipts"]})
    recorder.call("socket", "listdatastore", {"key": ["wattline"]})
    recorder.call("socket", "invoice", {"amount_msat": 2_000, "label": "coffee", "description": "a cup of coffee"})
    recorder.call("socket", "invoice", {"amount_msat": 2_000, "label": "coffee", "description": "another"})
    recorder.heard("socket", "invoice_creation")
    recorder.call("socket", "listinvoices", {"label": "coffee"})
    recorder.call("socket", "listinvoices", ["coffee"])
    recorder.call("socket", "listinvoices")
    recorder.call("socket", "listinvoices", {"label": "tea"})
    recorder.call("socket", "listinvoices", {"index": "created", "start": 1, "limit": 5})
    socket.paid_since(0, 10)
    recorder.call("socket", "delinvoice", {"label": "coffee", "status": "paid"})
    recorder.call("socket", "delinvoice", {"label": "coffee", "status": "unpaid"})
    recorder.call("socket", "delinvoice", {"label": "coffee", "status": "unpaid"})
    recorder.call("socket", "no-such-method", {"a": 1})
    recorder.call("socket", "signmessage", {})
    recorder.call("socket", "signmessage", {"message": "x", "bread": 1})
    recorder.call("socket", "listinvoices", {"index": "sideways", "start": 1})
    recorder.call("socket", "waitsendpay", {"payment_hash": "toast"})
    recorder.call("socket", "xkeysend", {"destination": NOBODY, "amount_msat": 1_000, "retry_for": 1})
    recorder.call("socket", "listpeers", {"id": NOBODY})
    recorder.call("socket", "listchannels", ["103x1x0"])
    recorder.call("socket", "newaddr", {"addresstype": "bech32"})
    recorder.call("socket", "listfunds")
    recorder.call("socket", "connect", {"id": NOBODY, "host": "127.0.0.1", "port": 1})
    recorder.do("mine", blocks=1)
    recorder.heard("socket", "block_added")
    recorder.call("socket", "getinfo")


def plugins(recorder: Recorder) -> None:
    """The life of a plugin: loaded, asked, stopped, started with options, refused, killed."""
    recorder.node("socket", probe_number=8)
    probe = str(recorder.stage.probe("socket"))
    recorder.heard("socket", "getmanifest", "init")
    recorder.call("socket", "probe-echo", {"text": "toast", "number": 1})
    recorder.call("socket", "probe-echo", ["toast", 1])
    recorder.heard("socket", "probe-echo", "probe-echo")
    recorder.call("socket", "probe-refuse")
    recorder.call("socket", "probe-log", {"level": "info", "message": "it is warm"})
    recorder.call("socket", "help", {"command": "probe-echo"})
    recorder.call("socket", "help", {"command": "no-such-command"})
    hanging = recorder.begin("socket", "probe-hang")
    recorder.heard("socket", "probe-hang")
    recorder.call("socket", "plugin", {"subcommand": "stop", "plugin": probe})
    recorder.end(hanging)
    recorder.heard("socket", "shutdown")
    recorder.call("socket", "probe-echo", {})
    recorder.call("socket", "plugin", {"subcommand": "stop", "plugin": probe})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe, "probe-number": "9", "probe-flag": True})
    recorder.heard("socket", "getmanifest", "init")
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe})
    recorder.do("restart", name="socket")
    recorder.heard("socket", "getmanifest", "init")
    recorder.call("socket", "plugin", {"subcommand": "stop", "plugin": "probe-socket"})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe, "probe-disable": "no bread today"})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe, "probe-bread": "white"})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe, "probe-number": "many"})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": "/bin/false"})
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": "/no/such/plugin"})
    recorder.call("socket", "plugin", {"subcommand": "toast"})


def direct(recorder: Recorder) -> None:
    """Payments over one channel: paid once however often they are sent, refused, and what both ends write down."""
    recorder.node("cable")
    recorder.node("socket")
    recorder.channel("cable", "socket")
    recorder.heard("socket", "connect", "channel_state_changed")
    cable, socket = recorder.wallet("cable"), recorder.wallet("socket")
    socket_id = recorder.stage.node("socket").node_id
    cable_id = recorder.stage.node("cable").node_id
    for wallet in (cable, socket):
        wallet.info()
        wallet.channels()
    recorder.call("cable", "listpeers", {"id": socket_id})
    scid = cable.channels()[0].short_channel_id
    recorder.call("cable", "listchannels", [scid])
    recorder.call("cable", "listfunds")
    quietly(lambda: cable.find_route(socket_id, 990_000_000, 0, FINAL_CLTV))
    quietly(lambda: cable.find_route(NOBODY, 1_000, 0, FINAL_CLTV))
    waiting = recorder.begin("socket", "waitanyinvoice", {"lastpay_index": 0, "timeout": 30})
    route = cable.find_route(socket_id, 10_000, 0, FINAL_CLTV)
    paid = pay(cable, route, 1)
    recorder.end(waiting)
    recorder.heard("socket", "htlc_accepted", "invoice_creation", "invoice_payment")
    recorder.heard("cable", "sendpay_success")
    cable.sent(paid)
    pay(cable, route, 1)
    recorder.call("cable", "listsendpays")
    recorder.call("cable", "listsendpays", {"status": "complete"})
    socket.paid_since(0, 10)
    recorder.do("quiet")
    for wallet in (cable, socket):
        wallet.channels()
    # A refund, the other way round.
    pay(socket, socket.find_route(cable_id, 5_000, 0, FINAL_CLTV), 2)
    recorder.heard("cable", "htlc_accepted", "invoice_creation", "invoice_payment")
    # Refused by the hook, by lightningd itself, resolved by the hook.
    unasked = {"result": "continue", "payload": "020227100401ff0820" + "99" * 32}
    refusals: list[Any] = [
        {"result": "fail", "failure_message": "2002"},
        {"result": "fail", "failure_message": "400f" + "00" * 12},
        {"result": "resolve", "payment_key": preimage(3)},
        unasked,
    ]
    recorder.call("socket", "probe-answers", {"answers": refusals})
    for number in (6, 4, 3, 5):
        cable.sent(pay(cable, cable.find_route(socket_id, 10_000, 0, FINAL_CLTV), number))
        recorder.heard("socket", "htlc_accepted")
    recorder.heard("cable", *["sendpay_failure"] * 3)
    recorder.call("cable", "listsendpays", {"status": "failed"})
    # What was failed is not tried again under its hash.
    quietly(lambda: pay(cable, cable.find_route(socket_id, 10_000, 0, FINAL_CLTV), 4))
    # A wrong preimage is no keysend.
    strange = payment_hash_of(preimage(0xEE))
    cable.send(cable.find_route(socket_id, 10_000, 0, FINAL_CLTV), strange, preimage(0xEF), "toast", "a label")
    cable.wait(strange, 30)
    # The plugin dies in the hook: lightningd goes on as if it had said continue.
    recorder.call("socket", "probe-answers", {"answers": ["die"]})
    cable.sent(pay(cable, cable.find_route(socket_id, 10_001, 0, FINAL_CLTV), 8))
    recorder.do("plugin_gone", name="socket")
    probe = str(recorder.stage.probe("socket"))
    recorder.call("socket", "plugin", {"subcommand": "start", "plugin": probe})
    recorder.do("quiet")
    # By lightningd's own commands, as a stranger pays.
    tlvs = {"133773311": b"I like toast".hex(), "133773313": "ff00"}
    recorder.call(
        "cable", "xkeysend", {"destination": socket_id, "amount_msat": 1_000, "extratlvs": tlvs, "retry_for": 5}
    )
    recorder.call("cable", "xkeysend", {"destination": socket_id, "amount_msat": 1_002, "retry_for": 5})
    recorder.call(
        "socket", "probe-answers", {"answers": [{"result": "fail", "failure_message": "400f" + "00" * 12}] * 4}
    )
    recorder.call("cable", "xkeysend", {"destination": socket_id, "amount_msat": 1_000, "retry_for": 5})
    invoice = recorder.call("socket", "invoice", {"amount_msat": 2_000, "label": "coffee", "description": "a cup"})
    recorder.call("socket", "plugin", {"subcommand": "stop", "plugin": probe})
    recorder.call("cable", "xpay", {"invstring": invoice["bolt11"]})
    recorder.do("quiet")
    socket.paid_since(0, 100)
    recorder.call("socket", "listinvoices")
    recorder.call("socket", "waitanyinvoice", {"lastpay_index": 1, "timeout": 1})
    rows = socket.paid_since(0, 100)
    recorder.call("socket", "delinvoice", {"label": rows[0].label, "status": "paid"})
    socket.paid_since(0, 2)
    recorder.do("restart", name="socket")
    recorder.do("reconnected")
    socket.paid_since(0, 100)
    cable.sent(paid)
    pay(cable, route, 1)
    recorder.do("mine", blocks=1)
    pay(cable, cable.find_route(socket_id, 10_000, 0, FINAL_CLTV), 9)


def held(recorder: Recorder) -> None:
    """Payments that hang: seen from both ends, over crashes of either."""
    recorder.node("cable")
    recorder.node("socket")
    recorder.channel("cable", "socket")
    cable, socket = recorder.wallet("cable"), recorder.wallet("socket")
    socket_id = recorder.stage.node("socket").node_id
    route = cable.find_route(socket_id, 10_000, 0, FINAL_CLTV)
    recorder.call("socket", "probe-answers", {"answers": ["hold"]})
    first = payment_hash_of(preimage(1))
    cable.send(route, first, preimage(1), "toast", "a label")
    recorder.do("waits_in_hook", name="socket")
    cable.wait(first, 1)
    cable.sent(first)
    cable.send(route, first, preimage(1), "toast", "a label")
    cable.channels()
    socket.channels()
    waiting = recorder.begin("cable", "waitsendpay", {"payment_hash": first, "timeout": 60, "partid": 0, "groupid": 1})
    recorder.call("socket", "probe-release", {"answer": "continue"})
    recorder.end(waiting)
    recorder.do("quiet")
    # The payee dies with a payment in its hook; after its start the hook is asked again.
    recorder.call("socket", "probe-answers", {"answers": ["hold"]})
    second = payment_hash_of(preimage(2))
    cable.send(route, second, preimage(2), "toast", "a label")
    recorder.do("waits_in_hook", name="socket")
    recorder.heard("socket", "htlc_accepted", "htlc_accepted")
    waiting = recorder.begin("cable", "waitsendpay", {"payment_hash": second, "timeout": 60, "partid": 0, "groupid": 1})
    recorder.do("kill", name="socket")
    recorder.heard("cable", "disconnect")
    cable.sent(second)
    recorder.do("start", name="socket")
    recorder.do("reconnected")
    recorder.heard("socket", "getmanifest", "init", "htlc_accepted")
    recorder.end(waiting)
    socket.paid_since(0, 10)
    recorder.do("quiet")
    # The payer dies with a payment under way.
    recorder.call("socket", "probe-answers", {"answers": ["hold"]})
    third = payment_hash_of(preimage(3))
    cable.send(route, third, preimage(3), "toast", "a label")
    recorder.do("waits_in_hook", name="socket")
    recorder.do("kill", name="cable")
    recorder.call("socket", "probe-release", {"answer": "continue"})
    recorder.do("start", name="cable")
    recorder.do("reconnected")
    cable.wait(third, 30)
    cable.sent(third)
    cable.send(route, third, preimage(3), "toast", "a label")
    recorder.do("quiet")
    cable.channels()
    # Nobody there.
    recorder.do("kill", name="socket")
    recorder.heard("cable", "disconnect")
    cable.channels()
    quietly(lambda: cable.find_route(socket_id, 10_000, 0, FINAL_CLTV))
    quietly(lambda: cable.send(route, payment_hash_of(preimage(4)), preimage(4), "toast", "a label"))
    cable.sent(payment_hash_of(preimage(4)))


def line(recorder: Recorder) -> None:
    """Payments over two channels: fees, and failures on the way and at the end."""
    for name in ("cable", "hub", "socket"):
        recorder.node(name)
    recorder.channel("cable", "hub")
    recorder.channel("hub", "socket")
    recorder.do("routed", source="cable", destination="socket")
    cable, socket = recorder.wallet("cable"), recorder.wallet("socket")
    socket_id = recorder.stage.node("socket").node_id
    route = cable.find_route(socket_id, 10_000, 1_000, FINAL_CLTV)
    quietly(lambda: cable.find_route(socket_id, 10_000, 0, FINAL_CLTV))
    quietly(lambda: cable.find_route(socket_id, 800_000_000, 10_000_000, FINAL_CLTV))
    cable.sent(pay(cable, route, 1))
    recorder.heard("hub", "htlc_accepted")
    recorder.heard("socket", "htlc_accepted", "invoice_creation", "invoice_payment")
    recorder.call("hub", "listforwards")
    # Refused at the end, and on the way.
    recorder.call("socket", "probe-answers", {"answers": [{"result": "fail", "failure_message": "400f" + "00" * 12}]})
    pay(cable, route, 2)
    recorder.call("hub", "probe-answers", {"answers": [{"result": "fail", "failure_message": "2002"}]})
    pay(cable, route, 3)
    pay(cable, cheapened(route), 4)
    recorder.do("quiet")
    recorder.do("kill", name="socket")
    recorder.heard("hub", "disconnect")
    pay(cable, route, 5)
    recorder.call("hub", "listforwards")
    cable.channels()
    del socket


def other(recorder: Recorder) -> None:
    """What wattline itself does not ask, but tests and people do: deprecated commands, and the end."""
    recorder.node("cable", allow_deprecated_apis="true")
    recorder.node("socket", allow_deprecated_apis="true")
    recorder.channel("cable", "socket")
    socket_id = recorder.stage.node("socket").node_id
    recorder.call("cable", "connect", {"id": socket_id})
    recorder.call("cable", "notifications", {"enable": True})
    recorder.call("cable", "keysend", {"destination": socket_id, "amount_msat": 10_000})
    recorder.heard("socket", "htlc_accepted", "invoice_creation", "invoice_payment")
    tlvs = {"133773311": b"I like toast".hex()}
    recorder.call(
        "cable", "keysend", {"destination": socket_id, "amount_msat": 1_001, "label": "a label", "extratlvs": tlvs}
    )
    recorder.heard("socket", "htlc_accepted", "invoice_creation", "invoice_payment")
    recorder.do("quiet")
    recorder.call("cable", "listsendpays")
    recorder.call("socket", "listinvoices")
    recorder.call("cable", "keysend", {"destination": socket_id})
    recorder.call("cable", "keysend", {"amount_msat": 1_000})
    recorder.call("cable", "fundchannel", {"id": NOBODY, "amount": 100_000})
    recorder.call("cable", "fundchannel", {"id": socket_id})
    recorder.call("socket", "plugin", {"subcommand": "list"})
    recorder.call("socket", "notifications")
    recorder.call("socket", "stop")


def cheapened(route: Route) -> Route:
    """The same way, with one msat for the node in the middle."""
    from dataclasses import replace

    first, second = route.hops
    less = first.amount_in_msat - second.amount_out_msat - 1
    first = replace(first, amount_in_msat=first.amount_in_msat - less, amount_out_msat=first.amount_out_msat - less)
    second = replace(second, amount_in_msat=second.amount_in_msat - less)
    return Route(route.destination, route.amount_msat, (first, second))


SCENARIOS: dict[str, Callable[[Recorder], None]] = {
    "alone": alone,
    "plugins": plugins,
    "direct": direct,
    "held": held,
    "line": line,
    "other": other,
    "onchain": onchain,
    "emergency": emergency,
}
