"""Parameters of a call: by name or by position, checked with lightningd's words (common/json_param.c)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault

Json = dict[str, Any]


class Parameters:
    """What a call was given. Every reader raises Fault (-32602)."""

    def __init__(
        self, given: Mapping[str, Any] | Sequence[Any], required: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> None:
        names = (*required, *optional)
        if isinstance(given, Mapping):
            for name in given:
                if name not in names:
                    raise Fault(
                        INVALID_PARAMETERS,
                        f"unknown parameter: {name}, this may be caused by a failure to autodetect key=value-style "
                        "parameters. Please try using the -k flag and explicit key=value pairs of parameters.",
                    )
            self._values = dict(given)
        else:
            if len(given) > len(names):
                raise Fault(INVALID_PARAMETERS, f"too many parameters: got {len(given)}, expected {len(names)}")
            self._values = dict(zip(names, given, strict=False))
        for name in required:
            if self._values.get(name) is None:
                raise Fault(INVALID_PARAMETERS, f"missing required parameter: {name}")

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def text(self, name: str, default: str = "") -> str:
        value = self._values.get(name)
        return default if value is None else str(value)

    def integer(self, name: str, default: int = 0) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.invalid(name, "should be an unsigned 64 bit integer")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if value in (True, "true"):
            return True
        if value in (False, "false"):
            return False
        raise self.invalid(name, "should be 'true' or 'false'")

    def msat(self, name: str) -> int:
        """An amount in msat: a number, or a text that ends in ``msat`` or ``sat``."""
        value = self._values.get(name)
        match = re.fullmatch(r"([0-9]+)(msat|sat)?", str(value))
        if match is None or isinstance(value, bool):
            raise self.invalid(name, "should be a millisatoshi amount")
        return int(match[1]) * (1000 if match[2] == "sat" else 1)

    def hex32(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise self.invalid(name, "should be a 32 byte hex value")
        return value.lower()

    def binary(self, name: str) -> bytes:
        value = self._values.get(name)
        try:
            return bytes.fromhex(value if isinstance(value, str) else "?")
        except ValueError:
            raise self.invalid(name, "should be a hex value") from None

    def node_id(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not re.fullmatch(r"0[23][0-9a-fA-F]{64}", value):
            raise self.invalid(name, "should be a node id")
        return value.lower()

    def invalid(self, name: str, wanted: str) -> Fault:
        """The fault that says what was wanted instead of what was given."""
        return Fault(INVALID_PARAMETERS, f"{name}: {wanted}: invalid token '{json.dumps(self._values.get(name))}'")
