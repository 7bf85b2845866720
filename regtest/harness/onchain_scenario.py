"""What is recorded of a node's on-chain wallet: everything that the aggregate asks of it, on both sides, with the
refusals; and how it follows the chain."""

from __future__ import annotations

from typing import Any

from harness.recorder import Recorder

Json = dict[str, Any]
VALUE_SAT = 100_000
FEE_SAT = 154
UNKNOWN = "ab" * 32


def outpoint(output: Json) -> str:
    return f"{output['txid']}:{output['output']}"


def p2tr(recorder: Recorder, node: str) -> str:
    return str(recorder.call(node, "newaddr", {"addresstype": "p2tr"})["p2tr"])


def base(recorder: Recorder, utxos: list[str], **changed: Any) -> Json:
    """The cable's inputs as wattline reserves them, unless ``changed``."""
    params = {"satoshi": "0sat", "feerate": "253perkw", "startweight": 0, "utxos": utxos, "reserve": 72, "locktime": 0}
    return dict(recorder.call("cable", "utxopsbt", {**params, **changed}))


def version(recorder: Recorder, psbt: str, outputs: list[tuple[str, int]]) -> str:
    """A signed version with these outputs."""
    for address, value_sat in outputs:
        params = {"satoshi": f"{value_sat}sat", "initialpsbt": psbt, "destination": address}
        psbt = recorder.call("cable", "addpsbtoutput", params)["psbt"]
    signed = str(recorder.call("cable", "signpsbt", {"psbt": psbt})["signed_psbt"])
    recorder.look("transaction", psbt=signed)
    return signed


def look_at(recorder: Recorder, *nodes: str) -> None:
    """All that the wallets know."""
    for node in nodes:
        recorder.call(node, "listfunds")
        recorder.call(node, "listfunds", {"spent": True})
        recorder.call(node, "listtransactions")


