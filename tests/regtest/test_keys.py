"""Keys and signatures: the very ones that lightningd makes."""

from __future__ import annotations

import hashlib

import pytest

from wattline.regtest.node.keys import NodeKey, from_zbase32, is_public_key, signer_of, to_zbase32

# Of a real v26.06.6 whose hsm_secret was the SHA-256 of "wattline regtest socket" (regtest/recordings/alone.jsonl).
SECRET = hashlib.sha256(b"wattline regtest socket").digest()
NODE_ID = "025e901eb67f486ce65f6e2c44cb0a42690be77b31d4fbdc4043553ae472649342"
MESSAGE = "wattline:offer:1:" + "ab" * 32
ZBASE = "d7qzmbbm3cw1ws73z33peogbr957i5m7nut4jaom77i8db5fy7wtcqyotsuh4q38obn1mnyitf9aads4hw9j1rdbg6s9tb6ikkyypz4m"


def test_a_secret_gives_the_node_id_that_lightningd_has_for_it() -> None:
    assert NodeKey(SECRET).node_id == NODE_ID


def test_a_signature_is_the_one_that_lightningd_makes() -> None:
    assert NodeKey(SECRET).sign_message(MESSAGE)["zbase"] == ZBASE


def test_a_signature_tells_its_signer_and_another_message_tells_another() -> None:
    assert signer_of(MESSAGE, ZBASE) == NODE_ID
    assert signer_of(MESSAGE + "c", ZBASE) != NODE_ID


@pytest.mark.parametrize("zbase", ["", "y", "not zbase32!", ZBASE[:-4], "y" * 104, ZBASE + "y"])
def test_what_is_no_signature_is_refused(zbase: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        signer_of(MESSAGE, zbase)


def test_zbase32_comes_back_as_it_went() -> None:
    for length in range(20):
        data = bytes(range(200, 200 + length))
        assert from_zbase32(to_zbase32(data)) == data


@pytest.mark.parametrize(("text", "valid"), [(NODE_ID, True), ("02" + "00" * 32, False), ("toast", False), ("", False)])
def test_only_points_of_the_curve_are_public_keys(text: str, valid: bool) -> None:
    assert is_public_key(text) is valid
