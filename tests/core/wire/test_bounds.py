from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from wattline.core.tariff import MAX_PRICE_MSAT, Tariff, cost_msat
from wattline.core.wire.bounds import BOUNDS, MAX_DELIVERED_MS, MAX_ENERGY_UWH, MAX_MSAT
from wattline.core.wire.fields import Flag, Kind, Many, Octets, Part, Prose, Shape, Whole
from wattline.v1 import charging_pb2 as pb

MESSAGES = pb.DESCRIPTOR.message_types_by_name
LEDGER_MAX = 2**63 - 1
KINDS: dict[int, tuple[type, ...]] = {
    FieldDescriptor.CPPTYPE_BOOL: (Flag,),
    FieldDescriptor.CPPTYPE_MESSAGE: (Part,),
    FieldDescriptor.CPPTYPE_ENUM: (Whole,),
    FieldDescriptor.CPPTYPE_INT32: (Whole,),
    FieldDescriptor.CPPTYPE_INT64: (Whole,),
    FieldDescriptor.CPPTYPE_UINT32: (Whole,),
    FieldDescriptor.CPPTYPE_UINT64: (Whole,),
}


def kinds_for(field: FieldDescriptor) -> tuple[type, ...]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (Octets,)
    return KINDS.get(field.cpp_type, (Shape, Prose))


def test_every_field_of_every_message_has_its_bound_and_no_other_has() -> None:
    assert {name: set(fields) for name, fields in BOUNDS.items()} == {
        name: set(message.fields_by_name) for name, message in MESSAGES.items()
    }


def test_every_bound_is_of_its_field_s_type() -> None:
    for name, message in MESSAGES.items():
        for field in message.fields:
            kind: Kind = BOUNDS[name][field.name]
            assert field.is_repeated == isinstance(kind, Many), f"{name}.{field.name}"
            single = kind.item if isinstance(kind, Many) else kind
            assert isinstance(single, kinds_for(field)), f"{name}.{field.name}"


def test_every_number_and_every_sum_of_an_account_fits_into_the_ledger() -> None:
    for name, fields in BOUNDS.items():
        for field, kind in fields.items():
            if isinstance(kind, Whole):
                assert -LEDGER_MAX <= kind.lowest <= kind.highest <= LEDGER_MAX, f"{name}.{field}"
    dearest = Tariff.of(MAX_PRICE_MSAT, MAX_PRICE_MSAT, MAX_PRICE_MSAT)
    assert cost_msat(dearest, 2 * MAX_ENERGY_UWH, 2 * MAX_DELIVERED_MS, True) + 3 * MAX_MSAT < LEDGER_MAX
