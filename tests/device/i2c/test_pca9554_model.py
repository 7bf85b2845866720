"""The model of the PCA9554 against its data sheet."""

from __future__ import annotations

from wattline.device.simulator.expanders import CONFIGURATION, INPUT, OUTPUT, POLARITY, Pca9554Model


def register(chip: Pca9554Model, address: int) -> int:
    return chip.read_block(address, 1)[0]


def test_at_power_on_every_pin_is_an_input_that_is_pulled_up() -> None:
    chip = Pca9554Model()
    assert [register(chip, r) for r in (INPUT, OUTPUT, POLARITY, CONFIGURATION)] == [0xFF, 0xFF, 0x00, 0xFF]
    chip.write_byte_register(OUTPUT, 0x00)
    assert register(chip, INPUT) == 0xFF


def test_an_output_shows_its_latch_and_an_input_does_not() -> None:
    chip = Pca9554Model()
    chip.write_byte_register(OUTPUT, 0b1111_0000)
    chip.write_byte_register(CONFIGURATION, 0b1111_1100)
    assert register(chip, INPUT) == 0b1111_1100
    assert register(chip, OUTPUT) == 0b1111_0000


def test_polarity_turns_round_what_is_read_and_nothing_else() -> None:
    chip = Pca9554Model()
    chip.write_byte_register(POLARITY, 0x0F)
    assert register(chip, INPUT) == 0xF0
    assert chip.pins == 0xFF


def test_the_input_port_cannot_be_written() -> None:
    chip = Pca9554Model()
    chip.write_byte_register(INPUT, 0x00)
    assert register(chip, INPUT) == 0xFF


def test_a_byte_without_a_register_moves_the_pointer() -> None:
    chip = Pca9554Model()
    chip.write_byte_register(OUTPUT, 0x5A)
    chip.write_byte(POLARITY)
    assert chip.read_byte() == 0x00
    chip.write_byte(OUTPUT)
    assert chip.read_byte() == 0x5A


def test_two_bytes_in_a_row_land_in_the_same_register() -> None:
    chip = Pca9554Model()
    chip.write_word(OUTPUT, 0x12_34)
    assert register(chip, OUTPUT) == 0x34


def test_a_brown_out_makes_inputs_of_all_pins() -> None:
    chip = Pca9554Model()
    chip.write_byte_register(OUTPUT, 0x00)
    chip.write_byte_register(CONFIGURATION, 0x00)
    assert chip.pins == 0x00
    chip.reset()
    assert chip.pins == 0xFF
