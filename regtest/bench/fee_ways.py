"""The three ways of paying a session's micropayments, on real nodes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from itertools import pairwise
from typing import Any, Self

from bench.fee_case import Case, Outcome, Way
from harness.by_hand import HandCable
from harness.onchain_by_hand import OnchainHandCable
from pyln.client import RpcError

from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT
from wattline.core.ledger.ledger import open_ledger
from wattline.core.ledger.outgoing import Intent, Purpose
from wattline.core.lightning.node import SendStatus
from wattline.core.payer import Payer
from wattline.core.record import format_record
from wattline.regtest.bitcoind_rpc import SAT_PER_BTC
from wattline.regtest.lightningd import Node
from wattline.regtest.network import RegtestNetwork
from wattline.regtest.scene import Scene, Trade
from wattline.regtest.waiting import wait_until

Json = dict[str, Any]

FEERATE_PER_KW = 1000
"""4 sat/vB, for all that goes on the chain."""
WALLET_SAT = 100_000_000
PLAIN_FEE_SAT = 1_000
"""Of the transaction that bitcoind is only asked about."""
IN_A_BLOCK = 20
"""So many of the naive way's transactions are made before a block is mined: each spends the change of the one before,
and bitcoind takes chains of 25 unconfirmed ones at the most."""
ROUTER_BASE_MSAT, ROUTER_PPM = 1_000, 10
"""Core Lightning's defaults on Bitcoin (lightningd/options.c); on regtest it would take 1 msat."""
IN_FLIGHT = 16
"""Keysend payments under way at a time. A cable's default is 4 (payment.max_in_flight, at most 32); the fees are the
same, and a thousand over two channels take a while."""
CAP_SAT = 10_000_000
TRADE = Trade(
    # What a session is worth is set as its fee, see fees.py.
    energy_msat_per_kwh=0,
    profiles=("constant-0",),
    session={"credit_cap_msat": CAP_SAT * MSAT_PER_SAT, "open_timeout_s": 3600, "cable_lost_s": 3600},
    payment={"min_increment_msat": 1, "journal_interval_s": 1},
    onchain={
        "credit_cap_sat": CAP_SAT,
        "exposure_cap_sat": CAP_SAT,
        "total_exposure_cap_sat": 10 * CAP_SAT,
        "watch_interval_ms": 50,
    },
)


