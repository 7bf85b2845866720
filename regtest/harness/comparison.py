"""What a node answered, held against what was recorded.

What differs from run to run (keys, hashes, labels, scids, ports) is learnt on the way: where the recording has one text
and the node another, the node's stands for the recorded one from then on. So a later step speaks of the right invoice,
and the same thing must keep its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.recorder import LONGEST_TEXT
from wattline.core.lightning.onion import encode_short_channel_id

Json = dict[str, Any]

# What may differ: times and amounts that depend on when or on a feerate, and what nothing is done with.
_FREE_NUMBERS = frozenset(
    {
        "completed_at", "created_at", "expires_at", "last_tx_fee_msat", "last_update", "paid_at",
        "perkb", "perkw", "probability_ppm", "port", "received_time", "receivable_msat", "resolved_time",
        "spendable_msat", "cltv_expiry_relative", "timestamp",
    }
)  # fmt: skip
_CLOSE_MSAT = 1_000_000
"""By which spendable and receivable amounts may be apart: the feerate of a real node moves."""
OPTIONAL = frozenset(
    {
        # Only while the node is catching up with the chain, and reasons why an invoice could be hard to pay.
        "warning_lightningd_sync", "warning_capacity", "warning_deadends", "warning_offline",
        # The opener's, as long as it remembers it.
        "psbt",
    }
)  # fmt: skip
_OF_BCLI = re.compile(r"\.configs\.[^.]+$")
"""A real node says of its bitcoin-... options which plugin they are of; a practice node has no such plugin."""
_RAW_TX = re.compile(r"[0-9a-f]{100,}")
_RAW_TX_KEYS = frozenset({"rawtx", "tx"})
_SIGNATURES_HEX = 8
"""By which raw transactions may be longer or shorter: a signature in DER has a byte less now and then (BIP 66)."""
_PSBT = "cHNid"
_PSBT_KEYS = frozenset({"psbt", "signed_psbt"})
_SCID = re.compile(r"\d+x\d+x\d+")
_CHANNEL_UPDATE = re.compile(r"^10(07|0c|0d|14)")


class Comparison:
    """Of one run with one recording. ``names`` are known from the start: recorded text -> text of this run."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def differences(self, where: str, recorded: Any, answered: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
        """Where, what was recorded and what was answered instead."""
        if isinstance(recorded, dict) and isinstance(answered, dict):
            yield from self._compare_objects(where, recorded, answered)
        elif isinstance(recorded, list) and isinstance(answered, list):
            if len(recorded) != len(answered):
                yield f"{where}: length", len(recorded), len(answered)
            for index, (one, other) in enumerate(zip(recorded, answered, strict=False)):
                yield from self.differences(f"{where}[{index}]", one, other, key)
        elif type(recorded) is not type(answered):
            yield where, recorded, answered
        elif isinstance(recorded, str):
            if not self._same_text(key, recorded, answered):
                yield where, self.translated(recorded), answered
        elif recorded != answered and not _may_differ(key, recorded, answered, where):
            yield where, recorded, answered

    def _compare_objects(self, where: str, recorded: Json, answered: Json) -> Iterator[tuple[str, Any, Any]]:
        optional = OPTIONAL | {"plugin"} if _OF_BCLI.search(where) else OPTIONAL
        for key in recorded.keys() - answered.keys() - optional:
            yield f"{where}.{key}", recorded[key], "(missing)"
        for key in answered.keys() - recorded.keys() - OPTIONAL:
            yield f"{where}.{key}", "(not there)", answered[key]
        for key in [key for key in recorded if key in answered]:
            yield from self.differences(f"{where}.{key}", recorded[key], answered[key], key)

    def _same_text(self, key: str, recorded: str, answered: str) -> bool:
        expected = self.translated(recorded)
        if expected == answered:
            return True
        if key == "raw_message" and _CHANNEL_UPDATE.match(recorded):
            return recorded[:4] == answered[:4]  # followed by a channel_update of any length
        if key == "id" and "cln:" in recorded:
            # A request's number is the node's own; who asks for what is not.
            return _without_numbers(recorded) == _without_numbers(answered)
        if recorded in self._names or not _is_a_name(key, recorded, answered):
            return False
        self.learn(recorded, answered)
        return True

    def learn(self, recorded: Any, answered: Any) -> None:
        """From now on the recorded text stands for the answered one."""
        if not isinstance(recorded, str) or recorded == answered or not isinstance(answered, str):
            return
        self._names[recorded] = answered
        if _SCID.fullmatch(recorded) and _SCID.fullmatch(answered):
            self._names[encode_short_channel_id(recorded).hex()] = encode_short_channel_id(answered).hex()

    def translated(self, value: Any) -> Any:
        """``value`` of the recording, in the words of this run."""
        if isinstance(value, dict):
            return {key: self.translated(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.translated(inner) for inner in value]
        if not isinstance(value, str):
            return value
        if value in self._names:
            return self._names[value]
        for recorded, answered in self._names.items():
            if recorded in value:
                value = value.replace(recorded, answered)
        return value


def _without_numbers(text: str) -> str:
    return re.sub(r"#\d+", "", text.replace("replay", "recorder").rpartition("/")[2])


def _may_differ(key: str, recorded: Any, answered: Any, where: str) -> bool:
    if isinstance(recorded, bool):
        return False
    if key in ("spendable_msat", "receivable_msat"):
        return abs(int(recorded) - int(answered)) <= _CLOSE_MSAT
    if "bitcoin-rpcport" in where:
        return key == "value_int"
    if key == "locktime":
        # Of a node's own transaction, the height of some block; of a version, 0.
        return bool(recorded) and bool(answered)
    return key in _FREE_NUMBERS


def _is_as_long(key: str, recorded: int, answered: int) -> bool:
    return abs(recorded - answered) <= (_SIGNATURES_HEX if key in _RAW_TX_KEYS else 0)


def _is_a_name(key: str, recorded: str, answered: str) -> bool:
    """Whether it is for the node to choose: then the two must still be of one kind."""
    if re.fullmatch(r"[0-9a-f]{32,}", recorded):
        return re.fullmatch(r"[0-9a-f]+", answered) is not None and _is_as_long(key, len(recorded), len(answered))
    if _RAW_TX.search(recorded) and _RAW_TX.sub("", recorded) == _RAW_TX.sub("", answered):
        both = zip(_RAW_TX.findall(recorded), _RAW_TX.findall(answered), strict=False)
        return all(_is_as_long("tx", len(one), len(other)) for one, other in both)
    if recorded.startswith(_PSBT) or (answered.startswith(_PSBT) and key in _PSBT_KEYS):
        # What is in it the recording has looked at by itself.
        return answered.startswith(_PSBT)
    if recorded.startswith("<") and recorded.endswith(">"):
        length = int(recorded[1:].split()[0])
        return (length > LONGEST_TEXT and _is_as_long(key, length, len(answered))) or key == "psbt"
    if _SCID.fullmatch(recorded):
        return _SCID.fullmatch(answered) is not None
    if recorded.startswith("keysend-"):
        return re.fullmatch(r"keysend-\d+\.\d{9}", answered) is not None
    if recorded.startswith("lnbcrt"):
        return answered.startswith("lnbcrt")
    if recorded.startswith("bcrt1"):
        return answered.startswith(recorded[:6])
    if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", recorded):
        return re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", answered) is not None
    if re.fullmatch(r"127\.0\.0\.1:\d+", recorded):
        return answered.startswith("127.0.0.1:")
    return False
