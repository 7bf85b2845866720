"""The money errors: what :func:`wattline.session.step` raises instead of going on."""

from __future__ import annotations

from wattline.errors import StopError


class CreditTooLateError(StopError):
    """A credit for a session that can no longer use it. Code ``session_closed``; book the payment as an orphan."""

    def __init__(self, session_id: str, amount_msat: int) -> None:
        super().__init__(
            "session_closed",
            f"session {session_id} can take no more credit: {amount_msat} msat are an orphan, to be refunded",
        )


class RefundTooLargeError(StopError):
    """A refund whose amount and fee are more than the unused credit. Code ``refund_too_large``."""

    def __init__(self, amount_msat: int, fee_msat: int, unused_msat: int) -> None:
        super().__init__(
            "refund_too_large",
            f"a refund of {amount_msat} msat with {fee_msat} msat of fee is more than the unused {unused_msat} msat",
        )


class RefundNotDueError(StopError):
    """Money was sent as a refund that this session did not ask for. Code ``refund_not_due``; somebody must look."""

    def __init__(self, session_id: str, amount_msat: int) -> None:
        super().__init__(
            "refund_not_due", f"session {session_id} owes no refund, yet {amount_msat} msat were sent as one"
        )
