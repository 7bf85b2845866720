"""Messages of any content, made from the descriptors: such as could be, and such as nobody honest would send."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from wattline.core.wire.bounds import BOUNDS
from wattline.core.wire.fields import Flag, Kind, Many, Octets, Part, Prose, Shape, Whole

EVIL = "\x1b[2J\x1b]0;owned\x07\r\nforged line\u202e\u2028[red]free[/red]\u200b\x9b"
ENDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
TEXTS = st.one_of(
    st.just(""),
    st.just(EVIL),
    st.just("A" * 3_000),
    st.just("done"),
    st.text(max_size=20),
    st.text("[]/\x1b\n:", max_size=9),
)
SHAPES = (
    *("0" * 25 + "1", "02" + "51" * 32, "03" + "ca" * 32, "A1", "a_code", "done", "operator", "regtest", "ab" * 32, ""),
    *("5120" + "ab" * 32, "bcrt1qq", "9" * 104, "d" + "y" * 103),
)


def class_of(descriptor: Descriptor | None) -> Any:
    assert descriptor is not None
    return GetMessageClass(descriptor)


def wild(kind: Any, oneof: str | None = None) -> st.SearchStrategy[Any]:
    """Whatever the wire can carry. Of a message that is one of several (``oneof``), just that one."""
    return _message(kind, _wild, oneof)


def fit(kind: Any, oneof: str | None = None) -> st.SearchStrategy[Any]:
    """Within the bounds, and without any sense besides."""
    return _message(kind, _fit, oneof)


def either(kind: Any) -> st.SearchStrategy[Any]:
    """One of the messages that ``kind`` (ChargeRequest or ChargeResponse) may hold, fit or wild."""
    names = [field.name for field in kind.DESCRIPTOR.fields]
    return st.sampled_from(names).flatmap(lambda name: st.one_of(fit(kind, name), fit(kind, name), wild(kind, name)))


@cache
def _message(kind: Any, value: Any, oneof: str | None) -> st.SearchStrategy[Any]:
    fields = [field for field in kind.DESCRIPTOR.fields if oneof in (None, field.name)]
    return st.builds(lambda values: _made(kind, values), st.fixed_dictionaries({f.name: value(f) for f in fields}))


def _made(kind: Any, values: dict[str, Any]) -> Any:
    return kind(**{name: value for name, value in values.items() if value is not None})


def _wild(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    single: st.SearchStrategy[Any]
    if field.message_type is not None:
        single = wild(class_of(field.message_type))
        if not field.is_repeated:
            return st.none() | single
    elif field.type == FieldDescriptor.TYPE_BYTES:
        single = st.binary(max_size=40) | st.just(bytes(32)) | st.just(bytes(5_000))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        single = TEXTS | st.sampled_from(SHAPES)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        single = st.booleans()
    else:
        lowest, highest = ENDS[field.cpp_type]
        single = st.integers(lowest, highest) | st.sampled_from((lowest, 0, 1, highest))
    return st.lists(single, max_size=3) if field.is_repeated else single


def _owner(field: FieldDescriptor) -> str:
    assert field.containing_type is not None
    return field.containing_type.name


def _fit(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    return _within(BOUNDS[_owner(field)][field.name], field)


def _within(kind: Kind, field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match kind:
        case Whole(lowest, highest):
            least, most = max(lowest, 0), min(highest, 10**6)
            return st.integers(lowest, highest) | st.integers(least, max(least, most))
        case Flag():
            return st.booleans()
        case Octets(shortest, longest):
            return st.binary(min_size=shortest, max_size=min(longest, shortest + 40))
        case Shape():
            shapes = tuple(text for text in SHAPES if kind.takes(text))
            return st.sampled_from(shapes) if shapes else st.from_regex(kind.pattern, fullmatch=True)
        case Prose():
            return TEXTS
        case Many(item):
            return st.lists(_within(item, field), max_size=3)
        case Part():
            return fit(class_of(field.message_type))