class Ways:
    """``with Ways(channel_sat) as ways:`` runs bitcoind and four lightningds: the socket with the plugin, a cable whose
    payments go over a router that takes Core Lightning's default fees, and a purse without channels that pays on the
    chain. ``channel_sat`` is what cable and router can send altogether. Raises WattlineError."""

    def __init__(self, channel_sat: int) -> None:
        self._channel_sat = channel_sat
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self.network = stack.enter_context(RegtestNetwork())
            self.scene = stack.enter_context(Scene(self.network, TRADE))
            self._socket = self.scene.start_node()
            self._cable, self._purse = self.network.nodes("cable", "purse")
            router = self.network.node("router", fee_base=ROUTER_BASE_MSAT, fee_per_satoshi=ROUTER_PPM)
            # Nothing on the routers' own sides: what is measured flows one way.
            self._channels = self.network.line(
                self._cable, router, self._socket, value_sat=self._channel_sat, push_msat=0
            )
            # More than are spent: v25.02 keeps what it reserved for a withdrawal that bitcoind then refused as dust.
            self.network.fund_wallet(self._purse, WALLET_SAT, outputs=4)
            ledger = stack.enter_context(open_ledger(self.scene.directory / "fees.sqlite3"))
            self._intents = ledger.outgoing
            self.scene.wait_running()
            wait_until("the socket to look at the chain", self._sees_chain)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- the ways -----------------------------------------------------------------------------------------------------

    def naive(self, case: Case) -> Outcome:
        """(a) One transaction to the socket's address for each micropayment, by lightningd's ``withdraw``."""
        address = str(self._socket.rpc.call("newaddr", {"addresstype": "p2tr"})["p2tr"])
        before_sat = _wallet_sat(self._socket)
        fees_sat = vbytes = blocks = waiting = 0
        paying_s = 0.0
        for number, value_sat in enumerate(case.payments_sat(), 1):
            began = time.monotonic()
            try:
                self._withdraw(address, value_sat)
            except RpcError as error:
                if number > 1:
                    raise
                return Outcome(case, Way.NAIVE, refused=f"{value_sat} sat each: lightningd: {_message(error)}")
            paying_s += time.monotonic() - began
            waiting += 1
            if waiting == IN_A_BLOCK or number == case.payments:
                for entry in self._mempool(waiting).values():
                    fees_sat += round(entry["fees"]["base"] * SAT_PER_BTC)
                    vbytes += int(entry["vsize"])
                # The purse spends its unconfirmed change, so no node has to have seen this block.
                self.network.chain.mine(1)
                blocks, waiting = blocks + 1, 0
        for node in (self._socket, self._purse):
            node.wait_for_height(self.network.chain.height)
        paid_sat = _wallet_sat(self._socket) - before_sat
        return Outcome(
            case,
            Way.NAIVE,
            "",
            paid_sat * MSAT_PER_SAT,
            fees_sat * MSAT_PER_SAT,
            vbytes,
            case.payments,
            blocks,
            paying_s,
        )

    def aggregate(self, case: Case) -> Outcome:
        """(b) One transaction that grows with every micropayment, handed over to the socket and broadcast once."""
        values_sat = case.versions_sat(SMALLEST_OUTPUT_SAT)
        if values_sat is None:
            reason = f"{case.value_sat} sat are too few for {case.payments} versions from {SMALLEST_OUTPUT_SAT} sat on"
            return Outcome(case, Way.AGGREGATE, refused=reason)
        before_sat = _wallet_sat(self._socket)
        self._set_worth(case)
        with OnchainHandCable(self.scene, self._purse) as cable:
            session_id = cable.open_onchain()
            cable.invitation()
            cable.reserve(feerate_per_kw=FEERATE_PER_KW)
            began = time.monotonic()
            for value_sat in values_sat:
                cable.hand_over(value_sat)
            paying_s = time.monotonic() - began
            cable.statement(lambda statement: statement.charged_msat == case.value_msat)
            cable.close()
            txid = cable.receipt().onchain_txid
            entry = self._mempool(1)[txid]
            self.network.mine()
            onchain = wait_until("the settlement in a block", lambda: _confirmed(self.scene.session(session_id)))
        assert onchain["mined_txid"] == txid
        paid_sat = _wallet_sat(self._socket) - before_sat
        assert (onchain["increments"], onchain["mined_value_sat"]) == (case.payments, paid_sat)
        return Outcome(
            case,
            Way.AGGREGATE,
            paid_msat=paid_sat * MSAT_PER_SAT,
            fee_msat=round(entry["fees"]["base"] * SAT_PER_BTC) * MSAT_PER_SAT,
            vbytes=int(entry["vsize"]),
            transactions=1,
            blocks=1,
            paying_s=paying_s,
        )

    def keysend(self, case: Case) -> Outcome:
        """(c) Lightning payments with the session's record, by wattline's own payer, over one router."""
        self._set_worth(case)
        with HandCable(self.scene, self._cable) as cable:
            session_id = cable.open()
            # A new one for every session, as a cable has: it keeps the route that it once found.
            payer = Payer(cable.wallet, self._intents)
            totals_msat = [0, *case.totals_msat()]
            amounts_msat = [now - before for before, now in pairwise(totals_msat)]
            began = time.monotonic()
            with ThreadPoolExecutor(IN_FLIGHT) as pool:
                fees_msat = list(pool.map(lambda item: self._pay(payer, session_id, *item), enumerate(amounts_msat, 1)))
            paying_s = time.monotonic() - began
            cable.statement(lambda statement: statement.charged_msat == case.value_msat)
            cable.close()
            receipt = cable.receipt()
        assert receipt.payments == case.payments
        return Outcome(case, Way.KEYSEND, paid_msat=receipt.credited_msat, fee_msat=sum(fees_msat), paying_s=paying_s)

    # --- what else is told --------------------------------------------------------------------------------------------

    def router_fee(self) -> tuple[int, int]:
        """What the router takes for every payment: msat, and millionths of the amount."""
        channel = self._channels[1]
        rows = channel.opener.rpc.listchannels(channel.short_channel_id)["channels"]
        (row,) = [row for row in rows if row["source"] == channel.opener.node_id]
        return int(row["base_fee_millisatoshi"]), int(row["fee_per_millionth"])

    def channel_vbytes(self) -> tuple[int, int]:
        """What opening the cable's channel took on the chain, and what closing it takes; the channel is gone then."""
        channel = self._channels[0]
        opening = self.network.chain.call("getrawtransaction", channel.funding_txid, True)
        channel.opener.rpc.close(channel.channel_id)
        (closing,) = self._mempool(1).values()
        return int(opening["vsize"]), int(closing["vsize"])

    def dust_refusals(self, value_sat: int) -> tuple[str, str]:
        """What lightningd and bitcoind say when asked to pay so little on the chain. Raises AssertionError when one of
        them does it."""
        address = str(self._socket.rpc.call("newaddr", {"addresstype": "p2tr"})["p2tr"])
        try:
            self._withdraw(address, value_sat)
        except RpcError as error:
            by_lightningd = _message(error)
        else:
            raise AssertionError(f"lightningd has sent {value_sat} sat")
        chain = self.network.chain
        (coin, *_) = chain.call("listunspent")
        value_btc = Decimal(value_sat) / SAT_PER_BTC
        change_btc = coin["amount"] - value_btc - Decimal(PLAIN_FEE_SAT) / SAT_PER_BTC
        outputs = [{address: f"{value_btc:.8f}"}, {chain.call("getrawchangeaddress"): f"{change_btc:.8f}"}]
        raw = chain.call("createrawtransaction", [{"txid": coin["txid"], "vout": coin["vout"]}], outputs)
        signed = chain.call("signrawtransactionwithwallet", raw)["hex"]
        (verdict,) = chain.call("testmempoolaccept", [signed])
        assert not verdict["allowed"], f"bitcoind would relay {value_sat} sat"
        return by_lightningd, str(verdict["reject-reason"])

    # --- steps --------------------------------------------------------------------------------------------------------

    def _set_worth(self, case: Case) -> None:
        """Sessions are worth what ``case`` is from now on, all of it due when it is paid."""
        self._socket.rpc.call("wattline-tariff", {"session_fee_msat": case.value_msat})

    def _withdraw(self, address: str, value_sat: int) -> None:
        parameters = {
            "destination": address,
            "satoshi": f"{value_sat}sat",
            "feerate": f"{FEERATE_PER_KW}perkw",
            "minconf": 0,
        }
        self._purse.rpc.call("withdraw", parameters)

    def _pay(self, payer: Payer, session_id: str, sequence: int, amount_msat: int) -> int:
        """Pay one increment; the routing fee, msat."""
        text = format_record(session_id, sequence)
        limit_msat = 10_000 + amount_msat
        order = Intent(
            purpose=Purpose.INCREMENT,
            session_id=session_id,
            sequence=sequence,
            destination=self._socket.node_id,
            amount_msat=amount_msat,
            maxfee_msat=limit_msat,
            record=text,
            label=text,
        )
        outcome = payer.pay(order)
        assert outcome.status is SendStatus.COMPLETE, outcome
        return outcome.amount_sent_msat - amount_msat

    def _mempool(self, transactions: int) -> Json:
        """bitcoind's, once it holds so many."""

        def look() -> Json | None:
            entries = dict(self.network.chain.call("getrawmempool", True))
            return entries if len(entries) == transactions else None

        return wait_until(f"{transactions} transactions in the mempool", look)

    def _sees_chain(self) -> bool:
        onchain = self.scene.status()["onchain"]
        return onchain["blockheight"] is not None and onchain["trouble"] is None


def _wallet_sat(node: Node) -> int:
    """What the node's wallet holds, confirmed."""
    rows = node.rpc.listfunds()["outputs"]
    return sum(int(row["amount_msat"]) // MSAT_PER_SAT for row in rows if row["status"] == "confirmed")


def _confirmed(session: Json) -> Json | None:
    onchain: Json = session["onchain"]
    return onchain if onchain["confirmations"] else None


def _message(error: RpcError) -> str:
    """What it says, on one line and without the transaction itself."""
    text = str(error.error["message"] if isinstance(error.error, dict) else error.error)
    return " ".join(text.partition("Unsent tx discarded")[0].replace("\\n", " ").split()).rstrip(" .")
