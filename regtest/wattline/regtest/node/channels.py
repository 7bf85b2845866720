"""Channels: who has how much, what can be sent, and how it is told (lightningd/peer_control.c)."""

from __future__ import annotations

from typing import Any

from wattline.regtest.node.gossip import GossipBoard
from wattline.regtest.node.peers import Peers
from wattline.regtest.node.store import Store

Json = dict[str, Any]
RESERVE_PERCENT = 1
DUST_MSAT = 546_000
FEERATE_PER_KW = 1250
FEE_BASE_MSAT = 1
FEE_PPM = 10
"""On regtest, unless the node's options say otherwise."""
CLTV_DELTA = 6
MAX_HTLCS = 483
_ANCHORS_SAT = 660
_UNLIMITED_MSAT = 2**64 - 1
_NORMAL = "CHANNELD_NORMAL"


class Channels:
    """The node's channels, as they stand in its store."""

    def __init__(self, store: Store, peers: Peers, gossip: GossipBoard, fee_base_msat: int, fee_ppm: int) -> None:
        self._store = store
        self._gossip = gossip
        self.fee_base_msat = fee_base_msat
        self.fee_ppm = fee_ppm
        self._peers = peers
        self.htlc_status: dict[tuple[str, int], str] = {}
        """What an incoming htlc waits for."""
        self.reconnected: set[str] = set()

    def all(self) -> list[Json]:
        return self._store.rows("SELECT * FROM channels ORDER BY rowid")

    def get(self, channel_id: str) -> Json | None:
        return self._store.row("SELECT * FROM channels WHERE channel_id = ?", channel_id)

    def by_scid(self, scid: str) -> Json | None:
        return self._store.row("SELECT * FROM channels WHERE scid = ? OR alias_local = ?", scid, scid)

    def with_peer(self, node_id: str) -> list[Json]:
        return self._store.rows("SELECT * FROM channels WHERE peer_id = ? ORDER BY rowid", node_id)

    def is_usable(self, channel: Json) -> bool:
        return channel["state"] == _NORMAL and self._peers.is_ready(channel["peer_id"])

    def spendable_msat(self, channel: Json) -> int:
        """What could be sent in one payment: above the reserve, what is under way and, of the opener's, the fee of the
        commitment transaction with one more htlc and a margin."""
        left = channel["to_us_msat"] - _reserve_msat(channel) - self._pending_msat(channel, "out")
        return self._after_fee(channel, left, bool(channel["is_opener"]))

    def receivable_msat(self, channel: Json) -> int:
        theirs = channel["capacity_msat"] - channel["to_us_msat"]
        left = theirs - _reserve_msat(channel) - self._pending_msat(channel, "in")
        return self._after_fee(channel, left, not channel["is_opener"])

    def move(self, channel_id: str, amount_msat: int, direction: str) -> None:
        """An htlc was fulfilled: the money has changed sides. Call it inside of a unit of work."""
        sign = 1 if direction == "in" else -1
        self._store.execute(
            f"UPDATE channels SET to_us_msat = to_us_msat + ?, {direction}_payments_fulfilled = "
            f"{direction}_payments_fulfilled + 1, {direction}_fulfilled_msat = {direction}_fulfilled_msat + ? "
            "WHERE channel_id = ?",
            sign * amount_msat,
            amount_msat,
            channel_id,
        )
        self._store.execute(
            "UPDATE channels SET min_to_us_msat = min(min_to_us_msat, to_us_msat), "
            "max_to_us_msat = max(max_to_us_msat, to_us_msat) WHERE channel_id = ?",
            channel_id,
        )

    def offered(self, channel_id: str, amount_msat: int, direction: str) -> None:
        self._store.execute(
            f"UPDATE channels SET {direction}_payments_offered = {direction}_payments_offered + 1, "
            f"{direction}_offered_msat = {direction}_offered_msat + ? WHERE channel_id = ?",
            amount_msat,
            channel_id,
        )

    def direction(self, channel: Json) -> int:
        """0 when this node's id is the lower one (BOLT #7)."""
        return 0 if self._peers.node_id < channel["peer_id"] else 1

    def object(self, channel: Json) -> Json:
        """One element of ``listpeerchannels``."""
        connected = self._peers.connection(channel["peer_id"]) is not None
        normal = channel["state"] == _NORMAL
        local = {
            "htlc_minimum_msat": 0,
            "htlc_maximum_msat": channel["capacity_msat"] - _reserve_msat(channel),
            "cltv_expiry_delta": CLTV_DELTA,
            "fee_base_msat": self.fee_base_msat,
            "fee_proportional_millionths": self.fee_ppm,
        }
        told = [one for one in self._gossip.all() if (one.scid, one.source) == (channel["scid"], channel["peer_id"])]
        remote = {
            **local,
            "fee_base_msat": told[0].fee_base_msat if told else FEE_BASE_MSAT,
            "fee_proportional_millionths": told[0].fee_ppm if told else FEE_PPM,
        }
        counts = {
            name: channel[name]
            for way in ("in", "out")
            for name in (
                f"{way}_payments_offered",
                f"{way}_offered_msat",
                f"{way}_payments_fulfilled",
                f"{way}_fulfilled_msat",
            )
        }
        ours, theirs = (channel["capacity_msat"], 0) if channel["is_opener"] else (0, channel["capacity_msat"])
        change = {
            "timestamp": channel["normal_since"],
            "old_state": "CHANNELD_AWAITING_LOCKIN",
            "new_state": _NORMAL,
            "cause": "user" if channel["is_opener"] else "remote",
            "message": "Lockin complete",
        }
        address = f"bcrt1p{channel['channel_id'][:58]}"
        return {
            "peer_id": channel["peer_id"],
            "peer_connected": connected,
            **({"reestablished": self._peers.is_ready(channel["peer_id"])} if connected else {}),
            "channel_type": {"bits": [12, 22], "names": ["static_remotekey/even", "anchors/even"]},
            "ignore_fee_limits": True,
            "updates": {"local": local, **({"remote": remote} if normal else {})},
            "state": channel["state"],
            "scratch_txid": channel["funding_txid"],
            "last_tx_fee_msat": 1_405_000,
            "lost_state": False,
            "feerate": {"perkw": FEERATE_PER_KW, "perkb": 4 * FEERATE_PER_KW},
            **({"owner": "channeld"} if connected else {}),
            **({"short_channel_id": channel["scid"]} if channel["scid"] else {}),
            "direction": self.direction(channel),
            "channel_id": channel["channel_id"],
            "funding_txid": channel["funding_txid"],
            "funding_outnum": 0,
            "close_to_addr": address,
            "close_to": "5120" + channel["channel_id"],
            "private": not channel["is_announced"],
            "opener": "local" if channel["is_opener"] else "remote",
            "alias": {"local": channel["alias_local"], "remote": channel["alias_remote"]},
            "features": ["option_static_remotekey", "option_anchors"],
            "funding": {
                "local_funds_msat": ours,
                "remote_funds_msat": theirs,
                "pushed_msat": channel["pushed_msat"],
                **({"psbt": "practice"} if channel["is_opener"] else {}),
                "withheld": False,
            },
            "to_us_msat": channel["to_us_msat"],
            "min_to_us_msat": channel["min_to_us_msat"],
            "max_to_us_msat": channel["max_to_us_msat"],
            "total_msat": channel["capacity_msat"],
            "fee_base_msat": self.fee_base_msat,
            "fee_proportional_millionths": self.fee_ppm,
            "dust_limit_msat": DUST_MSAT,
            "their_max_htlc_value_in_flight_msat": _UNLIMITED_MSAT,
            "our_max_htlc_value_in_flight_msat": _UNLIMITED_MSAT,
            "their_reserve_msat": _reserve_msat(channel),
            "our_reserve_msat": _reserve_msat(channel),
            "spendable_msat": self.spendable_msat(channel),
            "receivable_msat": self.receivable_msat(channel),
            "minimum_htlc_in_msat": 0,
            "minimum_htlc_out_msat": 0,
            "maximum_htlc_out_msat": channel["capacity_msat"] - _reserve_msat(channel),
            "their_to_self_delay": 6,
            "our_to_self_delay": 6,
            "max_accepted_htlcs": MAX_HTLCS,
            "state_changes": [change] if normal else [],
            "status": self._status(channel),
            **counts,
            "htlcs": self._htlcs(channel),
        }

    def _status(self, channel: Json) -> list[str]:
        if channel["channel_id"] in self.reconnected:
            ready = ["CHANNELD_NORMAL:Channel ready for use."] if self.is_usable(channel) else []
            return ["CHANNELD_NORMAL:Reconnected, and reestablished.", *ready]
        return [f"{channel['state']}:Channel ready for use."]

    def _htlcs(self, channel: Json) -> list[Json]:
        shown = []
        for row in self._store.rows(
            "SELECT * FROM htlcs WHERE channel_id = ? ORDER BY direction, htlc_id", channel["channel_id"]
        ):
            is_in = row["direction"] == "in"
            status = self.htlc_status.get((channel["channel_id"], row["htlc_id"])) if is_in else None
            shown.append(
                {
                    "direction": row["direction"],
                    "id": row["htlc_id"],
                    "amount_msat": row["amount_msat"],
                    "expiry": row["cltv_expiry"],
                    "payment_hash": row["payment_hash"],
                    "state": "RCVD_ADD_ACK_REVOCATION" if is_in else "SENT_ADD_ACK_REVOCATION",
                    **({"local_trimmed": True} if row["amount_msat"] < DUST_MSAT else {}),
                    **({"status": status} if status else {}),
                }
            )
        return shown

    def _pending_msat(self, channel: Json, direction: str) -> int:
        row = self._store.row(
            "SELECT coalesce(sum(amount_msat), 0) AS total FROM htlcs WHERE channel_id = ? AND direction = ?",
            channel["channel_id"],
            direction,
        )
        return int(row["total"]) if row is not None else 0

    def _after_fee(self, channel: Json, left_msat: int, pays_fee: bool) -> int:
        if left_msat <= 0:
            return 0
        if pays_fee:
            row = self._store.row(
                "SELECT count(*) AS number FROM htlcs WHERE channel_id = ? AND amount_msat >= ?",
                channel["channel_id"],
                DUST_MSAT,
            )
            untrimmed = (row["number"] if row is not None else 0) + (left_msat >= DUST_MSAT)
            left_msat -= commitment_fee_msat(untrimmed)
        return max(0, left_msat)


def _reserve_msat(channel: Json) -> int:
    return int(channel["capacity_msat"]) * RESERVE_PERCENT // 100


def commitment_fee_msat(untrimmed_htlcs: int) -> int:
    """What the opener must keep for the fee of a commitment transaction, one more htlc and a rise of the feerate
    (commit_txfee and marginal_feerate; BOLT #2, "fee spike buffer"; BOLT #3, weights)."""
    proportion = 1.0 - (FEERATE_PER_KW - 253) / (45_000 - 253) * 0.9
    feerate = int(FEERATE_PER_KW + proportion * FEERATE_PER_KW)
    weight = 1124 + 172 * (untrimmed_htlcs + 1)
    return (feerate * weight // 1000 + _ANCHORS_SAT) * 1000
