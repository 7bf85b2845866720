"""A cable worked by hand that pays on-chain: it reserves, signs and hands over one version after the other, when and as
it is told to. What it waits for it hears from the stream itself, so it is as fast as socket and wallet are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.by_hand import HandCable
from wattline.core.bitcoin.address import script_of
from wattline.core.bitcoin.chain import Outpoint, TxOutput
from wattline.core.lightning.cln_onchain import CoreLightningFunds
from wattline.core.lightning.node import onchain_content, sign
from wattline.core.lightning.onchain import Base, WalletOutput
from wattline.regtest.lightningd import Node
from wattline.regtest.scene import Scene
from wattline.regtest.waiting import DeadlineError, wait_until
from wattline.v1 import charging_pb2 as pb

FEERATE_PER_KW = 1000
"""4 sat/vB."""
OUTPUT_WEIGHT = 172
"""Of a P2TR output: value, length, 34 bytes of script (BIP 141, BIP 341)."""
ANSWER_S = 20.0


class VersionRefusedError(Exception):
    """The socket refused the invitation or the version; ``code`` is the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Reserved:
    """What pays for one aggregate."""

    outputs: tuple[WalletOutput, ...]
    base: Base
    change_script: str
    fee_sat: int
    """The same in every version."""

    @property
    def funds_sat(self) -> int:
        return sum(output.value_sat for output in self.outputs)