def onchain(recorder: Recorder) -> None:
    """A transaction that grows: inputs reserved, versions signed, one broadcast, its child, and what blocks do."""
    recorder.node("cable")
    recorder.node("socket")
    recorder.call("socket", "newaddr")
    recorder.call("socket", "newaddr", {"addresstype": "bech32"})
    recorder.call("socket", "newaddr", {"addresstype": "all"})
    recorder.call("socket", "newaddr", {"addresstype": "bread"})
    recorder.call("socket", "plugin", {"subcommand": "list"})
    for name in ("bitcoin-datadir", "bitcoin-rpcport", "bitcoin-rpcuser"):
        recorder.call("socket", "listconfigs", {"config": name})
    for style in ("perkw", "perkb", "perbread"):
        recorder.call("cable", "feerates", {"style": style})
    recorder.do("fund", name="cable", value_sat=VALUE_SAT, outputs=3)
    outputs = recorder.call("cable", "listfunds")["outputs"]
    first, second, third = (outpoint(output) for output in outputs)
    address, change = p2tr(recorder, "socket"), p2tr(recorder, "cable")

    inputs = base(recorder, [first])["psbt"]
    base(recorder, [first])
    base(recorder, [f"{UNKNOWN}:0"])
    base(recorder, ["toast"])
    base(recorder, ["toast:0"])
    base(recorder, [f"{UNKNOWN}:bread"])
    base(recorder, [])
    base(recorder, [second], satoshi=f"{VALUE_SAT}sat")
    base(recorder, [second], feerate="toast")
    both = base(recorder, [second, third], reserve=5)["psbt"]
    base(recorder, [second], reserve=1, reservedok=True)
    recorder.call("cable", "listfunds")

    for value_sat in (545, 546):
        params = {"satoshi": f"{value_sat}sat", "initialpsbt": inputs, "destination": address}
        recorder.call("cable", "addpsbtoutput", params)
    recorder.call("cable", "addpsbtoutput", {"satoshi": "1000sat", "initialpsbt": inputs, "destination": "toast"})
    mainnet = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    recorder.call("cable", "addpsbtoutput", {"satoshi": "1000sat", "initialpsbt": inputs, "destination": mainnet})
    recorder.call("cable", "addpsbtoutput", {"satoshi": "1000sat", "initialpsbt": "toast", "destination": address})
    recorder.call("cable", "signpsbt", {"psbt": "toast"})
    older = version(recorder, inputs, [(address, 1_000), (change, VALUE_SAT - 1_000 - FEE_SAT)])
    newer = version(recorder, inputs, [(address, 1_500), (change, VALUE_SAT - 1_500 - FEE_SAT)])
    free = version(recorder, inputs, [(address, 2_000), (change, VALUE_SAT - 2_000)])
    dear = version(recorder, inputs, [(address, VALUE_SAT), (change, VALUE_SAT)])
    version(recorder, both, [(address, 150_000)])

    recorder.call("cable", "reserveinputs", {"psbt": inputs})
    recorder.call("cable", "reserveinputs", {"psbt": inputs, "exclusive": False, "reserve": 10})
    recorder.call("cable", "unreserveinputs", {"psbt": inputs, "reserve": 10})
    recorder.call("cable", "unreserveinputs", {"psbt": inputs, "reserve": 1_000})
    recorder.call("cable", "unreserveinputs", {"psbt": inputs, "reserve": 1_000})
    recorder.call("cable", "signpsbt", {"psbt": inputs})
    recorder.call("socket", "signpsbt", {"psbt": inputs})
    recorder.call("socket", "reserveinputs", {"psbt": inputs})
    recorder.call("cable", "reserveinputs", {"psbt": inputs, "exclusive": True, "reserve": 3})
    recorder.call("cable", "unreserveinputs", {"psbt": both})

    # An input that is reserved for two blocks more is free after them.
    base(recorder, [third], reserve=2)
    recorder.call("cable", "listfunds")
    recorder.do("mine", blocks=1)
    base(recorder, [third])
    recorder.do("mine", blocks=1)
    recorder.call("cable", "listfunds")
    recorder.do("restart", name="cable")
    recorder.call("cable", "reserveinputs", {"psbt": inputs, "exclusive": False, "reserve": 72})
    recorder.call("cable", "listfunds")

    for refused in ("toast", inputs, free, dear):
        recorder.call("socket", "sendpsbt", {"psbt": refused})
    recorder.call("socket", "sendpsbt", {"psbt": newer})
    recorder.call("socket", "sendpsbt", {"psbt": newer})
    recorder.call("socket", "sendpsbt", {"psbt": older})
    look_at(recorder, "socket", "cable")
    (unconfirmed,) = recorder.call("socket", "listfunds")["outputs"]
    described = {"outpoint": outpoint(unconfirmed), "description": "toast"}
    recorder.call("socket", "bkpr-listincome")
    recorder.call("socket", "bkpr-editdescriptionbyoutpoint", described)
    parameters = {"destination": p2tr(recorder, "socket"), "satoshi": "all", "feerate": "1000perkw", "minconf": 0}
    recorder.call("socket", "withdraw", {**parameters, "utxos": [f"{UNKNOWN}:0"]})
    child = recorder.call("socket", "withdraw", {**parameters, "utxos": [outpoint(unconfirmed)]})
    recorder.look("transaction", tx=child["tx"])
    recorder.call("socket", "withdraw", {**parameters, "utxos": [outpoint(unconfirmed)]})
    # Not listtransactions: two that are in no block come in the order of their txids.
    recorder.call("socket", "listfunds")
    recorder.call("socket", "listfunds", {"spent": True})
    recorder.do("mine", blocks=1)
    look_at(recorder, "socket", "cable")
    recorder.do("reorganise", blocks=1)
    for node in ("socket", "cable"):
        recorder.call(node, "listfunds")
        recorder.call(node, "listfunds", {"spent": True})
    recorder.do("mine", blocks=1)
    look_at(recorder, "socket", "cable")
    recorder.call("socket", "sendpsbt", {"psbt": newer})
    recorder.call("socket", "sendpsbt", {"psbt": older})
    base(recorder, [first])
    recorder.call("cable", "reserveinputs", {"psbt": inputs})
    recorder.call("cable", "unreserveinputs", {"psbt": inputs})
    recorder.call("cable", "signpsbt", {"psbt": inputs})

    for node in ("socket", "cable"):
        recorder.call(node, "bkpr-listincome")
    recorder.call("socket", "bkpr-editdescriptionbyoutpoint", {**described, "description": "bread"})
    recorder.call("socket", "bkpr-editdescriptionbyoutpoint", {"outpoint": f"{UNKNOWN}:0", "description": "toast"})
    recorder.call("socket", "bkpr-editdescriptionbyoutpoint", {"outpoint": "toast", "description": "toast"})
    recorder.call("socket", "bkpr-listincome")

    destination = {"destination": p2tr(recorder, "socket")}
    recorder.call("cable", "withdraw", {**destination, "satoshi": 10 * VALUE_SAT, "feerate": "1000perkw"})
    recorder.call("cable", "withdraw", {**destination, "satoshi": 20_000, "feerate": "1000perkw", "utxos": [second]})
    look_at(recorder, "cable")
    recorder.call("cable", "bkpr-listincome")
    recorder.do("mine", blocks=1)
    look_at(recorder, "socket", "cable")


def emergency(recorder: Recorder) -> None:
    """A node with a channel keeps something back for closing it."""
    recorder.node("cable")
    recorder.node("socket")
    recorder.channel("cable", "socket")
    recorder.do("fund", name="cable", value_sat=VALUE_SAT, outputs=1)
    outputs = recorder.call("cable", "listfunds")["outputs"]
    funded = [outpoint(output) for output in outputs if output["amount_msat"] == VALUE_SAT * 1_000]
    others = [outpoint(output) for output in outputs if outpoint(output) not in funded]
    alone = base(recorder, [*funded])
    recorder.look("transaction", psbt=alone["psbt"])
    recorder.call("cable", "unreserveinputs", {"psbt": alone["psbt"]})
    rest = base(recorder, [*others])
    recorder.look("transaction", psbt=rest["psbt"])
    kept = base(recorder, [*funded])
    recorder.look("transaction", psbt=kept["psbt"])
    recorder.call("cable", "unreserveinputs", {"psbt": kept["psbt"]})
    base(recorder, [*funded], satoshi="80000sat")
    recorder.call("cable", "listfunds")
