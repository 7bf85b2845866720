"""What every field of every message may hold: one table for both directions, charging.proto is its index.

The ranges are those of the world (no outlet passes a megawatt, there are 21 million bitcoins), not those of a
configuration: what a socket asks within them is for the cable's limits to judge. Sums and costs of such values keep
within 63 bits, which the ledger holds: the dearest energy and time together cost less than 2 * 10^17 msat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wattline.core.checks import NODE_ID
from wattline.core.tariff import MAX_PRICE_MSAT
from wattline.core.wire.fields import Flag, Kind, Many, Octets, Part, Prose, Shape, Whole

MAX_SAT = 21_000_000 * 100_000_000
MAX_MSAT = MAX_SAT * 1000
MAX_ENERGY_UWH = 10**15
"""A gigawatt-hour in one session."""
MAX_DELIVERED_MS = 10**12
"""Thirty years."""
MAX_POWER_MW = 10**9
MAX_EPOCH_S = 253_402_300_799
"""The last second of the year 9999."""
MAX_WAIT_S = 86_400
MAX_COUNT = 10**12

_MSAT = Whole(0, MAX_MSAT)
_SAT = Whole(0, MAX_SAT)
_BALANCE = Whole(-2 * MAX_MSAT, MAX_MSAT)
_PRICE = Whole(0, MAX_PRICE_MSAT)
_ENERGY = Whole(0, MAX_ENERGY_UWH)
_DELIVERED = Whole(0, MAX_DELIVERED_MS)
_POWER = Whole(-MAX_POWER_MW, MAX_POWER_MW)
_VOLTAGE = Whole(0, 10**7)
_CURRENT = Whole(-(10**9), 10**9)
_EPOCH = Whole(0, MAX_EPOCH_S)
_WAIT = Whole(0, MAX_WAIT_S)
_COUNT = Whole(0, MAX_COUNT)
_NUMBER = Whole(0, 10**9)
_ENUM = Whole(0, 2**31 - 1)
_FEERATE = Whole(0, 10**9)

_TOKEN = Octets(32, 32)
_NONCE = Octets(16, 32)
_ANY_TOKEN = Octets(0, 64)
"""Of a session that is there already: one of another length is a wrong one."""
_SESSION_ID_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_SESSION_ID = Shape(_SESSION_ID_PATTERN, "26 characters of Crockford base32")
_ANY_SESSION_ID = Shape(_SESSION_ID_PATTERN, "26 characters of Crockford base32, or nothing", may_be_empty=True)
_NODE_ID_WORDS = "66 lower-case hex digits beginning with 02 or 03"
_NODE_ID = Shape(NODE_ID, _NODE_ID_WORDS)
_NODE_ID_OR_NONE = Shape(NODE_ID, f"{_NODE_ID_WORDS}, or nothing", may_be_empty=True)
_OUTLET_ID = Shape(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"), "1 to 32 letters, digits, '_', '.' and '-', a letter or digit first"
)
_TARIFF_ID = Shape(re.compile(r"[!-~]{1,64}"), "1 to 64 printable ASCII characters")
_SIGNATURE = Shape(re.compile(r"[ -~]{1,200}"), "at most 200 printable ASCII characters", may_be_empty=True)
"""Whether it is zbase32 and of the right length, whoever verifies it says: else it is a forgery like any other."""
_CODE_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CODE = Shape(_CODE_PATTERN, "1 to 40 lower-case letters, digits and '_'")
_CODE_OR_NONE = Shape(_CODE_PATTERN, "up to 40 lower-case letters, digits and '_'", may_be_empty=True)
_HASH_OR_NONE = Shape(re.compile(r"[0-9a-f]{64}"), "64 lower-case hex digits, or nothing", may_be_empty=True)
_ADDRESS = Shape(re.compile(r"[!-~]{1,90}"), "an address of at most 90 characters", may_be_empty=True)
_SCRIPT = Shape(re.compile(r"(?:[0-9a-f]{2}){1,42}"), "a script of at most 42 bytes, hex", may_be_empty=True)
_NETWORK = Shape(re.compile(r"[a-z0-9]{1,20}"), "the name of a network", may_be_empty=True)
_LINE = Prose(200)

_ACCOUNT: Mapping[str, Kind] = {
    "session_id": _SESSION_ID,
    "energy_uwh": _ENERGY,
    "delivered_ms": _DELIVERED,
    "credited_msat": _MSAT,
    "charged_msat": _MSAT,
    "refunded_msat": _MSAT,
    "balance_msat": _BALANCE,
    "payments": _COUNT,
    "stop_reason": _CODE_OR_NONE,
    "onchain_credited_msat": _MSAT,
}

BOUNDS: Mapping[str, Mapping[str, Kind]] = {
    "GetOfferRequest": {"nonce": _NONCE},
    "GetOfferResponse": {"offer": Octets(1, 60_000), "signature": _SIGNATURE},
    "Offer": {
        "node_id": _NODE_ID,
        "certificate_sha256": Octets(32, 32),
        "network": _NETWORK,
        "tariff": Part(),
        "outlets": Many(Part(), 256),
        "nonce": _NONCE,
        "expires_at": _EPOCH,
        "methods": Many(_ENUM, 16),
        "credit_cap_msat": _MSAT,
        "min_increment_msat": _MSAT,
        "statement_interval_ms": Whole(0, 60_000),
        "pause_max_s": _WAIT,
        "open_timeout_s": _WAIT,
        "cable_lost_s": _WAIT,
        "min_refund_msat": _MSAT,
        "onchain": Part(required=False),
    },
    "OnchainRules": {
        "floor_sat": _SAT,
        "credit_cap_sat": _SAT,
        "exposure_cap_sat": _SAT,
        "min_feerate_per_kw": _FEERATE,
        "max_feerate_per_kw": _FEERATE,
        "max_age_s": _WAIT,
        "input_confirmations": Whole(0, 10_000),
        "max_inputs": Whole(0, 10_000),
    },
    "Tariff": {
        "tariff_id": _TARIFF_ID,
        "energy_msat_per_kwh": _PRICE,
        "time_msat_per_hour": _PRICE,
        "session_fee_msat": _PRICE,
    },
    "Outlet": {
        "outlet_id": _OUTLET_ID,
        "max_power_mw": Whole(1, MAX_POWER_MW),
        "available": Flag(),
        "unavailable_reason": _LINE,
    },
    "ChargeRequest": {
        "open": Part(required=False),
        "resume": Part(required=False),
        "meter_value": Part(required=False),
        "close": Part(required=False),
        "onchain_request": Part(required=False),
        "aggregate_version": Part(required=False),
    },
    "OnchainRequest": {"signature": _SIGNATURE},
    "AggregateVersion": {"number": _NUMBER, "psbt": Octets(0, 60_000), "is_final": Flag()},
    "Open": {
        "token": _TOKEN,
        "outlet_id": _OUTLET_ID,
        "tariff_id": _TARIFF_ID,
        "method": _ENUM,
        "cable_node_id": _NODE_ID,
        "signature": _SIGNATURE,
        "socket_node_id": _NODE_ID_OR_NONE,
    },
    "Resume": {"session_id": _ANY_SESSION_ID, "token": _ANY_TOKEN},
    "MeterValue": {"energy_uwh": _ENERGY, "power_mw": _POWER, "voltage_mv": _VOLTAGE, "current_ma": _CURRENT},
    "Close": {"reason": Prose(80)},
    "ChargeResponse": {
        "opened": Part(required=False),
        "statement": Part(required=False),
        "tariff_change": Part(required=False),
        "payment_refused": Part(required=False),
        "refusal": Part(required=False),
        "receipt": Part(required=False),
        "onchain_invitation": Part(required=False),
        "version_accepted": Part(required=False),
        "version_refused": Part(required=False),
        "final_due": Part(required=False),
    },
    "OnchainInvitation": {
        "address": _ADDRESS,
        "script": _SCRIPT,
        "rules": Part(),
        "newest_number": _NUMBER,
        "newest_value_sat": _SAT,
    },
    "VersionAccepted": {"number": _NUMBER, "value_sat": _SAT, "is_final": Flag()},
    "VersionRefused": {"number": _NUMBER, "code": _CODE, "message": _LINE},
    "FinalDue": {"value_sat": _SAT, "charged_msat": _MSAT, "keysend_msat": _MSAT},
    "Opened": {"session_id": _SESSION_ID, "tariff": Part(), "statement": Part(), "resumed": Flag()},
    "Statement": {
        **_ACCOUNT,
        "sequence": _COUNT,
        "state": _ENUM,
        "relay_closed": Flag(),
        "power_mw": _POWER,
        "voltage_mv": _VOLTAGE,
        "current_ma": _CURRENT,
        "in_flight_msat": _MSAT,
        "min_increment_msat": _MSAT,
    },
    "TariffChange": {"tariff": Part(), "effective_at": _EPOCH},
    "PaymentRefused": {
        "payment_hash": _HASH_OR_NONE,
        "amount_msat": _MSAT,
        "code": _CODE,
        "message": _LINE,
        "min_increment_msat": _MSAT,
    },
    "Refusal": {"code": _CODE, "message": _LINE},
    "SignedReceipt": {"receipt": Octets(0, 16_384), "signature": _SIGNATURE},
    "Receipt": {
        **_ACCOUNT,
        "node_id": _NODE_ID,
        "outlet_id": _OUTLET_ID,
        "cable_node_id": _NODE_ID,
        "method": _ENUM,
        "tariff": Part(),
        "opened_at": _EPOCH,
        "closed_at": _EPOCH,
        "refund_status": _ENUM,
        "refund_fee_msat": _MSAT,
        "refund_payment_hash": _HASH_OR_NONE,
        "returned_msat": _MSAT,
        "onchain_txid": _HASH_OR_NONE,
        "onchain_value_sat": _SAT,
        "from_restored_ledger": Flag(),
    },
    "GetReceiptRequest": {"session_id": _ANY_SESSION_ID, "token": _ANY_TOKEN},
    "GetReceiptResponse": {"receipt": Part(required=False)},
}
"""By the message's name and the field's."""
