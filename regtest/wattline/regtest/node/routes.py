"""Finding a way: ``getroutes`` as far as wattline uses it, and ``listchannels`` (plugins/askrene)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Any

from wattline.regtest.node.channels import CLTV_DELTA, Channels
from wattline.regtest.node.fault import Fault
from wattline.regtest.node.gossip import Gossip, GossipBoard
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.rpc_server import Given, RpcServer

Json = dict[str, Any]
NO_ROUTE = 205
TOO_EXPENSIVE = 206
UNUSABLE = "We could not find a usable set of paths."


@dataclass(frozen=True, slots=True)
class Edge:
    """One direction of a channel."""

    scid: str
    direction: int
    source: str
    destination: str
    max_msat: int
    is_local: bool
    """Of the asking node: its balance is known."""
    fee_base_msat: int
    fee_ppm: int
    is_enabled: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One hop of a route: what goes into its channel and what comes out at the other end."""

    edge: Edge
    amount_in_msat: int
    amount_out_msat: int
    cltv_in: int
    cltv_out: int


class Routes:
    """The graph as the node knows it: public channels, and its own."""

    def __init__(self, node_id: str, channels: Channels, gossip: GossipBoard, rpc: RpcServer) -> None:
        self._node_id = node_id
        self._channels = channels
        self._gossip = gossip
        rpc.add("getroutes", self._getroutes)
        rpc.add("listchannels", self._listchannels)

    def find(self, source: str, destination: str, amount_msat: int, maxfee_msat: int, final_cltv: int) -> list[Step]:
        """The cheapest single way. Raises Fault (205, 206)."""
        edges = self._edges()
        if not any(source in (edge.source, edge.destination) for edge in edges):
            raise Fault(NO_ROUTE, f"Unknown source node {source}")
        if not any(destination in (edge.source, edge.destination) for edge in edges):
            raise Fault(NO_ROUTE, f"Unknown destination node {destination}")
        route = cheapest(edges, source, destination, amount_msat, final_cltv)
        if route is None:
            raise self._no_route(edges, source, destination, amount_msat, final_cltv)
        if route[0].amount_in_msat - amount_msat > maxfee_msat:
            raise Fault(TOO_EXPENSIVE, "Could not find route without excessive cost")
        return route

    def _edges(self) -> list[Edge]:
        gossip = self._gossip.all()
        edges = {
            (one.scid, one.direction): Edge(
                one.scid,
                one.direction,
                one.source,
                one.destination,
                one.capacity_msat * 99 // 100,
                False,
                one.fee_base_msat,
                one.fee_ppm,
            )
            for one in gossip
            if self._node_id not in (one.source, one.destination)
        }
        for channel in self._channels.all():
            if channel["state"] != "CHANNELD_NORMAL":
                continue
            scid = channel["scid"] if channel["is_announced"] or channel["scid"] else channel["alias_local"]
            mine, usable = self._channels.direction(channel), self._channels.is_usable(channel)
            peer = channel["peer_id"]
            out_msat, in_msat = self._channels.spendable_msat(channel), self._channels.receivable_msat(channel)
            fees = self._channels.fee_base_msat, self._channels.fee_ppm
            theirs = next((fees_of(one) for one in gossip if (one.scid, one.source) == (scid, peer)), fees)
            edges[scid, mine] = Edge(scid, mine, self._node_id, peer, out_msat, True, *fees, usable)
            edges[scid, 1 - mine] = Edge(scid, 1 - mine, peer, self._node_id, in_msat, True, *theirs, usable)
        return list(edges.values())

    def _no_route(self, edges: list[Edge], source: str, destination: str, amount_msat: int, final_cltv: int) -> Fault:
        """Why there is none, in askrene's words."""
        for end, name in (("source", "source"), ("destination", "destination")):
            node = source if end == "source" else destination
            ways = [edge for edge in edges if getattr(edge, end) == node]
            if ways and not any(edge.is_enabled for edge in ways):
                return Fault(NO_ROUTE, f"{UNUSABLE} All {len(ways)} channels to the {name} are disabled.")
        shortest = cheapest(edges, source, destination, 1, final_cltv)
        if shortest is None:
            return Fault(NO_ROUTE, f"{UNUSABLE} There is no connection between source and destination at all")
        way = "->".join(step.edge.scid for step in shortest)
        for step in shortest:
            edge = step.edge
            if amount_msat > edge.max_msat:
                layer = "layer auto.localchans" if edge.is_local else "htlc_maximum_msat"
                return Fault(
                    NO_ROUTE,
                    f"{UNUSABLE} The shortest path is {way}, but {edge.scid}/{edge.direction} {layer} says max is "
                    f"{edge.max_msat}msat",
                )
        return Fault(NO_ROUTE, f"{UNUSABLE} The shortest path is {way}")

    # Commands.

    async def _getroutes(self, given: Given, _: str) -> Json:
        params = Parameters(
            given,
            ("source", "destination", "amount_msat", "layers", "maxfee_msat"),
            ("final_cltv", "maxdelay", "maxparts"),
        )
        amount_msat, final_cltv = params.msat("amount_msat"), params.integer("final_cltv", 18)
        steps = self.find(
            params.node_id("source"), params.node_id("destination"), amount_msat, params.msat("maxfee_msat"), final_cltv
        )
        path = [
            {
                "short_channel_id_dir": f"{step.edge.scid}/{step.edge.direction}",
                "node_id_in": step.edge.source,
                "node_id_out": step.edge.destination,
                "amount_in_msat": step.amount_in_msat,
                "amount_out_msat": step.amount_out_msat,
                "cltv_in": step.cltv_in,
                "cltv_out": step.cltv_out,
            }
            for step in steps
        ]
        route = {"probability_ppm": 1_000_000, "amount_msat": amount_msat, "final_cltv": final_cltv, "path": path}
        return {"probability_ppm": 1_000_000, "routes": [route]}

    async def _listchannels(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("short_channel_id", "source", "destination"))
        shown = []
        for one in self._gossip.all():
            if any(
                params.has(name) and params.text(name) != value
                for name, value in (
                    ("short_channel_id", one.scid),
                    ("source", one.source),
                    ("destination", one.destination),
                )
            ):
                continue
            shown.append(
                {
                    "source": one.source,
                    "destination": one.destination,
                    "short_channel_id": one.scid,
                    "direction": one.direction,
                    "public": True,
                    "amount_msat": one.capacity_msat,
                    "message_flags": 1,
                    "channel_flags": one.direction,
                    "active": True,
                    "last_update": one.last_update,
                    "base_fee_millisatoshi": one.fee_base_msat,
                    "fee_per_millionth": one.fee_ppm,
                    "delay": CLTV_DELTA,
                    "htlc_minimum_msat": 0,
                    "htlc_maximum_msat": one.capacity_msat * 99 // 100,
                    "features": "",
                }
            )
        return {"channels": shown}


