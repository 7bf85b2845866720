"""What the settings of all meters have in common that measure the voltage over a shunt."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from wattline.bus import check_bus_spec
from wattline.settings import Settings


class ShuntSettings(Settings):
    """A chip on an I2C bus, and its shunt."""

    CHIP: ClassVar[str]
    RANGE_UV: ClassVar[int]
    """The highest voltage over the shunt that the chip measures, microvolts."""
    LEAST_RANGE_UV: ClassVar[int]
    """The smallest that is worth it: below, the offset of the chip would be too much of it."""
    OFFSET_UV: ClassVar[int]
    """The highest offset of the shunt voltage by the data sheet, microvolts: so much may show without any current."""

    driver: str
    bus: int | str = Field(description="Number N of /dev/i2c-N, or 'sim:PROFILE[/INSTANCE]' for a simulated bus.")
    address: int = Field(ge=0x40, le=0x4F, description="I2C address, 0x40 to 0x4F by the pins A0 and A1.")
    shunt_ohms: float = Field(gt=0, le=10, description="Resistance of the shunt, ohms.")
    max_current_a: float = Field(gt=0, le=10_000, description="The highest current to be measured, A.")

    @field_validator("bus")
    @classmethod
    def _is_a_bus(cls, value: int | str) -> int | str:
        return check_bus_spec(value)

    @model_validator(mode="after")
    def _fits_the_adc(self) -> Self:
        microvolts = self.shunt_nohm * self.max_current_ua / 10**9
        if self.shunt_nohm < 1 or not self.LEAST_RANGE_UV <= microvolts <= self.RANGE_UV:
            raise ValueError(
                f"max_current_a x shunt_ohms is {microvolts / 1000:g} mV; an {self.CHIP} measures up to"
                f" {self.RANGE_UV / 1000} mV and needs at least {self.LEAST_RANGE_UV / 1000:g} mV to be exact"
            )
        return self

    @property
    def shunt_nohm(self) -> int:
        """Resistance of the shunt in nano-ohms."""
        return round(Decimal(str(self.shunt_ohms)) * 10**9)

    @property
    def max_current_ua(self) -> int:
        return round(Decimal(str(self.max_current_a)) * 10**6)

    @property
    def offset_uv(self) -> int:
        """OFFSET_UV in the range that is used."""
        return self.OFFSET_UV

    @property
    def zero_ma(self) -> int:
        """Current that is told from none with certainty: the offset, and not less than 1/1000 of ``max_current_a``."""
        return max(self.offset_uv * 10**6 // self.shunt_nohm, self.max_current_ua // 10**6, 1)

    @property
    def chip_name(self) -> str:
        """The chip in errors."""
        return f"{self.CHIP} at {self.address:#04x} on bus {self.bus}"
