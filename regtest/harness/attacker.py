"""A wallet on a regtest bitcoind that signs whatever it is told to: transactions that nobody honest would make."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattline.core.bitcoin.bitcoind import sat_of
from wattline.core.bitcoin.chain import Outpoint, TxInput, TxOutput
from wattline.regtest.bitcoind_rpc import BitcoindRpc
from wattline.regtest.chain import Chain

REPLACEABLE = 0xFFFFFFFD
"""The sequence of Core Lightning's wallet: no lock time, replaceable (BIP 125)."""
LARGE_OUTPUTS = 2_300
"""Of 43 vB each: just below the largest standard transaction (100 kvB)."""
NOBODY = "5120" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
"""A P2TR script that no wallet here knows (the generator of secp256k1)."""
SMALL_SAT = 330
"""The dust limit of P2TR."""


@dataclass(frozen=True, slots=True)
class Coin:
    """An output of the wallet."""

    outpoint: Outpoint
    value_sat: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction before it is signed; nothing is checked."""

    inputs: tuple[TxInput, ...]
    outputs: tuple[TxOutput, ...]
    version: int = 2
    locktime: int = 0

    def with_output(self, number: int, **changes: Any) -> Draft:
        """The same but for output ``number``."""
        outputs = list(self.outputs)
        outputs[number] = replace(outputs[number], **changes)
        return replace(self, outputs=tuple(outputs))

    def with_sequence(self, sequence: int) -> Draft:
        """The same with this sequence in every input."""
        return replace(self, inputs=tuple(replace(item, sequence=sequence) for item in self.inputs))

    def serialized(self) -> str:
        """Unsigned, hex (the serialization of before BIP 144)."""
        parts = [self.version.to_bytes(4, "little"), _compact(len(self.inputs))]
        for item in self.inputs:
            parts += [bytes.fromhex(item.outpoint.txid)[::-1], item.outpoint.vout.to_bytes(4, "little")]
            parts += [b"\0", item.sequence.to_bytes(4, "little")]
        parts.append(_compact(len(self.outputs)))
        for output in self.outputs:
            script = bytes.fromhex(output.script)
            parts += [output.value_sat.to_bytes(8, "little"), _compact(len(script)), script]
        return b"".join([*parts, self.locktime.to_bytes(4, "little")]).hex()


def spend(coins: Sequence[Coin], outputs: Sequence[TxOutput]) -> Draft:
    """Of these coins to these outputs, as Core Lightning's wallet would."""
    return Draft(tuple(TxInput(coin.outpoint, REPLACEABLE) for coin in coins), tuple(outputs))


def large(coin: Coin, rate_sat_per_vb: float) -> Draft:
    """As large as the mempool takes, at this fee rate: all of the coin to nobody."""
    fee_sat = round(LARGE_OUTPUTS * 43 * rate_sat_per_vb + 69 * rate_sat_per_vb)
    rest_sat = coin.value_sat - (LARGE_OUTPUTS - 1) * SMALL_SAT - fee_sat
    return spend([coin], [TxOutput(rest_sat, NOBODY), *[TxOutput(SMALL_SAT, NOBODY)] * (LARGE_OUTPUTS - 1)])


class Wallet:
    """A new wallet of its own on the chain's bitcoind; its keys are P2TR. Every method raises BitcoindRefusedError when
    bitcoind has reason to, RetryError when it does not answer."""

    def __init__(self, chain: Chain, name: str) -> None:
        chain.call("createwallet", name, False, False, "", False, True, True)
        self._chain = chain
        self._rpc = BitcoindRpc(chain.rpc_port, chain.directory, name)

    def call(self, method: str, *parameters: object) -> Any:
        return self._rpc.call(method, *parameters)

    def address(self) -> str:
        """A new one."""
        return str(self.call("getnewaddress", "", "bech32m"))

    def script(self) -> str:
        """That of a new address, hex."""
        return str(self.call("getaddressinfo", self.address())["scriptPubKey"])

    def fund(self, values_sat: Sequence[int]) -> list[Coin]:
        """New coins of these values, with one confirmation; spending one leaves the others alone."""
        addresses = [self.address() for _ in values_sat]
        for address, value_sat in zip(addresses, values_sat, strict=True):
            self._chain.send(address, value_sat)
        self._chain.mine(1)
        found = self.call("listunspent", 1, 9_999_999, addresses)
        assert len(found) == len(values_sat), (found, self._chain.call("getrawmempool", True))
        at = {row["address"]: Coin(Outpoint(row["txid"], row["vout"]), sat_of(row["amount"])) for row in found}
        return [at[address] for address in addresses]

    def signed(self, draft: Draft, sighash: str = "DEFAULT") -> bytes:
        """A PSBT of version 0 (BIP 174), binary, with every signature that the wallet can make, not finalized: as
        Core Lightning's ``signpsbt`` leaves it. ``sighash``: what is signed, in bitcoind's words (BIP 341)."""
        unsigned = self.call("converttopsbt", draft.serialized())
        answer = self.call("walletprocesspsbt", unsigned, True, sighash, False, False)
        return base64.b64decode(answer["psbt"])

    def unsigned(self, draft: Draft) -> bytes:
        """The same without any signature, binary."""
        unsigned = self.call("converttopsbt", draft.serialized())
        answer = self.call("walletprocesspsbt", unsigned, False, "DEFAULT", False, False)
        return base64.b64decode(answer["psbt"])

    def raw(self, draft: Draft) -> str:
        """Signed and serialized, hex."""
        answer = self.call("signrawtransactionwithwallet", draft.serialized())
        assert answer["complete"], answer
        return str(answer["hex"])

    def extracted(self, psbt: bytes) -> str:
        """The transaction of a signed PSBT, hex."""
        answer = self.call("finalizepsbt", base64.b64encode(psbt).decode("ascii"), True)
        assert answer["complete"], "the wallet cannot sign for all inputs"
        return str(answer["hex"])

    def broadcast(self, draft: Draft) -> str:
        """Sign it and hand it to the mempool; its txid."""
        return str(self.call("sendrawtransaction", self.raw(draft), 0))

    def mine_at_once(self, *raws: str) -> str:
        """A block with these transactions (hex) alone, which no mempool has seen before; its hash."""
        return str(self.call("generateblock", self.address(), list(raws))["hash"])

    def mine_nothing(self, blocks: int) -> None:
        """Blocks that leave the mempool as it is."""
        for _ in range(blocks):
            self.mine_at_once()

    def received_sat(self, address: str) -> int:
        """What one of its addresses was paid in the best chain: the wallet's own account of it."""
        return sat_of(self.call("getreceivedbyaddress", address, 1))


def _compact(number: int) -> bytes:
    """CompactSize (Bitcoin protocol)."""
    if number < 0xFD:
        return bytes([number])
    if number <= 0xFFFF:
        return b"\xfd" + number.to_bytes(2, "little")
    return b"\xfe" + number.to_bytes(4, "little")
