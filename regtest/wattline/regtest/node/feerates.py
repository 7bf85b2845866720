"""Fee rates: bitcoind's estimates as lightningd tells and reads them (lightningd/chaintopology.c, feerate.c)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from wattline.regtest.bitcoind_rpc import SAT_PER_BTC
from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.rpc_server import Given

Json = dict[str, Any]
Ask = Callable[..., Awaitable[Any]]
FLOOR_PER_KW = 253
"""lightningd's least: bitcoind rounds up what 250 would be."""
ANCHOR_CLOSE_PER_KW = 1250
BLOCKCOUNTS = (2, 6, 12, 100)
_PER_KB_OF_KW = 4
# Weights of the transactions that lightningd gives estimates for.
_OPENING, _MUTUAL_CLOSE, _UNILATERAL_CLOSE, _UNILATERAL_ANCHOR_CLOSE = 702, 673, 598, 1112
_HTLC_TIMEOUT, _HTLC_SUCCESS = 663, 703
_NAMED = {"urgent": 6, "normal": 12, "slow": 100, "opening": 12}
"""Of how many blocks the named ones are the estimate."""


class Feerates:
    """``ask`` asks bitcoind."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def list(self, given: Given, _: str) -> Json:
        """``feerates``."""
        params = Parameters(given, ("style",))
        style = params.text("style")
        if style not in ("perkw", "perkb"):
            raise Fault(INVALID_PARAMETERS, f"'style' should be 'perkw' or 'perkb', not '\"{style}\"'")
        floor = await self._floor()
        estimates = {count: max(floor, await self._estimate(count)) for count in BLOCKCOUNTS}
        urgent, normal, slow = estimates[6], estimates[12], estimates[100]
        anchor_close = max(ANCHOR_CLOSE_PER_KW, urgent)
        factor = _PER_KB_OF_KW if style == "perkb" else 1
        rates = {
            "opening": normal,
            "mutual_close": slow,
            "unilateral_close": urgent,
            "unilateral_anchor_close": anchor_close,
            "penalty": normal,
            "splice": normal * 102 // 100,
            "min_acceptable": floor,
            "max_acceptable": 10 * estimates[2],
            "floor": floor,
        }
        return {
            style: {
                **{name: rate * factor for name, rate in rates.items()},
                "estimates": [
                    {"blockcount": count, "feerate": rate * factor, "smoothed_feerate": rate * factor}
                    for count, rate in estimates.items()
                ],
            },
            "onchain_fee_estimates": {
                "opening_channel_satoshis": normal * _OPENING // 1000,
                "mutual_close_satoshis": slow * _MUTUAL_CLOSE // 1000,
                "unilateral_close_satoshis": anchor_close * _UNILATERAL_ANCHOR_CLOSE // 1000,
                "unilateral_close_nonanchor_satoshis": urgent * _UNILATERAL_CLOSE // 1000,
                "htlc_timeout_satoshis": urgent * _HTLC_TIMEOUT // 1000,
                "htlc_success_satoshis": urgent * _HTLC_SUCCESS // 1000,
            },
        }

    async def opening(self) -> int:
        """For a transaction that need not be quick."""
        return max(await self._floor(), await self._estimate(_NAMED["opening"]))

    async def read(self, params: Parameters, name: str) -> int:
        """A parameter as satoshi per 1000 weight units, never below lightningd's least."""
        text = params.text(name, "opening")
        if text in _NAMED:
            return max(await self._floor(), await self._estimate(_NAMED[text]))
        if text == "minimum":
            return await self._floor()
        number = re.fullmatch(r"([0-9]+)(perkw|perkb)?", text)
        if number is None:
            raise Fault(INVALID_PARAMETERS, f"'{name}' should be an integer with optional perkw/perkb, not '{text}'")
        per_kw = int(number[1]) if number[2] == "perkw" else -(-int(number[1]) // _PER_KB_OF_KW)
        return max(per_kw, FLOOR_PER_KW)

    async def _floor(self) -> int:
        info = await self._ask("getmempoolinfo")
        return max(FLOOR_PER_KW, _per_kw(max(info["mempoolminfee"], info["minrelaytxfee"])))

    async def _estimate(self, blockcount: int) -> int:
        """0 where bitcoind has none."""
        mode = "CONSERVATIVE" if blockcount == BLOCKCOUNTS[0] else "ECONOMICAL"
        estimate = await self._ask("estimatesmartfee", blockcount, mode)
        return _per_kw(estimate["feerate"]) if "feerate" in estimate else 0


def _per_kw(btc_per_kvb: Decimal) -> int:
    return -(-int(Decimal(btc_per_kvb) * SAT_PER_BTC) // _PER_KB_OF_KW)
