"""The cable's configuration (``cable.toml``): whose power to buy, from which wallet, by which meter, up to what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wattline.cable.policy.budget import PPM, Caps
from wattline.cable.policy.offer import PriceLimits, why_never
from wattline.cable.policy.onchain import OnchainLimits
from wattline.cable.policy.reconciliation import Tolerance
from wattline.cable.policy.rhythm import Pace
from wattline.core.aggregate import SMALLEST_OUTPUT_SAT
from wattline.core.errors import UsageError
from wattline.core.settings import Settings, load_settings
from wattline.device.meters.opening import MeterSettings
from wattline.device.meters.reading import MIN_VOLTAGE_MV

Method = Literal["keysend", "onchain", "auto"]
Sat = Annotated[int, Field(ge=1, le=21_000_000 * 100_000_000)]
FeeratePerKw = Annotated[int, Field(ge=253, le=10_000_000)]
Msat = Annotated[int, Field(ge=0, le=21_000_000 * 100_000_000 * 1000)]
PositiveMsat = Annotated[int, Field(ge=1, le=21_000_000 * 100_000_000 * 1000)]

_ADDRESS = re.compile(
    r"(?:(?P<node>[^@]*)@)?(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^@\[\]:/\s]+):(?P<port>[0-9]{1,5})", re.ASCII
)
_NODE_ID = re.compile(r"0[23][0-9a-f]{64}")
STORAGE_NAME = "cable.sqlite3"


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where a socket listens, and who it must be."""

    host: str
    port: int
    node_id: str | None
    """33-byte compressed public key, hex; None: whoever answers."""

    @property
    def target(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> SocketAddress:
    """``node_id@host:port`` or ``host:port``. Raises ValueError saying what is wrong."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("an address is node_id@host:port (or host:port with any_node = true)")
    node_id, port = match["node"], int(match["port"])
    if node_id is not None and not _NODE_ID.fullmatch(node_id):
        raise ValueError("the part before '@' must be a node id: 66 lower-case hex digits beginning with 02 or 03")
    if not 1 <= port <= 65535:
        raise ValueError("the port must be 1 to 65535")
    return SocketAddress(match["host"].strip("[]"), port, node_id)


class CableSocketSettings(Settings):
    """Whose power to buy."""

    address: str = Field(description="The socket as node_id@host:port; host:port alone needs any_node = true.")
    any_node: bool = Field(
        default=False, description="Pay whoever answers at host:port: nobody vouches that it is your socket."
    )
    outlet_id: str | None = Field(default=None, description="Which outlet; the first available one when left out.")

    @property
    def parsed(self) -> SocketAddress:
        return parse_address(self.address)

    @model_validator(mode="after")
    def _names_its_socket(self) -> Self:
        try:
            parsed = self.parsed
        except ValueError as error:
            raise ValueError(f"address: {error}") from error
        if parsed.node_id is None and not self.any_node:
            raise ValueError(
                "address: names no node; write node_id@host:port, or allow any node that answers with any_node = true"
            )
        if parsed.node_id is not None and self.any_node:
            raise ValueError("any_node: must be false or absent where address names a node id")
        return self


class CableNodeSettings(Settings):
    """The wallet that pays: a Core Lightning node on this machine."""

    rpc: str = Field(min_length=1, description="Path of the node's lightning-rpc file.")
    identify: bool = Field(
        default=False, description="Sign the open of a session with the node key (for sockets with an allow-list)."
    )


KEPT_PART, USUALLY_KEPT_MSAT, MOST_KEPT_MSAT = 5, 100, 10_000
"""Unless told otherwise a socket may keep this part of what is prepaid, or as much as sockets keep as they are shipped,
whichever is more, and never more than the last."""


class CableLimitSettings(Settings):
    """What the cable will at most agree to and pay."""

    max_price_msat_per_kwh: Msat = Field(description="The highest price of energy, msat per kWh.")
    max_time_price_msat_per_hour: Msat = Field(default=0, description="The highest price of time, msat per hour.")
    max_session_fee_msat: Msat = Field(default=0, description="The highest fee per session, msat.")
    max_prepaid_msat: PositiveMsat = Field(description="The most that is ever prepaid and in flight, msat.")
    max_session_msat: PositiveMsat = Field(
        description="The most that leaves the wallet for one session, fees included, msat."
    )
    max_day_msat: PositiveMsat = Field(
        description="The most that leaves the wallet within 24 hours, fees included, msat."
    )
    max_kept_msat: Msat | None = Field(
        default=None,
        description="The most unused credit that the socket may keep for itself: its min_refund_msat, msat; when left "
        "out a fifth of max_prepaid_msat, and not less than 100 nor more than 10_000.",
    )
    max_fee_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="The highest routing fee as a part of the amount paid, 0 to 1."
    )
    energy_tolerance_ratio: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.02, description="How far the two meters may differ, as a part of the energy, 0 to 0.5."
    )
    energy_tolerance_uwh: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = Field(
        default=1_000_000, description="And on top of that in microwatt-hours (1000000 = 1 Wh)."
    )
    min_voltage_mv: Annotated[int, Field(ge=100, le=85_000)] = Field(
        default=MIN_VOLTAGE_MV,
        description="Below this on the own meter nothing is delivered, whatever the socket says: the session ends, mV.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_prepaid_msat > self.max_session_msat:
            raise ValueError(
                f"max_prepaid_msat: must not exceed max_session_msat "
                f"({self.max_prepaid_msat} > {self.max_session_msat})"
            )
        if self.max_session_msat > self.max_day_msat:
            raise ValueError(
                f"max_session_msat: must not exceed max_day_msat ({self.max_session_msat} > {self.max_day_msat})"
            )
        return self

    @property
    def most_kept_msat(self) -> int:
        """The most unused credit that a socket may keep."""
        if self.max_kept_msat is not None:
            return self.max_kept_msat
        return min(max(USUALLY_KEPT_MSAT, self.max_prepaid_msat // KEPT_PART), MOST_KEPT_MSAT)

    @property
    def prices(self) -> PriceLimits:
        return PriceLimits(
            max_price_msat_per_kwh=self.max_price_msat_per_kwh,
            max_time_price_msat_per_hour=self.max_time_price_msat_per_hour,
            max_session_fee_msat=self.max_session_fee_msat,
            most_kept_msat=self.most_kept_msat,
        )

    @property
    def caps(self) -> Caps:
        return Caps(
            max_prepaid_msat=self.max_prepaid_msat,
            max_session_msat=self.max_session_msat,
            max_day_msat=self.max_day_msat,
            max_fee_ppm=round(self.max_fee_ratio * PPM),
        )

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(round(self.energy_tolerance_ratio * PPM), self.energy_tolerance_uwh)


class CablePaymentSettings(Settings):
    """How single payments are made."""

    method: Method = Field(
        default="keysend",
        description="How sessions are paid: over Lightning, by one on-chain transaction, or auto: over Lightning as "
        "long as that works, else on-chain.",
    )
    min_increment_msat: PositiveMsat = Field(default=10, description="The smallest payment, msat.")
    max_increment_msat: PositiveMsat = Field(default=10_000, description="The largest single payment, msat.")
    max_in_flight: Annotated[int, Field(ge=1, le=32)] = Field(default=4, description="Payments under way at a time.")
    max_failures_in_a_row: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10, description="After so many failed payments in a row the session ends."
    )
    pace_ms: Annotated[int, Field(ge=50, le=60_000)] = Field(
        default=500, description="At a steady load one payment is worth this much time, ms."
    )
    timeout_s: Annotated[int, Field(ge=5, le=600)] = Field(
        default=60, description="After this long an unresolved payment is in doubt, s."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.min_increment_msat > self.max_increment_msat:
            raise ValueError(
                f"min_increment_msat: must not exceed max_increment_msat "
                f"({self.min_increment_msat} > {self.max_increment_msat})"
            )
        return self

    @property
    def pace(self) -> Pace:
        return Pace(self.min_increment_msat, self.max_increment_msat, self.max_in_flight, self.pace_ms)


class CableOnchainSettings(Settings):
    """Sessions that are paid by one growing transaction. limits.max_session_msat and max_day_msat hold here, too."""

    max_prepaid_sat: Sat = Field(
        default=500, description="The most that is ever prepaid on-chain, beside the socket's floor, sat."
    )
    max_floor_sat: Annotated[int, Field(ge=SMALLEST_OUTPUT_SAT, le=100_000_000)] = Field(
        default=1_000,
        description="The largest floor agreed to: what the socket wants in advance, the least it is paid, sat.",
    )
    min_increment_sat: Sat = Field(default=1, description="By how much the transaction grows at least, sat.")
    max_increment_sat: Sat = Field(
        default=500, description="By how much it grows at most at a time (the first version may pay the floor), sat."
    )
    pace_ms: Annotated[int, Field(ge=50, le=60_000)] = Field(
        default=500, description="At a steady load it grows by this much time's worth, in whole sats, ms."
    )
    min_feerate_per_kw: FeeratePerKw = Field(
        default=253, description="The lowest fee rate, sat per 1000 weight units (253 is about 1 sat/vB)."
    )
    max_feerate_per_kw: FeeratePerKw = Field(
        default=25_000, description="The highest fee rate, sat per 1000 weight units."
    )
    max_fee_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="The highest miner fee as a part of the most that the session may come to, 0 to 1; where it is "
        "higher, no session is opened.",
    )
    max_fee_sat: Sat = Field(
        default=2_000, description="The highest miner fee of a session, whatever the fee rate and the session, sat."
    )
    min_confirmations: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Confirmations that an output of the wallet needs to be spent for a session."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for low, high in (
            ("min_increment_sat", "max_increment_sat"),
            ("min_increment_sat", "max_prepaid_sat"),
            ("min_feerate_per_kw", "max_feerate_per_kw"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}: must not exceed {high} ({getattr(self, low)} > {getattr(self, high)})")
        return self

    @property
    def limits(self) -> OnchainLimits:
        return OnchainLimits(**self.model_dump())


class CableStorageSettings(Settings):
    """Where the cable keeps what it must not forget."""

    path: str | None = Field(
        default=None, description=f"The ledger file, relative to this file; {STORAGE_NAME} beside it when left out."
    )


class CableSettings(Settings):
    """The whole file."""

    socket: CableSocketSettings
    node: CableNodeSettings
    meter: MeterSettings
    limits: CableLimitSettings
    payment: CablePaymentSettings = CablePaymentSettings()
    onchain: CableOnchainSettings = CableOnchainSettings()
    storage: CableStorageSettings = CableStorageSettings()

    @model_validator(mode="after")
    def _increments_fit_into_the_limits(self) -> Self:
        if self.payment.min_increment_msat > self.limits.max_prepaid_msat:
            raise ValueError("payment.min_increment_msat: must not exceed limits.max_prepaid_msat")
        limits = self.limits
        if self.payment.method == "keysend" and limits.max_session_fee_msat > limits.max_prepaid_msat:
            raise ValueError(
                "limits.max_session_fee_msat: must not exceed limits.max_prepaid_msat, out of which it would be paid"
            )
        try:
            self.meter.check_voltage(limits.min_voltage_mv)
        except ValueError as error:
            raise ValueError(f"limits.min_voltage_mv: {error}") from error
        return self


@dataclass(frozen=True, slots=True)
class CableConfig:
    """Settings and the file they came from, against which relative paths are read."""

    path: Path
    settings: CableSettings

    @property
    def storage_path(self) -> Path:
        """The ledger file."""
        return self._beside(self.settings.storage.path or STORAGE_NAME)

    @property
    def rpc_path(self) -> Path:
        """The node's ``lightning-rpc``."""
        return self._beside(self.settings.node.rpc)

    def _beside(self, text: str) -> Path:
        return self.path.absolute().parent / Path(text).expanduser()


def load_cable(path: Path) -> CableConfig:
    """The configuration in the file at ``path``. Raises UsageError naming file, key and what is allowed, also where
    nothing could ever be bought with it."""
    settings = load_settings(path, CableSettings)
    config = CableConfig(path, settings)
    never = why_never(settings.payment.method, settings.limits.caps, settings.payment.pace, settings.onchain.limits)
    if never is not None:
        raise UsageError("config_invalid", f"{path}: {never}")
    return config
