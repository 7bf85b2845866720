"""What goes wrong between a configuration and its chips, and in the configuration itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.cli_errors.mistake import METER, RELAY, SIM, TRIED, Desk, Mistake
from wattline.device.simulator.control import SimulatedWorld
from wattline.device.simulator.world import MeterFault

READ = ["meter", "read", "--config"]
CHECK = ["cable", "check", "--config"]
TEST = ["outlet", "test", "--seconds", "0.5", "--config"]


def broken(fault: MeterFault) -> Callable[[Desk], list[str]]:
    def make(desk: Desk) -> list[str]:
        world = SimulatedWorld.connect(SIM)
        desk.closing.append(world.close)
        world.break_meter(0x40, fault)
        return [*READ, desk.socket_toml()]

    return make


def no_permission(desk: Desk) -> list[str]:
    """Root may open everything, so the system call is what refuses."""
    really = os.open

    def refuses(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).startswith("/dev/i2c-"):
            raise PermissionError(13, "Permission denied", path)
        return really(path, *rest, **named)

    desk.monkeypatch.setattr("os.open", refuses)
    return [*READ, desk.socket_toml(METER.replace(f'"{SIM}"', "1"))]


def second_outlet(meter: str = METER.replace("0x40", "0x41"), relay: str = RELAY.replace("bit = 0", "bit = 1")) -> str:
    return f'[[outlet]]\noutlet_id = "A2"\nmax_power_w = 1000\nmeter = {meter}\nrelay = {relay}\n'


CONFIGURATION = (
    Mistake("no configuration", lambda desk: [*READ, str(desk.folder / "x.toml")], 2, ("x.toml", "no such file")),
    Mistake(
        "no TOML",
        lambda desk: [*READ, desk.file("x.toml", "[[outlet")],
        2,
        ("x.toml", "not valid TOML", "end of document"),
    ),
    Mistake(
        "a missing key",
        lambda desk: [*CHECK, desk.cable_toml({"limits": {"max_day_msat": None}})],
        2,
        ("cable.toml: limits.max_day_msat: this key is missing",),
    ),
    Mistake(
        "an unknown key",
        lambda desk: [*CHECK, desk.cable_toml({"limits": {"max_prize": 3}})],
        2,
        ("limits.max_prize: unknown key", "max_price_msat_per_kwh"),
    ),
    Mistake(
        "a key of the wrong type",
        lambda desk: [*READ, desk.socket_toml(power='"1000"')],
        2,
        ("outlet.0.max_power_w", "valid integer", "'1000'"),
    ),
    Mistake(
        "a value of none of the types that a key may have",
        lambda desk: [*READ, desk.socket_toml(METER.replace(f'"{SIM}"', "true"))],
        2,
        ("socket.toml: outlet.0.meter.bus: must be the number N of /dev/i2c-N, or 'sim:", "bus (it is True)"),
    ),
    Mistake(
        "an impossible value",
        lambda desk: [*READ, desk.socket_toml(power="0")],
        2,
        ("outlet.0.max_power_w", "greater than or equal to 1"),
    ),
    Mistake(
        "an address that no such chip has",
        lambda desk: [*READ, desk.socket_toml(METER.replace("0x40", "0x60"))],
        2,
        ("socket.toml: outlet.0.meter.address: ", "0x4f", "(it is 0x60)"),
    ),
    Mistake(
        "an unknown key of a chip",
        lambda desk: [*READ, desk.socket_toml(METER.replace("bus =", "buss = 1, bus ="))],
        2,
        ("socket.toml: outlet.0.meter.buss: unknown key", "shunt_ohms"),
    ),
    Mistake(
        "a socket's configuration for a cable",
        lambda desk: [*CHECK, desk.socket_toml()],
        2,
        ("config_of_socket", "socket.toml", "a cable's is needed"),
    ),
    Mistake(
        "a cable's configuration for an outlet",
        lambda desk: [*TEST, desk.cable_toml()],
        2,
        ("config_of_cable", "cable.toml", "a socket's is needed"),
    ),
    Mistake("a directory for a configuration", lambda desk: [*READ, str(desk.folder)], 2, ("Is a directory",)),
    Mistake(
        "an outlet that is not configured",
        lambda desk: [*TEST, desk.socket_toml(), "--outlet", "B2"],
        2,
        ("outlet_not_configured", "'B2'", "A1"),
    ),
    Mistake("no option", lambda desk: ["cable", "run"], 2, ("bad_usage", "'--config'")),
    Mistake(
        "an impossible option",
        lambda desk: ["outlet", "test", "--config", "x", "--seconds", "100"],
        2,
        ("bad_usage", "'--seconds'", "10"),
    ),
    Mistake("no such command", lambda desk: ["cable", "by"], 2, ("bad_usage", "'by'")),
    Mistake(
        "a chip without its kind",
        lambda desk: [*READ, desk.socket_toml(METER.replace('driver = "ina228", ', ""))],
        2,
        ("outlet.0.meter.driver", "missing"),
    ),
    Mistake(
        "an unknown chip",
        lambda desk: [*READ, desk.socket_toml(relay=RELAY.replace("pcf8574", "ssr"))],
        2,
        ("outlet.0.relay.driver", "'pcf8574'", "'ssr'"),
    ),
    Mistake(
        "an outlet with one bracket",
        lambda desk: [*READ, desk.file("x.toml", '[outlet]\noutlet_id = "A1"\n')],
        2,
        ("[[outlet]]", "two brackets"),
    ),
    Mistake(
        "two outlets on one meter",
        lambda desk: [*READ, desk.socket_toml(more=second_outlet(meter=METER.replace(SIM, f"{SIM}/default")))],
        2,
        ("A1 and A2 share one meter", "0x40"),
    ),
    Mistake(
        "two outlets on one relay",
        lambda desk: [*READ, desk.socket_toml(more=second_outlet(relay=RELAY.replace(" }", ", active_low = false }")))],
        2,
        ("A1 and A2 share one relay", "pin P0", "0x20"),
    ),
)

CHIPS = (
    Mistake("another chip at the address", broken(MeterFault.WRONG_IDENTITY), 1, ("A1: meter_wrong_chip", "0x40")),
    Mistake(
        "a chip that does not answer", broken(MeterFault.NACK), 1, ("A1: meter_bus_error", "no chip answers", "0x40")
    ),
    Mistake(
        "no bus",
        lambda desk: [*READ, desk.socket_toml(METER.replace(f'"{SIM}"', "250"))],
        1,
        ("A1: meter_bus_error", "/dev/i2c-250", "no such bus", "is I2C switched on?"),
    ),
    Mistake("no permission on the bus", no_permission, 1, ("A1: meter_bus_error", "/dev/i2c-1", "group i2c")),
    Mistake(
        "a relay of another expander",
        lambda desk: [*TEST, desk.socket_toml(relay=RELAY.replace("pcf8574", "pca9554"))],
        1,
        ("A1: relay_wrong_chip", "PCA9554 at 0x20", 'driver = "pcf8574"'),
        beside=TRIED,
    ),
    Mistake(
        "a relay the wrong way round",
        lambda desk: [*TEST, desk.socket_toml(relay=RELAY.replace(" }", ", active_low = false }"))],
        1,
        ("A1:", "active_low = false is wrong", "back as it was found"),
        beside=TRIED,
    ),
    Mistake(
        "a relay on no bus",
        lambda desk: [*TEST, desk.socket_toml(relay=RELAY.replace(f'"{SIM}"', "250"))],
        1,
        ("A1: relay_bus_error", "/dev/i2c-250", "no such bus"),
        beside=TRIED,
    ),
    Mistake(
        "a relay on no line",
        lambda desk: [*TEST, desk.socket_toml(relay='{ driver = "gpio", chip = "/dev/gpiochip99", line = 1 }')],
        1,
        ("A1: relay_no_line", "/dev/gpiochip99 line 1"),
        beside=TRIED,
    ),
)
