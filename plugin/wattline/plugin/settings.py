"""What a socket offers, as ``socket.toml`` says it: outlets with their meters and relays, prices, rules of a session.

Apart from the plugin, because the command line reads that file as well.

The socket's rules for payments on the chain.

The socket's configuration: what it sells, from which outlets, under which rules.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from wattline.core.aggregate import MSAT_PER_SAT, SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.core.bitcoin.bitcoind_rpc import BitcoindSettings
from wattline.core.errors import UsageError
from wattline.core.lightning.node import is_node_id
from wattline.core.session.session import Terms
from wattline.core.settings import Settings
from wattline.core.tariff import MAX_PRICE_MSAT, Tariff
from wattline.device.i2c.linux import bus_name
from wattline.device.meters.opening import MeterSettings
from wattline.device.meters.reading import MIN_VOLTAGE_MV
from wattline.device.relays.opening import RelaySettings, check_relays

Sat = Annotated[int, Field(ge=1, le=21_000_000 * 100_000_000)]


class OnchainSettings(Settings):
    """Sessions that are paid by one growing transaction, for cables without a Lightning route."""

    enabled: bool = Field(
        default=False, description="Take this method, too; needs a bitcoind (lightningd's own is found by itself)."
    )
    floor_sat: Annotated[int, Field(ge=SMALLEST_OUTPUT_SAT, le=1_000_000)] = Field(
        default=SMALLEST_OUTPUT_SAT, description="The smallest value that a session's transaction may pay, sat."
    )
    credit_cap_sat: Sat = Field(default=2_000, description="The most unused credit taken for one session, sat.")
    exposure_cap_sat: Sat = Field(
        default=10_000,
        description="The most that one session may pay: it can all be lost until it is confirmed, sat.",
    )
    total_exposure_cap_sat: Sat = Field(
        default=50_000, description="The same for all sessions of the socket together, sat."
    )
    min_feerate_per_kw: Annotated[int, Field(ge=253, le=1_000_000)] = Field(
        default=253, description="The lowest fee rate taken, sat per 1000 weight units (253 is about 1 sat/vB)."
    )
    max_feerate_per_kw: Annotated[int, Field(ge=253, le=10_000_000)] = Field(
        default=125_000, description="The highest fee rate taken, sat per 1000 weight units."
    )
    max_age_s: Annotated[int, Field(ge=60, le=86_400)] = Field(
        default=21_600, description="After so long a session ends and its transaction is broadcast, s."
    )
    input_confirmations: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Confirmations that the cable's inputs must have."
    )
    max_inputs: Annotated[int, Field(ge=1, le=50)] = Field(default=5, description="The most inputs taken.")
    final_timeout_s: Annotated[int, Field(ge=1, le=60)] = Field(
        default=10, description="How long the cable may take to sign the version that pays the exact charge, s."
    )
    confirmations: Annotated[int, Field(ge=1, le=100)] = Field(
        default=6, description="With so many confirmations a transaction counts as final."
    )
    bump_after_blocks: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=6, description="A transaction that waits for so many blocks is helped by a child that pays more."
    )
    watch_interval_ms: Annotated[int, Field(ge=50, le=10_000)] = Field(
        default=250, description="How often the cables' inputs are looked at, ms."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for low, high in (
            ("floor_sat", "credit_cap_sat"),
            ("floor_sat", "exposure_cap_sat"),
            ("exposure_cap_sat", "total_exposure_cap_sat"),
            ("min_feerate_per_kw", "max_feerate_per_kw"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}: must not exceed {high} ({getattr(self, low)} > {getattr(self, high)})")
        return self

    @property
    def rules(self) -> OnchainRules:
        """What a cable is told."""
        return OnchainRules(
            floor_sat=self.floor_sat,
            credit_cap_sat=self.credit_cap_sat,
            exposure_cap_sat=self.exposure_cap_sat,
            min_feerate_per_kw=self.min_feerate_per_kw,
            max_feerate_per_kw=self.max_feerate_per_kw,
            max_age_s=self.max_age_s,
            input_confirmations=self.input_confirmations,
            max_inputs=self.max_inputs,
        )


Price = Annotated[int, Field(ge=0, le=MAX_PRICE_MSAT)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]

OUTLET_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class TariffSettings(Settings):
    """Prices for sessions opened from now on; `wattline-tariff` changes them while the plugin runs."""

    energy_msat_per_kwh: Price = Field(default=300_000, description="Price of energy, msat per kWh.")
    time_msat_per_hour: Price = Field(default=0, description="Price of time while delivering, msat per hour.")
    session_fee_msat: Price = Field(default=0, description="Once per session, due when delivery begins, msat.")

    def as_tariff(self) -> Tariff:
        return Tariff.of(
            energy_msat_per_kwh=self.energy_msat_per_kwh,
            time_msat_per_hour=self.time_msat_per_hour,
            session_fee_msat=self.session_fee_msat,
        )


class OutletSettings(Settings):
    """One metered, switched output."""

    outlet_id: str = Field(description="Name of the outlet, as cables ask for it.")
    max_power_w: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="Rated power, W; more than 5 % above it stops delivery."
    )
    min_voltage_mv: Annotated[int, Field(ge=100, le=85_000)] = Field(
        default=MIN_VOLTAGE_MV,
        description="Below this the supply is gone: no time is charged and the session ends, mV.",
    )
    meter_before_relay: bool = Field(
        default=False,
        description="The meter sees the supply through an open relay, too: without it the outlet is not sold.",
    )
    meter: MeterSettings = Field(description="The energy meter of this outlet.")
    relay: RelaySettings = Field(description="The relay of this outlet.")

    @field_validator("outlet_id")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not OUTLET_ID.fullmatch(value):
            raise ValueError(
                "an outlet_id is 1 to 32 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            )
        return value

    @model_validator(mode="after")
    def _meter_sees_the_supply(self) -> Self:
        try:
            self.meter.check_voltage(self.min_voltage_mv)
        except ValueError as error:
            raise ValueError(f"min_voltage_mv: {error}") from error
        return self


class SessionSettings(Settings):
    """Rules of a session."""

    meter_interval_ms: Annotated[int, Field(ge=20, le=400)] = Field(
        default=100, description="How often an outlet is measured, ms (the relay's lease is at most 1000)."
    )
    statement_interval_ms: Annotated[int, Field(ge=100, le=60_000)] = Field(
        default=1000, description="How often the cable gets a statement while energy flows, ms."
    )
    credit_cap_msat: Annotated[int, Field(ge=1000, le=10_000_000_000)] = Field(
        default=100_000, description="The most unused credit taken for one session, payments in flight included, msat."
    )
    min_refund_msat: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        default=100, description="Unused credit below this is kept at the end, msat."
    )
    open_timeout_s: Seconds = Field(default=30, description="How long a session waits for its first payment, s.")
    pause_max_s: Seconds = Field(default=300, description="How long a paused session waits for the next payment, s.")
    cable_lost_s: Seconds = Field(default=60, description="How long a session outlives its connection, s.")
    offer_valid_s: Seconds = Field(default=60, description="How long a signed offer is valid, s.")

    @model_validator(mode="after")
    def _leases_can_be_renewed(self) -> Self:
        if self.statement_interval_ms < self.meter_interval_ms:
            raise ValueError("statement_interval_ms must not be below meter_interval_ms")
        return self


class PaymentSettings(Settings):
    """How payments are taken and booked."""

    min_increment_msat: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        default=10, description="The smallest increment that is taken; a smaller payment is failed, msat."
    )
    max_payments_per_s: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=30,
        description="Above this rate over all sessions, larger ones are asked of who sends most.",
    )
    journal_interval_s: Annotated[int, Field(ge=1, le=60)] = Field(
        default=2, description="How often paid invoices are booked into the ledger, s."
    )
    drain_timeout_s: Annotated[int, Field(ge=1, le=60)] = Field(
        default=10, description="How long a settlement waits for payments in flight, s."
    )
    refund_retry_s: Annotated[int, Field(ge=1, le=86_400)] = Field(
        default=60, description="How often a refund that could not be sent is tried again, s."
    )


class AccessSettings(Settings):
    """Who may open a session."""

    allow_node_ids: list[str] = Field(
        default_factory=list,
        description="Only cables that sign their open with one of these node ids; empty: everybody.",
    )

    @field_validator("allow_node_ids")
    @classmethod
    def _are_node_ids(cls, value: list[str]) -> list[str]:
        for node_id in value:
            if not is_node_id(node_id):
                raise ValueError(f"{node_id!r} is not a node id: 66 lower-case hex digits beginning with 02 or 03")
        return value


class LimitSettings(Settings):
    """How much peers that have not paid may ask for, by address, node id and session. Those that have do not count."""

    opens_per_minute: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=60, description="Sessions that an address may open a minute without paying for them."
    )
    offers_per_minute: Annotated[int, Field(ge=2, le=100_000)] = Field(
        default=240, description="Offers and receipts that are signed a minute for an address."
    )
    onchain_refusals_per_minute: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=60, description="Invitations and refused versions a minute; beyond, nothing is looked at."
    )
    unpaid_sessions: Annotated[int, Field(ge=1, le=56)] = Field(
        default=48, description="Sessions that may be open at once without having paid, all outlets together."
    )


class LedgerSettings(Settings):
    """Where the durable record is kept."""

    url: str = Field(
        default="socket.sqlite3",
        description="A file (relative to this one) or a SQLAlchemy URL such as postgresql+psycopg://...",
    )


class SupervisionSettings(Settings):
    """The separate process that holds the relays."""

    restart_plugin: bool = Field(
        default=True, description="The guard starts the plugin again when it died while lightningd still runs."
    )


class SocketSettings(Settings):
    """The whole file."""

    tariff: TariffSettings = TariffSettings()
    outlet: list[OutletSettings] = Field(min_length=1, description="One [[outlet]] per metered, switched output.")
    session: SessionSettings = SessionSettings()
    payment: PaymentSettings = PaymentSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    onchain: OnchainSettings = OnchainSettings()
    bitcoind: BitcoindSettings = BitcoindSettings()
    ledger: LedgerSettings = LedgerSettings()
    guard: SupervisionSettings = SupervisionSettings()

    @model_validator(mode="after")
    def _one_outlet_one_meter_one_relay(self) -> Self:
        names = [outlet.outlet_id for outlet in self.outlet]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two outlets are called {', '.join(twice)}; each outlet_id needs to be its own")
        meters: dict[tuple[int | str, int], str] = {}
        for outlet in self.outlet:
            meter = outlet.meter
            other = meters.setdefault((bus_name(meter.bus), meter.address), outlet.outlet_id)
            if other != outlet.outlet_id:
                raise ValueError(
                    f"outlets {other} and {outlet.outlet_id} share one meter ({meter.driver} on bus {meter.bus!r} at "
                    f"{meter.address:#04x}); each outlet needs its own"
                )
        check_relays((outlet.outlet_id, outlet.relay) for outlet in self.outlet)
        return self

    @model_validator(mode="after")
    def _sessions_can_begin(self) -> Self:
        tariff = self.tariff.as_tariff()
        for outlet in self.outlet:
            try:
                self.terms(outlet.outlet_id, tariff)
            except UsageError as error:
                key = error.message if error.message.startswith("onchain.") else f"session.{error.message}"
                raise ValueError(f"{key} (outlet {outlet.outlet_id})") from error
        return self

    @model_validator(mode="after")
    def _increments_fit_into_the_cap(self) -> Self:
        least_msat, most_msat = self.payment.min_increment_msat, self.session.credit_cap_msat
        if least_msat > most_msat:
            raise ValueError(
                f"payment.min_increment_msat: must not exceed session.credit_cap_msat, or every payment is refused"
                f" ({least_msat} > {most_msat})"
            )
        return self

    def terms(self, outlet_id: str, tariff: Tariff) -> Terms:
        """What a session on that outlet is opened under at these prices. Raises UsageError when none could begin."""
        (outlet,) = (outlet for outlet in self.outlet if outlet.outlet_id == outlet_id)
        terms = self._terms(outlet, tariff)
        start_sat = -(-terms.start_msat // MSAT_PER_SAT)
        for key in ("credit_cap_sat", "exposure_cap_sat"):
            cap_sat = getattr(self.onchain, key)
            if self.onchain.enabled and cap_sat < start_sat:
                raise UsageError(
                    "terms_invalid",
                    f"onchain.{key}: no session could begin: {start_sat} sat or more are needed for {terms.start_ms} ms"
                    f" at the rated power of {terms.rated_power_mw} mW and the session fee, not {cap_sat}",
                )
        return terms

    def _terms(self, outlet: OutletSettings, tariff: Tariff) -> Terms:
        return Terms(
            tariff=tariff,
            rated_power_mw=outlet.max_power_w * 1000,
            meter_interval_ms=self.session.meter_interval_ms,
            pause_max_s=self.session.pause_max_s,
            open_timeout_s=self.session.open_timeout_s,
            cable_lost_s=self.session.cable_lost_s,
            credit_cap_msat=self.session.credit_cap_msat,
            min_refund_msat=self.session.min_refund_msat,
        )