class OnchainHandCable(HandCable):
    """One session with the scene's socket, paid by one growing transaction from ``wallet``. A session that was opened
    for keysend payments may go on like this, too."""

    def __init__(self, scene: Scene, wallet: Node, outlet_id: str = "A1") -> None:
        super().__init__(scene, wallet, outlet_id)
        self.funds = CoreLightningFunds(self.wallet.rpc)
        self.invited: pb.OnchainInvitation | None = None
        self.reserved: Reserved | None = None
        self.number = 0
        """Of the newest version that the socket has accepted."""

    def open_onchain(self) -> str:
        """Open a session that is paid on-chain, the open signed by the wallet's node. Raises OpenRefusedError."""
        values = {
            "token": self.token,
            "outlet_id": self._outlet_id,
            "tariff_id": self.offer().tariff.tariff_id,
            "method": pb.METHOD_ONCHAIN,
            "cable_node_id": self.wallet_node.node_id,
            "socket_node_id": self._socket_id,
        }
        unsigned = pb.Open(**values)  # type: ignore[arg-type]
        signature = sign(self.wallet, "open", unsigned.SerializeToString(deterministic=True))
        return self.open(**values, signature=signature)

    def invitation(self, signature: str | None = None) -> pb.OnchainInvitation:
        """Ask for the address of the session's aggregate; ``signature`` in place of the node's own. After a resume it
        tells what the socket holds, and versions are numbered from there. Raises VersionRefusedError."""
        if signature is None:
            signature = sign(self.wallet, "onchain", onchain_content(self._socket_id, self.session_id))
        seen = len(self.messages)
        self._up.put(pb.ChargeRequest(onchain_request=pb.OnchainRequest(signature=signature)))
        answer = self._hear(
            "an invitation",
            seen,
            lambda m: (
                m.HasField("onchain_invitation") or (m.HasField("version_refused") and not m.version_refused.number)
            ),
        )
        if answer.HasField("version_refused"):
            raise VersionRefusedError(answer.version_refused.code, answer.version_refused.message)
        self.invited = answer.onchain_invitation
        self.number = answer.onchain_invitation.newest_number
        return answer.onchain_invitation

    def reserve(
        self, outpoints: Sequence[Outpoint] = (), *, feerate_per_kw: int = FEERATE_PER_KW, fee_sat: int | None = None
    ) -> Reserved:
        """Reserve these outputs of the wallet (else its largest one, once it has any) for all versions to come, with a
        fee for that fee rate, or ``fee_sat``."""
        known = wait_until("a confirmed output in the wallet", self.funds.outputs, ANSWER_S)
        outputs = tuple(item for item in known if item.outpoint in outpoints) if outpoints else (known[0],)
        assert len(outputs) == len(outpoints or outputs), "the wallet has no such confirmed outputs"
        base = self.funds.reserve([item.outpoint for item in outputs])
        if fee_sat is None:
            fee_sat = -(-(base.inputs_weight + 2 * OUTPUT_WEIGHT) * feerate_per_kw // 1000)
        self.reserved = Reserved(outputs, base, script_of(self.funds.new_address(), "regtest"), fee_sat)
        return self.reserved

    def release(self) -> None:
        """Give back to the wallet what was reserved."""
        if self.reserved is not None:
            self.funds.release(self.reserved.base)
            self.reserved = None

    def version(self, value_sat: int, *, fee_sat: int | None = None, script: str | None = None) -> bytes:
        """A signed version of that value, handed to nobody: a binary PSBT. ``fee_sat`` and ``script`` in place of the
        agreed ones."""
        assert self.invited is not None, "invitation() comes first"
        assert self.reserved is not None, "reserve() comes first"
        fee = self.reserved.fee_sat if fee_sat is None else fee_sat
        change = TxOutput(self.reserved.funds_sat - value_sat - fee, self.reserved.change_script)
        return self.funds.sign(self.reserved.base, [TxOutput(value_sat, script or self.invited.script), change])

    def hand_over(
        self,
        value_sat: int,
        *,
        psbt: bytes | None = None,
        number: int | None = None,
        is_final: bool = False,
        timeout_s: float = ANSWER_S,
    ) -> pb.VersionAccepted:
        """Hand over the next version, of that value, and wait for the answer; ``psbt`` and ``number`` in place of the
        right ones. Raises VersionRefusedError."""
        return self.hand_over_without_waiting(value_sat, psbt=psbt, number=number, is_final=is_final)(timeout_s)

    def hand_over_without_waiting(
        self, value_sat: int, *, psbt: bytes | None = None, number: int | None = None, is_final: bool = False
    ) -> Callable[[float], pb.VersionAccepted]:
        """Send now; the result waits for the answer (seconds at most). Raises VersionRefusedError then."""
        own = self.number + 1 if number is None else number
        content = self.version(value_sat) if psbt is None else psbt
        seen = len(self.messages)
        message = pb.AggregateVersion(number=own, psbt=content, is_final=is_final)
        self._up.put(pb.ChargeRequest(aggregate_version=message))

        def answer(timeout_s: float) -> pb.VersionAccepted:
            heard = self._hear(f"an answer to version {own}", seen, lambda m: _answers(m, own), timeout_s)
            if heard.HasField("version_refused"):
                raise VersionRefusedError(heard.version_refused.code, heard.version_refused.message)
            self.number = max(self.number, own)
            return heard.version_accepted

        return answer

    def final_due(self, timeout_s: float = ANSWER_S) -> pb.FinalDue:
        """What the socket wants to be paid exactly, after the session's end."""
        return self._hear("the final value", 0, lambda m: m.HasField("final_due"), timeout_s).final_due

    def final(self, timeout_s: float = ANSWER_S) -> pb.VersionAccepted:
        """Wait for what is due, and hand over the version that pays exactly that. Raises VersionRefusedError."""
        return self.hand_over(self.final_due(timeout_s).value_sat, is_final=True, timeout_s=timeout_s)

    def _hear(
        self, what: str, start: int, wanted: Callable[[pb.ChargeResponse], bool], timeout_s: float = ANSWER_S
    ) -> pb.ChargeResponse:
        """The first message from number ``start`` on that is as wanted. Raises DeadlineError when the time runs out or
        the stream ends without it."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                messages = self.messages
                for message in messages[start:]:
                    if wanted(message):
                        return message
                start = len(messages)
                left_s = deadline - time.monotonic()
                if self._ended or left_s <= 0:
                    last = messages[-1].WhichOneof("message") if messages else None
                    raise DeadlineError("deadline", f"waited in vain for: {what} (last message: {last})")
                self._arrived.wait(left_s)


def _answers(message: pb.ChargeResponse, number: int) -> bool:
    kind = message.WhichOneof("message")
    if kind == "version_accepted":
        return message.version_accepted.number == number
    return kind == "version_refused" and message.version_refused.number == number
