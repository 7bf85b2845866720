"""A cable that speaks to a socket's reception and hands over whatever a test wants it to."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence

from harness.attacker import Coin, Draft, Wallet, spend
from harness.nodes import SOCKET, TrustingSigner
from harness.stall import Stall
from wattline.core.bitcoin.chain import TxOutput
from wattline.core.errors import RetryError, StopError
from wattline.core.lightning.node import onchain_content, sign
from wattline.plugin.streams import Stream
from wattline.v1 import charging_pb2 as pb

FEE_SAT = 400
"""About 2.6 sat/vB of one input and two outputs."""
ANSWER_S = 10.0


class Cable:
    """One cable with one session. It is honest unless told otherwise, and signs the final version."""

    def __init__(self, stall: Stall, wallet: Wallet, node_id: str, coins: Sequence[Coin]) -> None:
        self.wallet = wallet
        self.node_id = node_id
        self.coins = list(coins)
        self.signs_final = True
        self.final_discount_sat = 0
        """How much less than what is due its final version pays."""
        self.session_id = ""
        self.script = ""
        """Where the socket wants to be paid."""
        self.address = ""
        self.versions: list[Draft] = []
        """What the socket has accepted."""
        self._stall = stall
        self._signer = TrustingSigner(node_id)
        self._token = secrets.token_bytes(32)
        self._change = wallet.script()
        self._heard = threading.Condition()
        self._answers: list[pb.ChargeResponse] = []
        self.receipt: pb.Receipt | None = None
        self.finals_due: list[pb.FinalDue] = []

    # What it says.

    def open(self, outlet_id: str = "A1") -> None:
        """Raises Refused."""
        request = pb.Open(
            token=self._token,
            outlet_id=outlet_id,
            tariff_id=self._stall.app.prices.current.tariff_id,
            method=pb.METHOD_ONCHAIN,
            cable_node_id=self.node_id,
            socket_node_id=SOCKET,
        )
        request.signature = sign(self._signer, "open", request.SerializeToString(deterministic=True))
        self._listen(self._stall.app.requests.open(request))

    def resume(self, stall: Stall, token: bytes | None = None) -> None:
        """Go on at a socket that was started again. Raises Refused."""
        self._stall = stall
        self._listen(stall.app.requests.resume(pb.Resume(session_id=self.session_id, token=token or self._token)))

    def request(self, signer: TrustingSigner | None = None) -> pb.ChargeResponse:
        """Ask for the address; the answer."""
        before = len(self._answers)
        request = pb.OnchainRequest(signature=self._signature(signer or self._signer))
        self._stall.app.requests.onchain_request(self.session_id, request)
        answer = self._answer(before)
        if answer.HasField("onchain_invitation"):
            self.script, self.address = answer.onchain_invitation.script, answer.onchain_invitation.address
        return answer

    def hand_over(self, number: int, psbt: bytes, *, is_final: bool = False) -> pb.ChargeResponse:
        """Hand over anything as a version; the answer."""
        before = len(self._answers)
        message = pb.AggregateVersion(number=number, psbt=psbt, is_final=is_final)
        self._stall.app.requests.aggregate_version(self.session_id, message)
        return self._answer(before)

    def close(self) -> None:
        self._stall.app.requests.close(self.session_id, "done")

    # What it makes.

    def draft(self, value_sat: int, fee_sat: int = FEE_SAT) -> Draft:
        """An honest version: its coins to the socket, and the change."""
        change_sat = sum(coin.value_sat for coin in self.coins) - value_sat - fee_sat
        return spend(self.coins, [TxOutput(value_sat, self.script), TxOutput(change_sat, self._change)])

    def pay(self, value_sat: int) -> Draft:
        """Hand over the next version, honestly; it must be accepted."""
        draft = self.draft(value_sat)
        answer = self.hand_over(len(self.versions) + 1, self.wallet.signed(draft))
        assert answer.HasField("version_accepted"), answer
        self.versions.append(draft)
        return draft

    def theft(self, fee_sat: int) -> Draft:
        """All of its coins back to itself, at a fee."""
        total_sat = sum(coin.value_sat for coin in self.coins)
        return spend(self.coins, [TxOutput(total_sat - fee_sat, self._change)])

    def refusal(self, number: int, psbt: bytes, *, is_final: bool = False) -> str:
        """The code with which a version is refused; it must be."""
        answer = self.hand_over(number, psbt, is_final=is_final)
        assert answer.HasField("version_refused"), answer
        assert answer.version_refused.number == number
        return answer.version_refused.code

    def refusal_to_open(self, outlet_id: str = "A1") -> str:
        """The code with which a session is refused; empty when it is opened."""
        return _refusal(lambda: self.open(outlet_id))

    def late_refusals(self, value_sat: int) -> tuple[str, str]:
        """The codes with which, when its stream is over, it is not invited and a further version of ``value_sat`` is
        not taken; empty for what is."""
        desk = self._stall.onchain.intake
        psbt = self.wallet.signed(self.draft(value_sat))
        version = pb.AggregateVersion(number=len(self.versions) + 1, psbt=psbt)
        return (
            _refusal(lambda: desk.invite(self.session_id, self._signature(self._signer))),
            _refusal(lambda: desk.hand_over(self.session_id, version)),
        )

    # What it hears.

    def _listen(self, stream: Stream) -> None:
        opened = threading.Event()
        threading.Thread(target=self._hear, args=(stream, opened), name="cable", daemon=True).start()
        assert opened.wait(ANSWER_S), "the socket says nothing"

    def _hear(self, stream: Stream, opened: threading.Event) -> None:
        for message in stream:
            match message.WhichOneof("message"):
                case "opened":
                    self.session_id = message.opened.session_id
                    opened.set()
                case "final_due":
                    self.finals_due.append(message.final_due)
                    if self.signs_final:
                        self._sign_final(message.final_due.value_sat - self.final_discount_sat)
                case "receipt":
                    self.receipt = pb.Receipt.FromString(message.receipt.receipt)
                    opened.set()
                case "onchain_invitation" | "version_accepted" | "version_refused":
                    with self._heard:
                        self._answers.append(message)
                        self._heard.notify_all()

    def _sign_final(self, value_sat: int) -> None:
        first = self.versions[0]
        change_sat = first.outputs[1].value_sat + first.outputs[0].value_sat - value_sat
        final = first.with_output(0, value_sat=value_sat).with_output(1, value_sat=change_sat)
        try:
            psbt = self.wallet.signed(final)
        except RetryError:
            return  # its own bitcoind is away, too
        message = pb.AggregateVersion(number=len(self.versions) + 1, psbt=psbt, is_final=True)
        self._stall.app.requests.aggregate_version(self.session_id, message)

    def _signature(self, signer: TrustingSigner) -> str:
        return sign(signer, "onchain", onchain_content(SOCKET, self.session_id))

    def _answer(self, before: int) -> pb.ChargeResponse:
        with self._heard:
            assert self._heard.wait_for(lambda: len(self._answers) > before, ANSWER_S), "no answer"
            return self._answers[before]


def _refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except StopError as error:
        return error.code
    return ""
