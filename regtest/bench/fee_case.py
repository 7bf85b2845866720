"""What the benchmark of fees compares: sessions, prices, and what one way of paying one session came to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from wattline.core.aggregate import MSAT_PER_SAT
from wattline.core.tariff import Tariff, cost_msat


class Way(StrEnum):
    """How the micropayments of a session are made."""

    NAIVE = "one tx each"
    AGGREGATE = "aggregate"
    KEYSEND = "keysend"


@dataclass(frozen=True, slots=True)
class Load:
    """A session's energy."""

    name: str
    energy_uwh: int
    told: str


@dataclass(frozen=True, slots=True)
class Price:
    """A tariff without time price and fee."""

    name: str
    energy_msat_per_kwh: int

    @property
    def told(self) -> str:
        return f"{self.name}: {self.energy_msat_per_kwh // MSAT_PER_SAT:,} sat/kWh"


LOADS = (
    Load("toast", 10_833_333, "1300 W for 30 s, 10.8 Wh"),
    Load("phone", 15_000_000, "a full battery, 15 Wh"),
    Load("EV", 20_000_000_000, "about 100 km, 20 kWh"),
)
PRICES = (Price("everyday", 300_000), Price("dear", 200_000_000))
"""At the second one, each of 1000 micropayments for the EV is far above dust."""
COUNTS = (1, 10, 100, 1000)


@dataclass(frozen=True, slots=True)
class Case:
    """A session's worth, in so many micropayments."""

    price: Price
    load: Load
    payments: int

    @property
    def value_msat(self) -> int:
        tariff = Tariff.of(energy_msat_per_kwh=self.price.energy_msat_per_kwh)
        return cost_msat(tariff, self.load.energy_uwh, 0, started=True)

    @property
    def value_sat(self) -> int:
        """What the chain needs for it: rounded up."""
        return -(-self.value_msat // MSAT_PER_SAT)

    def totals_msat(self) -> list[int]:
        """What has been paid after each micropayment; they differ by 1 msat at the most."""
        return [self.value_msat * number // self.payments for number in range(1, self.payments + 1)]

    def payments_sat(self) -> list[int]:
        """Each micropayment rounded up to whole satoshi, as the chain wants it."""
        totals = [0, *self.totals_msat()]
        return [-(-(now - before) // MSAT_PER_SAT) for before, now in pairwise(totals)]

    def versions_sat(self, floor_sat: int) -> list[int] | None:
        """The values of the aggregate's versions, each larger than the one before, the last one the session's. The
        first pays the floor where a micropayment is less: then the others share the rest. None when there are fewer
        whole satoshi than versions above the floor."""
        first_sat = max(floor_sat, -(-self.value_sat // self.payments))
        rest_sat, others = self.value_sat - first_sat, self.payments - 1
        if rest_sat < others:
            return None
        return [first_sat, *(first_sat + rest_sat * number // others for number in range(1, others + 1))]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way made of one case."""

    case: Case
    way: Way
    refused: str = ""
    """Why this way cannot pay at all; empty when it can, and then all else is measured."""
    paid_msat: int = 0
    """What the socket's node says that it received."""
    fee_msat: int = 0
    vbytes: int = 0
    """On the chain."""
    transactions: int = 0
    blocks: int = 0
    """Mined before the last payment was confirmed; on Bitcoin each of them takes ten minutes."""
    paying_s: float = 0.0
    """From the first micropayment until the last one was taken by the socket (on-chain one by one: by the mempool)."""

    @property
    def per_s(self) -> float:
        return self.case.payments / self.paying_s if self.paying_s else 0.0

    @property
    def fee_percent(self) -> float:
        """Of the session's worth."""
        return 100 * self.fee_msat / self.case.value_msat

    def to_json(self) -> dict[str, object]:
        return {
            "tariff": self.case.price.name,
            "energy_msat_per_kwh": self.case.price.energy_msat_per_kwh,
            "session": self.case.load.name,
            "energy_uwh": self.case.load.energy_uwh,
            "value_msat": self.case.value_msat,
            "payments": self.case.payments,
            "way": self.way.value,
            "refused": self.refused or None,
            "paid_msat": self.paid_msat,
            "fee_msat": self.fee_msat,
            "vbytes": self.vbytes,
            "transactions": self.transactions,
            "blocks": self.blocks,
            "paying_s": round(self.paying_s, 3),
            "per_s": round(self.per_s, 1),
        }
