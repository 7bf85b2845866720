"""Errors as JSON-RPC has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID_PARAMETERS = -32602
UNKNOWN_METHOD = -32601
PLUGIN_ERROR = -3
PLUGIN_TERMINATED = -4


class Fault(Exception):
    """An error answer: lightningd's code (common/jsonrpc_errors.h), message and, for some, data."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def to_json(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = dict(self.data)
        return error
