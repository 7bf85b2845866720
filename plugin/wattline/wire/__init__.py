"""What comes from the other side: numbers within their ranges, text that cannot do anything to whoever reads it."""

from wattline.wire.bounds import BOUNDS
from wattline.wire.codes import SOCKET_CODES, socket_code
from wattline.wire.reading import OutOfRange, admitted
from wattline.wire.text import printable

__all__ = ["BOUNDS", "SOCKET_CODES", "OutOfRange", "admitted", "printable", "socket_code"]
