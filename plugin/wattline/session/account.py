"""The money of a session."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wattline.errors import StopError
from wattline.session.error import RefundTooLargeError


@dataclass(frozen=True, slots=True)
class Account:
    """What was received, earned and given back, in msat. Changes only by its methods, which keep the rules."""

    credited_msat: int = 0
    """Received for this session."""
    charged_msat: int = 0
    """Owed for what was delivered. May exceed the credit by the energy of less than a meter interval."""
    refunded_msat: int = 0
    """Given back, without the routing fee."""
    payments: int = 0
    """How many payments the credit came in."""

    def __post_init__(self) -> None:
        for name in ("credited_msat", "charged_msat", "refunded_msat", "payments"):
            _whole(name, getattr(self, name), 0)
        if self.refunded_msat and self.refunded_msat > self.credited_msat - self.charged_msat:
            raise StopError(
                "account_invalid",
                f"{self.refunded_msat} msat refunded of {self.credited_msat - self.charged_msat} msat unused credit",
            )

    @property
    def balance_msat(self) -> int:
        """credited - charged - refunded. Negative when more was delivered than was paid for."""
        return self.credited_msat - self.charged_msat - self.refunded_msat

    def credit(self, amount_msat: int) -> Account:
        """One more payment. Raises StopError ``amount_invalid`` unless it is positive."""
        _whole("amount_msat", amount_msat, 1)
        return replace(self, credited_msat=self.credited_msat + amount_msat, payments=self.payments + 1)

    def charge_to(self, total_msat: int) -> Account:
        """The charge is now ``total_msat`` altogether. Raises StopError ``charge_fell`` when it was more before: what
        was delivered stays delivered."""
        if total_msat < self.charged_msat:
            raise StopError("charge_fell", f"the charge cannot fall from {self.charged_msat} to {total_msat} msat")
        return replace(self, charged_msat=total_msat)

    def refund(self, amount_msat: int, fee_msat: int) -> Account:
        """``amount_msat`` went back and ``fee_msat`` were paid for its way, both out of the unused credit. Raises
        RefundTooLargeError when that is less, StopError ``amount_invalid`` for impossible amounts."""
        _whole("amount_msat", amount_msat, 1)
        _whole("fee_msat", fee_msat, 0)
        if amount_msat + fee_msat > self.balance_msat:
            raise RefundTooLargeError(amount_msat, fee_msat, self.balance_msat)
        return replace(self, refunded_msat=self.refunded_msat + amount_msat)


def _whole(name: str, value: object, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise StopError("amount_invalid", f"{name}: a whole number of at least {lowest}, not {value!r}")
