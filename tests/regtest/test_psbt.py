"""PSBTs of the practice node: what it reads it writes again, and outputs are added behind the others."""

from __future__ import annotations

import pytest

from wattline.regtest.node.psbt import SEQUENCE, Psbt, PsbtError, PsbtInput, PsbtOutput, spending

# Of lightningd's utxopsbt: one P2TR input with its transaction, and no output.
RECORDED = (
    "cHNidP8BADMCAAAAAcOGY+2vOmSYisi/jU3r+m8LfHxp2OYVIEQlcV0t+SX9AAAAAAD9////AAAAAAAAAQD9QAECAAAAATXzhEaPjodTKlzUx3n8Wcdt"
    "ubXN8cJIn35qKKHwXD/KAAAAAGpHMEQCIC1kcHhCN9Bcc4I3oGgHwZFJm4pWe5CpZiujhZ3VafOPAiAkspPM12IeI8Ngqa//qLOrwP2r5FKvYA21bke/"
    "m1wH5gEhA9ewrUbaP4tIhuAzDSDFUV7I1xQsHX5XejeW7Kc0aeB1/f///wSghgEAAAAAACJRIMt3nwdEtscteqaZ1tRtIgbRNadgzFZzDtgr3DU9w+mq"
    "oIYBAAAAAAAiUSD5T9kBEaehr1x/fUzRLHNvsFEmupWE2YSvy58tr9daNqCGAQAAAAAAIlEgIJl3fcLyTTF3t1kTKTm//KX/CLvzEjeoBeZTUiQEsZqg"
    "WwEqAQAAABl2qRSrK23LOfZluNaJwhM1tO4Edn+yiIisZQAAAAEBK6CGAQAAAAAAIlEgy3efB0S2xy16ppnW1G0iBtE1p2DMVnMO2CvcNT3D6aoA"
)
TXID = "fd25f92d5d7125442015e6d8697c7c0b6ffaeb4d8dbfc88a98643aafed6386c3"


def test_what_lightningd_wrote_is_read_and_written_again() -> None:
    psbt = Psbt.parse(RECORDED)
    assert psbt.outpoints == [(TXID, 0)]
    assert (psbt.inputs[0].sequence, psbt.outputs, psbt.locktime, psbt.version) == (SEQUENCE, (), 0, 2)
    assert str(psbt) == RECORDED


def test_an_input_is_made_as_lightningd_makes_it() -> None:
    recorded = Psbt.parse(RECORDED).inputs[0]
    (_, rawtx), (_, output) = recorded.fields
    assert spending(TXID, 0, int.from_bytes(output[:8], "little"), output[9:], rawtx) == recorded


def test_outputs_are_added_behind_the_others_or_where_they_are_wanted() -> None:
    psbt = Psbt((PsbtInput(TXID, 3),), locktime=7)
    grown = psbt.with_outputs(PsbtOutput(1_000, b"\x51")).with_outputs(PsbtOutput(2_000, b"\x52" * 300))
    grown = grown.with_outputs(PsbtOutput(3_000, b"\x53"), at=0)
    assert [output.value_sat for output in grown.outputs] == [3_000, 1_000, 2_000]
    assert Psbt.parse(str(grown)) == grown


@pytest.mark.parametrize("text", ["", "toast", RECORDED[:-8], RECORDED[4:], RECORDED + "AAAA", "cHNidP8="])
def test_what_is_no_psbt_is_refused(text: str) -> None:
    with pytest.raises(PsbtError):
        Psbt.parse(text)