def fees_of(one: Gossip) -> tuple[int, int]:
    """Base fee in msat, and millionths."""
    return one.fee_base_msat, one.fee_ppm


def cheapest(edges: list[Edge], source: str, destination: str, amount_msat: int, final_cltv: int) -> list[Step] | None:
    """Dijkstra from the destination backwards, so that every hop knows what must come out of it."""
    into: dict[str, list[Edge]] = {}
    for edge in edges:
        if edge.is_enabled:
            into.setdefault(edge.destination, []).append(edge)
    # What must arrive at a node, over how many hops, and the way from there on.
    # The number keeps ways that are equally good in the order in which they were found.
    number = count()
    queue: list[tuple[int, int, int, str, int, list[Step]]] = [
        (amount_msat, 0, next(number), destination, final_cltv, [])
    ]
    done: set[str] = set()
    while queue:
        amount, hops, _, node, cltv, way = heapq.heappop(queue)
        if node == source:
            return way
        if node in done:
            continue
        done.add(node)
        for edge in into.get(node, []):
            if amount > edge.max_msat or edge.source in done:
                continue
            # A node asks nothing of itself for its own channels (auto.sourcefree).
            fee, delta = (
                (0, 0)
                if edge.source == source
                else (edge.fee_base_msat + amount * edge.fee_ppm // 1_000_000, CLTV_DELTA)
            )
            step = Step(edge, amount + fee, amount, cltv + delta, cltv)
            heapq.heappush(queue, (amount + fee, hops + 1, next(number), edge.source, cltv + delta, [step, *way]))
    return None
