"""Core Lightning behind the Wallet, Signer and Journal Protocols."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wattline.core.errors import StopError
from wattline.core.lightning.checked_calls import is_plain_text, is_signature
from wattline.core.lightning.node import (
    ChannelBalance,
    NodeInfo,
    NoRoute,
    PaidInvoice,
    Route,
    SendFailure,
    SentPayment,
    is_node_id,
)
from wattline.core.lightning.onion import onion_hops
from wattline.core.lightning.rpc import (
    ANSWER_TIMEOUT_S,
    NodeRpc,
    RpcRefused,
    msat_of,
    paid_invoice_of,
    reading,
    route_of,
    sent_payment_of,
    version_numbers,
)

OLDEST_VERSION = (25, 2, 2)
"""The oldest that was run (docs/compatibility.md). v25.02 is the first with getroutes as used here: v24.11 knows no
layer that keeps a payment in one part."""
OLDEST_NAME = f"v{OLDEST_VERSION[0]}.{OLDEST_VERSION[1]:02}.{OLDEST_VERSION[2]}"
"""As its makers call it."""
HEIGHT_MAX_AGE_S = 5.0
"""For how long a block height is used without asking again."""
PART_ID = 0
GROUP_ID = 1
"""Fixed, so that lightningd knows a repeated payment_hash for the same payment: while it is pending or complete the
second sendonion only reports it, and after a failure it is refused (lightningd/pay.c, check_progress)."""

_PAYING_STATES = frozenset({"CHANNELD_NORMAL", "CHANNELD_AWAITING_SPLICE"})
"""Those in which a channel takes new htlcs (lightningd/channel_state.h, channel_state_can_add_htlc)."""
_MAXPARTS_SINCE = (25, 9)
_PATHS_REMEMBERED = 10_000
# BOLT #4 lets only the final node send these.
_FINAL_FAILCODES = frozenset(
    {
        "incorrect_or_unknown_payment_details",
        "final_incorrect_cltv_expiry",
        "final_incorrect_htlc_amount",
        "mpp_timeout",
    }
)


class CoreLightning:
    """One lightningd, by its JSON-RPC socket. Thread-safe, with any number of calls under way.

    Every method raises NodeUnavailable when lightningd does not answer, and NodeRefused when it answers with an error
    that the method does not turn into a result.
    """

    def __init__(
        self,
        rpc_path: Path | str,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rpc = NodeRpc(rpc_path, answer_timeout_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._info: NodeInfo | None = None
        self._info_at = -math.inf
        self._path_lengths: OrderedDict[str, int] = OrderedDict()

    # --- Wallet -------------------------------------------------------------------------------------------------------

    def info(self) -> NodeInfo:
        answer = self.rpc.call("getinfo")
        with reading("getinfo"):
            info = NodeInfo(answer["id"], answer["network"], answer["version"], int(answer["blockheight"]))
        with self._lock:
            self._info, self._info_at = info, self._clock()
        return info

    def check_version(self) -> NodeInfo:
        """The node's info. Raises StopError (``node_too_old``) when it is older than OLDEST_VERSION."""
        info = self.info()
        if version_numbers(info.version) < OLDEST_VERSION:
            raise StopError("node_too_old", f"lightningd is {info.version}; wattline needs {OLDEST_NAME} or newer")
        return info

    def channels(self) -> Sequence[ChannelBalance]:
        answer = self.rpc.call("listpeerchannels")
        with reading("listpeerchannels"):
            return [
                ChannelBalance(
                    row["peer_id"],
                    row.get("short_channel_id") or row["alias"]["local"],
                    msat_of(row["spendable_msat"]),
                    msat_of(row["receivable_msat"]),
                )
                for row in answer["channels"]
                if row["state"] in _PAYING_STATES and row["peer_connected"]
            ]

    def takes_keysend(self) -> bool:
        """Whether its keysend plugin runs: it is what sets the feature bit (BOLT #9: 54/55)."""
        answer = self.rpc.call("getinfo")
        with reading("getinfo"):
            return bool(int(answer["our_features"]["node"] or "0", 16) >> 54 & 0b11)

    def find_route(self, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> Route:
        info = self._known_info()
        params: dict[str, Any] = {
            "source": info.node_id,
            "destination": destination,
            "amount_msat": amount_msat,
            "maxfee_msat": maxfee_msat,
            "final_cltv": final_cltv,
            "layers": ["auto.localchans", "auto.sourcefree"],
        }
        if version_numbers(info.version) >= _MAXPARTS_SINCE:
            params["maxparts"] = 1
        else:
            params["layers"].append("auto.no_mpp_support")
        try:
            answer = self.rpc.call("getroutes", params)
        except RpcRefused as error:
            if error.rpc_code == 205:
                raise NoRoute("no_route", f"no single route for {amount_msat} msat: {error.message}") from error
            if error.rpc_code == 206:
                raise NoRoute("route_too_expensive", f"no route within {maxfee_msat} msat: {error.message}") from error
            raise
        with reading("getroutes"):
            if len(answer["routes"]) != 1:
                raise NoRoute("no_route", f"{amount_msat} msat would take {len(answer['routes'])} parts")
            return route_of(answer["routes"][0], destination)

    def send(self, route: Route, payment_hash: str, preimage: str, record: str, label: str) -> None:
        # One more than the height, as lightningd counts itself when it turns first_hop.delay into an expiry.
        height = self._height() + 1
        with reading("getroutes"):
            hops = onion_hops(route, height, preimage, record)
        onion = self.rpc.call(
            "createonion",
            {"hops": [{"pubkey": hop.node_id, "payload": hop.payload} for hop in hops], "assocdata": payment_hash},
        )
        with reading("createonion"):
            packet, secrets = onion["onion"], onion["shared_secrets"]
        first = route.hops[0]
        self._remember_path(payment_hash, len(route.hops))
        try:
            self.rpc.call(
                "sendonion",
                {
                    "onion": packet,
                    "first_hop": {
                        "id": first.next_node_id,
                        "channel": first.short_channel_id_dir.partition("/")[0],
                        "amount_msat": first.amount_out_msat,
                        "delay": first.cltv_out,
                    },
                    "payment_hash": payment_hash,
                    "label": label,
                    "shared_secrets": secrets,
                    "partid": PART_ID,
                    "groupid": GROUP_ID,
                    "amount_msat": route.amount_msat,
                    "destination": route.destination,
                },
            )
        except RpcRefused:
            self._forget_height()
            raise

    def wait(self, payment_hash: str, timeout_s: float) -> SentPayment | SendFailure | None:
        seconds = max(0, math.ceil(timeout_s))
        try:
            row = self.rpc.call(
                "waitsendpay",
                {"payment_hash": payment_hash, "timeout": seconds, "partid": PART_ID, "groupid": GROUP_ID},
                takes_s=seconds,
            )
        except RpcRefused as error:
            if error.rpc_code == 200:
                return None
            if error.rpc_code not in (202, 203, 204, 209):
                raise
            # Whatever failed, the next onion should count from a fresh height: an expiry may have been the reason.
            self._forget_height()
            return self._failure(payment_hash, error)
        self._forget_path(payment_hash)
        with reading("waitsendpay"):
            return sent_payment_of(payment_hash, [row])

    def sent(self, payment_hash: str) -> SentPayment | None:
        answer = self.rpc.call("listsendpays", {"payment_hash": payment_hash})
        with reading("listsendpays"):
            return sent_payment_of(payment_hash, answer["payments"]) if answer["payments"] else None

    # --- Signer -------------------------------------------------------------------------------------------------------

    def sign(self, message: str) -> str:
        answer = self.rpc.call("signmessage", {"message": message})
        with reading("signmessage"):
            return str(answer["zbase"])

    def verify(self, message: str, signature: str, node_id: str) -> bool:
        if not is_plain_text(message) or not is_signature(signature) or not is_node_id(node_id):
            return False
        try:
            answer = self.rpc.call("checkmessage", {"message": message, "zbase": signature, "pubkey": node_id})
        except RpcRefused as error:
            if error.rpc_code == -32602:  # not zbase32, or not a public key: a forgery like any other
                return False
            raise
        with reading("checkmessage"):
            return answer["verified"] is True

    # --- Journal ------------------------------------------------------------------------------------------------------

    def paid_since(self, updated_index: int, limit: int) -> Sequence[PaidInvoice]:
        # `start` is inclusive; an invoice that was never updated has no updated_index and is not listed.
        answer = self.rpc.call("listinvoices", {"index": "updated", "start": updated_index + 1, "limit": limit})
        with reading("listinvoices"):
            return [paid_invoice_of(row) for row in answer["invoices"]]

    def autoclean_paid_age_s(self) -> int | None:
        """After how many seconds autoclean deletes paid invoices (the journal); None when it never does."""
        return self._autoclean_age_s("autoclean-paidinvoices-age")

    def forgets_sent_after_s(self) -> int | None:
        return self._autoclean_age_s("autoclean-succeededpays-age")

    def _autoclean_age_s(self, option: str) -> int | None:
        answer = self.rpc.call("listconfigs", {"config": option})
        with reading("listconfigs"):
            row = answer["configs"].get(option, {})
            age_s = int(row.get("value_int", row.get("value_str", 0)))
        return age_s or None

    # --- what is remembered -------------------------------------------------------------------------------------------

    def _known_info(self) -> NodeInfo:
        with self._lock:
            known = self._info
        return known if known is not None else self.info()

    def _height(self) -> int:
        with self._lock:
            known = self._info if self._clock() - self._info_at <= HEIGHT_MAX_AGE_S else None
        return (known if known is not None else self.info()).blockheight

    def _forget_height(self) -> None:
        with self._lock:
            self._info_at = -math.inf

    def _remember_path(self, payment_hash: str, length: int) -> None:
        with self._lock:
            self._path_lengths[payment_hash] = length
            while len(self._path_lengths) > _PATHS_REMEMBERED:
                self._path_lengths.popitem(last=False)

    def _forget_path(self, payment_hash: str) -> int | None:
        with self._lock:
            return self._path_lengths.pop(payment_hash, None)

    def _failure(self, payment_hash: str, error: RpcRefused) -> SendFailure:
        code = error.code if "failcodename" in error.data else "unknown"
        length = self._forget_path(payment_hash)
        by_index = length is not None and error.data.get("erring_index") == length
        return SendFailure(code, error.message, by_index or code in _FINAL_FAILCODES or error.rpc_code == 203)
