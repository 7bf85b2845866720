"""A cable worked by hand: it opens a session over the real protocol, pays when told to, and says what it hears. For
tests of what a cable that behaves badly, or not at all, can do to a socket."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc

from wattline.cable.link.transport import fetch_certificate, open_channel
from wattline.cable.settings import parse_address
from wattline.core.lightning.cln import CoreLightning
from wattline.core.lightning.node import SendFailure, SentPayment
from wattline.core.lightning.onion import payment_hash_of
from wattline.core.record import format_record
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.regtest.waiting import wait_until
from wattline.v1 import charging_pb2 as pb
from wattline.v1 import charging_pb2_grpc

FINAL_CLTV = 40
MAXFEE_MSAT = 10_000
"""What the way may always cost, however small the payment."""


class OpenRefusedError(Exception):
    """The socket refused the session; ``code`` is the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class HandCable:
    """One session with the scene's socket, paid from ``wallet``."""

    def __init__(self, scene: Scene, wallet: Node, outlet_id: str = "A1") -> None:
        self.wallet = CoreLightning(wallet.rpc_path)
        self.wallet_node = wallet
        self._scene = scene
        self._socket_id = scene.node.node_id
        self._outlet_id = outlet_id
        self.token = secrets.token_bytes(32)
        self.session_id = ""
        self.messages: list[pb.ChargeResponse] = []
        self._up: queue.SimpleQueue[pb.ChargeRequest | None] = queue.SimpleQueue()
        self._sequence = 0
        self._arrived = threading.Condition()
        address = parse_address(f"{scene.node.node_id}@{scene.listen}")
        self._channel: grpc.Channel = open_channel(fetch_certificate(address))
        self.stub = charging_pb2_grpc.ChargingServiceStub(self._channel)
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def offer(self) -> pb.Offer:
        answer = self.stub.GetOffer(pb.GetOfferRequest(nonce=secrets.token_bytes(16)), timeout=10)
        return pb.Offer.FromString(answer.offer)

    def open(self, **changes: object) -> str:
        """Open a session; its id. ``changes`` override fields of Open. Raises OpenRefusedError."""
        values: dict[str, object] = {
            "token": self.token,
            "outlet_id": self._outlet_id,
            "tariff_id": self.offer().tariff.tariff_id,
            "method": pb.METHOD_KEYSEND,
            "cable_node_id": self.wallet_node.node_id,
        }
        self._talk(pb.ChargeRequest(open=pb.Open(**{**values, **changes})))  # type: ignore[arg-type]
        return self._wait_opened()

    def resume(self) -> str:
        """Take the session up again, on a new stream."""
        self._up = queue.SimpleQueue()
        self.messages = []  # the old stream may still say goodbye
        self._ended = False
        self._talk(pb.ChargeRequest(resume=pb.Resume(session_id=self.session_id, token=self.token)))
        return self._wait_opened()

    def reconnect(self) -> str:
        """As soon as the socket serves again: a new connection, and the session taken up on it."""
        self._up.put(None)
        self._channel.close()
        address = parse_address(f"{self._socket_id}@{self._scene.listen}")
        certificate = wait_until("the socket serves cables", lambda: fetch_certificate(address), 60)
        self._channel = open_channel(certificate)
        self.stub = charging_pb2_grpc.ChargingServiceStub(self._channel)
        return self.resume()

    def pay(self, amount_msat: int, *, record: str | None = None, timeout_s: float = 30.0) -> SentPayment | SendFailure:
        """One payment with the session's record (or any other text), and what became of it."""
        self._sequence += 1
        outcome = self.pay_without_waiting(amount_msat, record=record)(timeout_s)
        assert outcome is not None, "the payment took too long"
        return outcome

    def pay_without_waiting(
        self, amount_msat: int, *, record: str | None = None
    ) -> Callable[[float], SentPayment | SendFailure | None]:
        """Send now; the result waits for the outcome."""
        self._sequence += 1
        text = record or format_record(self.session_id, self._sequence)
        preimage = secrets.token_hex(32)
        payment_hash = payment_hash_of(preimage)
        route = self.wallet.find_route(self._socket_id, amount_msat, max(amount_msat, MAXFEE_MSAT), FINAL_CLTV)
        self.wallet.send(route, payment_hash, preimage, text, text)
        return lambda timeout_s: self.wallet.wait(payment_hash, timeout_s)

    def pay_with_wrong_preimage(self, amount_msat: int, record: str) -> SentPayment | SendFailure:
        """A payment whose preimage does not belong to its hash: nobody can keep it."""
        payment_hash = payment_hash_of(secrets.token_hex(32))
        route = self.wallet.find_route(self._socket_id, amount_msat, max(amount_msat, MAXFEE_MSAT), FINAL_CLTV)
        self.wallet.send(route, payment_hash, secrets.token_hex(32), record, record)
        outcome = self.wallet.wait(payment_hash, 30)
        assert outcome is not None, "the payment took too long"
        return outcome

    def keysend(self, amount_msat: int, extratlvs: dict[str, str]) -> dict[str, Any]:
        """A payment by lightningd's own command. Raises RpcError when it fails."""
        return self.wallet_node.keysend(self._scene.node, amount_msat, extratlvs=extratlvs, retry_for=5)

    def payments_back(self) -> list[tuple[int, int]]:
        """What the socket has paid back for the session, as the wallet's node received it: sequence and msat."""
        mark = f"keysend: wattline:1:{self.session_id}:"
        return [
            (int(row["description"].removeprefix(mark)), int(row["amount_received_msat"]))
            for row in self.wallet_node.rpc.listinvoices()["invoices"]
            if row["status"] == "paid" and row.get("description", "").startswith(mark)
        ]

    def plug_nothing(self) -> None:
        """Nothing draws power: credit stays."""
        self._scene.world.plug(int(self._outlet_id[1:]) - 1, "constant-0")

    def newest_state(self, scene: Scene) -> str:
        return str(scene.session(self.session_id)["state"])

    def seen(self, energy_uwh: int = 0) -> None:
        """A meter value, as a sign of life."""
        self._up.put(pb.ChargeRequest(meter_value=pb.MeterValue(energy_uwh=energy_uwh)))

    def close(self) -> None:
        self._up.put(pb.ChargeRequest(close=pb.Close(reason="done")))

    def hang_up(self) -> None:
        """The connection is cut, nothing said."""
        self._up.put(None)
        self._channel.close()

    def statement(self, wanted: Callable[[pb.Statement], bool], timeout_s: float = 20.0) -> pb.Statement:
        """The first statement from now on, or the last one so far, that is as wanted."""

        def look() -> pb.Statement | None:
            statements = [m.statement for m in self.messages if m.HasField("statement")]
            return statements[-1] if statements and wanted(statements[-1]) else None

        return wait_until("a statement as wanted", look, timeout_s)

    def message(self, kind: str, timeout_s: float = 20.0) -> pb.ChargeResponse:
        """The first message of this kind."""

        def look() -> pb.ChargeResponse | None:
            return next((m for m in self.messages if m.WhichOneof("message") == kind), None)

        return wait_until(f"a message {kind}", look, timeout_s)

    def receipt(self, timeout_s: float = 30.0) -> pb.Receipt:
        return pb.Receipt.FromString(self.message("receipt", timeout_s).receipt.receipt)

    def newest_receipt(self) -> pb.Receipt:
        """As GetReceipt tells it now."""
        request = pb.GetReceiptRequest(session_id=self.session_id, token=self.token)
        return pb.Receipt.FromString(self.stub.GetReceipt(request, timeout=10).receipt.receipt)

    def _talk(self, first: pb.ChargeRequest) -> None:
        up, messages = self._up, self.messages

        def requests() -> Iterator[pb.ChargeRequest]:
            yield first
            while (request := up.get()) is not None:
                yield request

        def listen() -> None:
            try:
                for message in self.stub.Charge(requests()):
                    with self._arrived:
                        messages.append(message)
                        self._arrived.notify_all()
            except (grpc.RpcError, ValueError):
                pass  # the stream was cut, or the channel closed under it
            with self._arrived:
                if messages is self.messages:  # not when the session was taken up again meanwhile
                    self._ended = True
                self._arrived.notify_all()

        threading.Thread(target=listen, daemon=True).start()

    def _wait_opened(self) -> str:
        def answered() -> pb.ChargeResponse | None:
            return self.messages[0] if self.messages else None

        answer = wait_until("an answer to open", answered, 20)
        if answer.HasField("refusal"):
            raise OpenRefusedError(answer.refusal.code, answer.refusal.message)
        if answer.HasField("opened"):
            self.session_id = answer.opened.session_id
        return self.session_id
