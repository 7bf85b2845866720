"""What a version of an aggregate must look like: its shape, its fee, and signatures that cover everything. Pure.

What only a node of the chain can tell (inputs confirmed and unspent, valid signatures, policy) is asked by whoever
calls this. Only single-key outputs are taken: a Lightning node's wallet has no others, and the txid of a transaction
that spends them cannot be changed by anybody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wattline.core.aggregate import SMALLEST_OUTPUT_SAT, OnchainRules, VersionRefused
from wattline.core.bitcoin.chain import Outpoint, Tx, TxInput, TxOutput, Unspent
from wattline.core.bitcoin.transaction import P2TR, P2WPKH

WEIGHT_PER_VBYTE = 4
LOWEST_SEQUENCE = 0xFFFFFFFD
"""Below this a relative lock time is possible (BIP 68); from 0xFFFFFFFE on the transaction would not even signal
that it can be replaced (BIP 125), which changes nothing today and is allowed."""
MAX_OUTPUTS = 2
SIGHASH_ALL = "01"
_SCHNORR = re.compile(rf"[0-9a-f]{{128}}(?:{SIGHASH_ALL})?")
"""64 bytes mean SIGHASH_DEFAULT, which covers as much as SIGHASH_ALL (BIP 341)."""
_DER = re.compile(rf"30[0-9a-f]{{120,142}}{SIGHASH_ALL}")
"""A DER signature with its sighash byte at the end (BIP 66, BIP 143)."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A version that pays ``value_sat`` to the socket's script, by its shape and its inputs."""

    tx: Tx
    value_sat: int
    fee_sat: int
    vout: int
    """Which output is the socket's."""
    spent: tuple[TxOutput, ...]
    """What each of its inputs spends, as the chain knows it."""

    @property
    def feerate_per_kw(self) -> int:
        """Rounded down."""
        return feerate_per_kw(self.fee_sat, self.tx.vsize)


def feerate_per_kw(fee_sat: int, vsize: int) -> int:
    """Satoshi per 1000 weight units, rounded down."""
    return fee_sat * 1000 // (vsize * WEIGHT_PER_VBYTE)


