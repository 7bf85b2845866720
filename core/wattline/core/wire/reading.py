"""A message off the wire, checked field by field before anybody looks at it."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from wattline.core.errors import StopError
from wattline.core.text import printable
from wattline.core.wire.bounds import BOUNDS
from wattline.core.wire.fields import Kind, Many, Part, Prose

MessageT = TypeVar("MessageT", bound=Message)
SHOWN = 60


class OutOfRange(StopError):
    """A message with a field that cannot be; the text names field, value and what is allowed."""

    def __init__(self, field: str, value: str, allowed: str) -> None:
        super().__init__("message_invalid", f"{field} is {value}; allowed: {allowed}")


def admitted(message: MessageT) -> MessageT:
    """``message`` itself: every field within its bounds (:data:`BOUNDS`), text for people escaped and cut. Fields that
    this version does not know stay as they are; nobody reads them. Raises OutOfRange."""
    _admit(message, message.DESCRIPTOR.name)
    return message


def _admit(message: Message, path: str) -> None:
    for name, kind in BOUNDS[message.DESCRIPTOR.name].items():
        _admit_field(message, name, kind, f"{path}.{name}")


def _admit_field(message: Message, name: str, kind: Kind, path: str) -> None:
    value: Any = getattr(message, name)
    match kind:
        case Part(required):
            if message.HasField(name):
                _admit(value, path)
            elif required:
                raise OutOfRange(path, "missing", "it has to be there")
        case Many(item, most):
            if len(value) > most:
                raise OutOfRange(path, f"{len(value)} of them", f"at most {most}")
            for place, each in enumerate(value):
                if isinstance(item, Part):
                    _admit(each, f"{path}.{place}")
                elif not item.takes(each):
                    raise OutOfRange(f"{path}.{place}", str(each), item.allowed)
        case Prose(longest):
            shown = printable(value, longest)
            if shown != value:
                setattr(message, name, shown)
        case _:
            if not kind.takes(value):
                raise OutOfRange(path, _told(value), kind.allowed)


def _told(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return repr(printable(value, SHOWN)) if isinstance(value, str) else str(value)
