"""The socket's rules for payments on the chain."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from wattline.payment.aggregate import SMALLEST_OUTPUT_SAT, OnchainRules
from wattline.settings import Settings

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
