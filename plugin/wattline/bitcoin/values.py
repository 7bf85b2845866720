"""bitcoind's answers as wattline's own types: amounts in satoshi, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

from wattline.bitcoin.chain import ChainRefused, Outpoint, Tx, TxInput, TxOutput

SAT_PER_BTC = 100_000_000
VBYTES_PER_KW = 250
"""1000 weight units are 250 virtual bytes (BIP 141)."""

_NO_OUTPOINT = Outpoint("00" * 32, 0xFFFFFFFF)
"""What a coinbase's only input spends."""


def sat_of(amount_btc: Decimal | int) -> int:
    """An amount in BTC as satoshi. Raises ValueError when it is no whole number of them, or no exact number at all."""
    if not isinstance(amount_btc, (Decimal, int)) or isinstance(amount_btc, bool):
        raise ValueError(f"{amount_btc!r} is no exact amount")  # noqa: TRY004 - a value of bitcoind's, no caller's mistake
    value = Fraction(amount_btc) * SAT_PER_BTC
    if value.denominator != 1:
        raise ValueError(f"{amount_btc} BTC are no whole number of satoshi")
    return int(value)


def feerate_per_kw_of(feerate_btc_per_kvb: Decimal | int) -> int:
    """A fee rate in BTC per 1000 virtual bytes as satoshi per 1000 weight units, rounded up."""
    return -(-sat_of(feerate_btc_per_kvb) * VBYTES_PER_KW // 1000)


def tx_of(row: Mapping[str, Any], raw: str) -> Tx:
    """A transaction as ``decoderawtransaction`` and ``getblock`` tell it, whose serialization is ``raw``. Raises
    KeyError, TypeError or ValueError for anything else."""
    return Tx(
        txid=row["txid"],
        version=row["version"],
        locktime=row["locktime"],
        inputs=tuple(_input_of(item) for item in row["vin"]),
        outputs=tuple(TxOutput(sat_of(item["value"]), item["scriptPubKey"]["hex"]) for item in row["vout"]),
        vsize=row["vsize"],
        raw=raw,
    )


def _input_of(item: Mapping[str, Any]) -> TxInput:
    if "coinbase" in item:
        return TxInput(_NO_OUTPOINT, item["sequence"])
    outpoint = Outpoint(item["txid"], item["vout"])
    return TxInput(outpoint, item["sequence"], item["scriptSig"]["hex"], tuple(item.get("txinwitness", ())))


@contextmanager
def reading(method: str) -> Iterator[None]:
    """Turns a missing or wrong field of bitcoind's answer into ChainRefused."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChainRefused(
            "bitcoind_refused", f"{method}: unexpected answer: {type(error).__name__}: {error}"
        ) from error