def fee_bounds_sat(vsize: int, min_feerate_per_kw: int, max_feerate_per_kw: int) -> tuple[int, int]:
    """The lowest and the highest fee that keep to these rates, for whoever reckons by weight and rounds the fee up.

    A transaction of ``vsize`` weighs up to 3 units less than its whole virtual bytes (BIP 141), so the lowest fee is
    that of the lightest one and the highest that of the heaviest. What the mempool asks for, by virtual bytes, is for
    its verdict to say.
    """
    heaviest = vsize * WEIGHT_PER_VBYTE
    lightest = heaviest - (WEIGHT_PER_VBYTE - 1)
    return -(-min_feerate_per_kw * lightest // 1000), -(-max_feerate_per_kw * heaviest // 1000)


def prove(
    tx: Tx,
    script: str,
    rules: OnchainRules,
    inputs: Mapping[Outpoint, Unspent | None],
    floor_per_kw: int,
) -> Proven:
    """Check the shape of a version.

    ``inputs`` is what the chain (without the mempool) knows of everything that ``tx`` spends; ``floor_per_kw`` is the
    mempool's present floor. Raises VersionRefused.
    """
    if not tx.inputs or len(tx.outpoints) != len(tx.inputs):
        raise VersionRefused("other_inputs", "a version must spend something, and each of its inputs once")
    if len(tx.inputs) > rules.max_inputs:
        raise VersionRefused("other_inputs", f"at most {rules.max_inputs} inputs are taken, not {len(tx.inputs)}")
    if tx.version != 2:
        # Version 3 (TRUC, BIP 431) has relay rules of its own that this socket does not reckon with.
        raise VersionRefused("bad_version", f"the transaction version must be 2, not {tx.version}")
    if tx.locktime != 0:
        raise VersionRefused("bad_locktime", f"locktime must be 0, not {tx.locktime}: it could not be mined at once")
    for item in tx.inputs:
        if item.sequence < LOWEST_SEQUENCE:
            raise VersionRefused(
                "bad_sequence",
                f"the sequence of input {item.outpoint} must be {LOWEST_SEQUENCE:#x} or more, not {item.sequence:#x}: "
                "it could be a relative lock time",
            )
    spent = []
    for item in tx.inputs:
        outpoint = item.outpoint
        unspent = inputs.get(outpoint)
        if unspent is None:
            raise VersionRefused("input_spent", f"input {outpoint} is spent, or not confirmed yet, or does not exist")
        if unspent.confirmations < rules.input_confirmations:
            raise VersionRefused(
                "input_unconfirmed",
                f"input {outpoint} has {unspent.confirmations} confirmations, {rules.input_confirmations} are needed",
            )
        spent.append(TxOutput(unspent.value_sat, unspent.script))
    ours = [number for number, output in enumerate(tx.outputs) if output.script == script]
    if len(ours) != 1:
        raise VersionRefused(
            "wrong_output", f"exactly one output must pay to the session's address, not {len(ours)}: {script}"
        )
    if len(tx.outputs) > MAX_OUTPUTS:
        raise VersionRefused(
            "wrong_output", f"one output beside the session's is allowed (change), not {len(tx.outputs) - 1}"
        )
    for output in tx.outputs:
        if output.value_sat < SMALLEST_OUTPUT_SAT:
            raise VersionRefused(
                "dust_output", f"an output of {output.value_sat} sat is dust; at least {SMALLEST_OUTPUT_SAT} sat"
            )
    value_sat = tx.outputs[ours[0]].value_sat
    if value_sat < rules.floor_sat:
        raise VersionRefused("dust_output", f"{value_sat} sat are below the floor of {rules.floor_sat} sat")
    fee_sat = sum(output.value_sat for output in spent) - sum(output.value_sat for output in tx.outputs)
    lowest = max(rules.min_feerate_per_kw, floor_per_kw)
    least_sat, most_sat = fee_bounds_sat(tx.vsize, lowest, rules.max_feerate_per_kw)
    if fee_sat < least_sat:
        raise VersionRefused(
            "fee_too_low",
            f"a fee of {fee_sat} sat is too low: at least {lowest} sat/kw, {least_sat} sat here",
        )
    if fee_sat > most_sat:
        raise VersionRefused(
            "fee_too_high",
            f"a fee of {fee_sat} sat is too high: at most {rules.max_feerate_per_kw} sat/kw, {most_sat} sat here",
        )
    return Proven(tx, value_sat, fee_sat, ours[0], tuple(spent))


def check_signatures(tx: Tx, inputs: Mapping[Outpoint, Unspent | None]) -> None:
    """Every input is a P2TR key path or a P2WPKH, and its signature covers all inputs and outputs. ``inputs`` is what
    the chain knows of them. Raises VersionRefused ``bad_input`` or ``not_signed``."""
    for item in tx.inputs:
        unspent = inputs.get(item.outpoint)
        script = unspent.script if unspent is not None else ""
        if P2TR.fullmatch(script):
            signature = _only(item, 1, _SCHNORR)
        elif P2WPKH.fullmatch(script):
            signature = _only(item, 2, _DER)
        else:
            raise VersionRefused(
                "bad_input", f"input {item.outpoint} must be P2TR or P2WPKH, of one key; its script is {script}"
            )
        if not signature:
            raise VersionRefused(
                "not_signed",
                f"input {item.outpoint} must be signed by its key alone, with SIGHASH_ALL (or DEFAULT for P2TR)",
            )


def _only(item: TxInput, length: int, form: re.Pattern[str]) -> bool:
    """The witness has so many elements, the first of them of that form, and nothing stands outside of it."""
    return item.script_sig == "" and len(item.witness) == length and form.fullmatch(item.witness[0]) is not None
