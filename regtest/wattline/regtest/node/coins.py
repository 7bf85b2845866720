"""Coins: chosen, reserved, made into transactions, signed and sent, by lightningd's rules (wallet/reservation.c,
wallet/walletrpc.c, plugins/txprepare.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.regtest.node.bitcoin_wallet import RESERVED, SPENT, BitcoinWallet, BroadcastError, Utxo
from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.movements import Movements
from wattline.regtest.node.psbt import Psbt, PsbtOutput

ALL_SAT = 2**64 - 1
"""``all`` in the place of an amount."""
RESERVE_BLOCKS = 72
DUST_SAT = 546
LEAST_CHANGE_SAT = 330
EMERGENCY_SAT = 25_000
"""What a node with anchor channels keeps back (``min-emergency-msat``)."""
LIGHTNINGD, CANNOT_AFFORD, NO_EMERGENCY_FUNDS = -1, 301, 313
P2TR_OUTPUT_WEIGHT = 172
_INPUT_WEIGHT = {"5120": 230, "0014": 271}
"""Of an input that spends such a script, with its witness."""
_CORE_WEIGHT = 42


@dataclass(frozen=True, slots=True)
class Change:
    """What a reservation did to one output."""

    before: Utxo
    after: Utxo


@dataclass(frozen=True, slots=True)
class Funded:
    """Inputs, and change where there is any, which is then the only output."""

    psbt: Psbt
    feerate_per_kw: int
    weight: int
    """Of the transaction when it is signed, as far as it is known."""
    excess_sat: int
    """That nothing takes yet."""
    reservations: Sequence[Change]


class Coins:
    """``height`` tells the node's, ``has_channel`` whether it has an anchor channel."""

    def __init__(
        self,
        wallet: BitcoinWallet,
        movements: Movements,
        height: Callable[[], int],
        has_channel: Callable[[], bool],
    ) -> None:
        self._wallet = wallet
        self._movements = movements
        self._height = height
        self._has_channel = has_channel

    async def funded(
        self,
        utxos: Sequence[Utxo],
        value_sat: int,
        feerate: int,
        weight: int,
        reserve: int,
        *,
        locktime: int,
        reserved_ok: bool = False,
        excess_as_change: bool = False,
        keeps_emergency: bool = False,
    ) -> Funded:
        """json_utxopsbt and finish_psbt: these inputs, reserved for so many blocks (0: not at all), to pay
        ``value_sat`` by a transaction that weighs ``weight`` without them."""
        height = self._height()
        for utxo in utxos:
            if not reserved_ok and utxo.is_reserved(height):
                raise Fault(INVALID_PARAMETERS, f"UTXO {utxo} already reserved")
        weight += sum(_input_weight(utxo) for utxo in utxos)
        total = sum(utxo.value_sat for utxo in utxos)
        excess = total - _fee(feerate, weight) - (0 if value_sat == ALL_SAT else value_sat)
        if value_sat == ALL_SAT and excess < DUST_SAT:
            raise Fault(
                CANNOT_AFFORD,
                f"Could not afford anything using UTXOs totalling {total}sat with weight {weight} at feerate {feerate}",
            )
        if excess < 0:
            raise Fault(
                CANNOT_AFFORD,
                f"Could not afford {value_sat}sat using UTXOs totalling {total}sat with weight {weight} "
                f"at feerate {feerate}",
            )
        excess, change = (0, excess) if excess_as_change and value_sat != ALL_SAT else (excess, 0)
        if keeps_emergency or self._has_channel():
            excess, change = self._with_emergency(utxos, feerate, weight, excess, change)
        psbt = Psbt(tuple(self._wallet.input(utxo) for utxo in utxos), locktime=locktime)
        change = _change(change, feerate, weight)
        if change:
            psbt = psbt.with_outputs(await self._change_output(change))
            weight += P2TR_OUTPUT_WEIGHT
        # The address took a moment: another call may have reserved them meanwhile.
        utxos = [self._still(utxo, reserved_ok) for utxo in utxos]
        return Funded(psbt, feerate, weight, excess, self.reserve(utxos, reserve) if reserve else ())

    def _with_emergency(
        self, utxos: Sequence[Utxo], feerate: int, weight: int, excess: int, change: int
    ) -> tuple[int, int]:
        """change_for_emergency: excess and change, of which the latter holds what the rest of the wallet lacks."""
        needed = EMERGENCY_SAT
        taken = {str(utxo) for utxo in utxos}
        for utxo in self._free():
            if str(utxo) not in taken and needed > 0:
                needed -= utxo.value_sat
        if needed <= 0 or _change(change, feerate, weight) >= needed:
            return excess, change
        fee = _change_fee(feerate, weight)
        if excess < fee + needed:
            raise Fault(NO_EMERGENCY_FUNDS, f"We would not have enough left for min-emergency-msat {EMERGENCY_SAT}sat")
        return excess - fee - needed, change + fee + needed

    def _free(self, minconf: int = 1) -> list[Utxo]:
        """What may be spent: neither reserved nor spent, and with so many confirmations."""
        height = self._height()
        return [
            utxo
            for utxo in self._wallet.outputs()
            if utxo.status != SPENT
            and not utxo.is_reserved(height)
            and (minconf == 0 or (utxo.blockheight is not None and height - utxo.blockheight + 1 >= minconf))
        ]

    def _still(self, utxo: Utxo, reserved_ok: bool) -> Utxo:
        now = self._wallet.output(utxo.txid, utxo.vout)
        assert now is not None
        if now.is_reserved(self._height()) and not reserved_ok:
            raise Fault(INVALID_PARAMETERS, f"UTXO {utxo} already reserved")
        return now

    def reserve(self, utxos: Sequence[Utxo], blocks: int) -> list[Change]:
        """For so many blocks more."""
        height = self._height()
        return [Change(utxo, self._wallet.reserve(utxo, height, blocks)) for utxo in utxos]

    def unreserve(self, utxos: Sequence[Utxo], blocks: int) -> list[Change]:
        """For so many blocks less; what is not reserved is left out."""
        height = self._height()
        reserved = [utxo for utxo in utxos if utxo.status == RESERVED]
        return [Change(utxo, self._wallet.unreserve(utxo, height, blocks)) for utxo in reserved]

    async def signed(self, psbt: Psbt) -> Psbt:
        """With the wallet's signatures on its own inputs, which must all be reserved."""
        if not self._reserved(psbt):
            raise Fault(
                LIGHTNINGD,
                "No wallet inputs to sign. Are you sure you added inputs to this PSBT? If not, then there is no need "
                "to sign it.",
            )
        return await self._wallet.sign(psbt)

    def _reserved(self, psbt: Psbt) -> list[Utxo]:
        """The own inputs, every one reserved."""
        utxos = self._wallet.owned(psbt)
        for utxo in utxos:
            if not utxo.is_reserved(self._height()):
                raise Fault(LIGHTNINGD, f"Aborting PSBT signing. UTXO {utxo} is not reserved")
        return utxos

    async def sent(self, psbt: Psbt, blocks: int = RESERVE_BLOCKS) -> tuple[str, str]:
        """Broadcast, the own inputs reserved for so many blocks more; the transaction in hex, and its txid."""
        tx = await self._wallet.final(psbt)
        if tx is None:
            raise Fault(LIGHTNINGD, f"PSBT not finalizeable {psbt}")
        for utxo in self._reserved(psbt):
            self._wallet.reserve(utxo, self._height(), blocks)
        try:
            return tx, await self._wallet.broadcast(tx)
        except BroadcastError as error:
            self.unreserve(self._wallet.owned(psbt), blocks)
            raise Fault(LIGHTNINGD, f"Error broadcasting transaction: {error}. Unsent tx discarded {tx}") from error

    async def pay(
        self, output: PsbtOutput, feerate: int, utxos: Sequence[Utxo] | None, minconf: int, is_withdrawal: bool
    ) -> tuple[Psbt, str, str]:
        """Signed and broadcast, with the output in the first place: the PSBT, the transaction in hex, its txid."""
        weight = _CORE_WEIGHT + 4 * (9 + len(output.script))
        if utxos is None:
            utxos = self._chosen(output.value_sat, feerate, weight, minconf)
        funded = await self.funded(
            utxos,
            output.value_sat,
            feerate,
            weight,
            RESERVE_BLOCKS,
            locktime=self._height(),
            excess_as_change=True,
        )
        value_sat = funded.excess_sat if output.value_sat == ALL_SAT else output.value_sat
        try:
            signed = await self.signed(funded.psbt.with_outputs(PsbtOutput(value_sat, output.script), at=0))
            tx, txid = await self.sent(signed)
        except Fault:
            self.unreserve(self._wallet.owned(funded.psbt), RESERVE_BLOCKS)
            raise
        if self._wallet.is_foreign(output.script):
            self._movements.sends(txid, 0, value_sat, is_withdrawal)
        return signed, tx, txid

    def _chosen(self, value_sat: int, feerate: int, weight: int, minconf: int) -> list[Utxo]:
        """fundpsbt: outputs until they are enough, in their order; all of them for ``all``."""
        chosen: list[Utxo] = []
        free = self._free(minconf)
        for utxo in free:
            chosen.append(utxo)
            weight += _input_weight(utxo)
            if sum(one.value_sat for one in chosen) >= value_sat + _fee(feerate, weight):
                return chosen
        if value_sat == ALL_SAT and chosen:
            return chosen
        short = value_sat + _fee(feerate, weight) - sum(one.value_sat for one in chosen)
        wanted, lacking = ("all", "all") if value_sat == ALL_SAT else (f"{value_sat}sat", f"{short}sat")
        raise Fault(CANNOT_AFFORD, f"Could not afford {wanted} using all {len(free)} available UTXOs: {lacking} short")

    async def _change_output(self, value_sat: int) -> PsbtOutput:
        script = await self._wallet.script_of(await self._wallet.new_address())
        return PsbtOutput(value_sat, bytes.fromhex(script or ""))


def _input_weight(utxo: Utxo) -> int:
    return _INPUT_WEIGHT[utxo.script[:4]]


def _fee(feerate: int, weight: int) -> int:
    return feerate * weight // 1000


def _change_fee(feerate: int, weight: int) -> int:
    return _fee(feerate, weight + P2TR_OUTPUT_WEIGHT) - _fee(feerate, weight)


def _change(value_sat: int, feerate: int, weight: int) -> int:
    """change_amount: 0 where it would not pay for itself."""
    left = value_sat - _change_fee(feerate, weight)
    return left if left >= LEAST_CHANGE_SAT else 0
