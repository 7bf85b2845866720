"""``wattline init``: a commented configuration to begin with, written from the settings' own types, so that no key can
be missing or out of date.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wattline.cable.settings import CableSettings
from wattline.core.errors import UsageError
from wattline.core.ownership import check_plain
from wattline.core.settings import models_in
from wattline.plugin.settings import SocketSettings

Examples = Mapping[str, Any]
"""Values by the path of their key (``outlet.meter.bus``): what is written as it counts. The ``driver`` of a table
chooses among its types; what stands under the name of another driver (``outlet.meter.ina226``) is said beside it."""


def template(model: type[BaseModel], head: str, examples: Examples) -> str:
    """A TOML file that loads as ``model``: keys with an example, and all others with their default, commented out.

    Raises KeyError when a required key has no example.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    _tables(model, "", examples, lines)
    return "\n".join(lines) + "\n"


def _tables(model: type[BaseModel], path: str, examples: Examples, lines: list[str]) -> None:
    """The keys of ``model``, then a section for each table in it."""
    fields = model.model_fields.items()
    for name, field in fields:
        if not models_in(field.annotation):
            _key(name, field, f"{path}{name}", examples, lines)
    for name, field in fields:
        models = models_in(field.annotation)
        if not models:
            continue
        where = f"{path}{name}"
        chosen = _chosen(models, examples.get(f"{where}.driver"))
        text = field.description or (chosen.__doc__ or "").strip().splitlines()[0]
        many = get_origin(field.annotation) is list
        lines += ["", f"# {text}", f"[[{where}]]" if many else f"[{where}]"]
        _tables(chosen, f"{where}.", examples, lines)
        for other in models:
            if other is not chosen:
                _alternative(other, chosen, examples.get(f"{where}.{_driver(other)}"), lines)


def _key(name: str, field: FieldInfo, path: str, examples: Examples, lines: list[str]) -> None:
    if field.description:
        lines.append(f"# {field.description}")
    if path in examples:
        lines.append(f"{name} = {_value(name, examples[path])}")
    elif field.is_required():
        raise KeyError(path)
    else:
        default = field.get_default(call_default_factory=True)
        # TOML has no word for "nothing": what the key would look like stands there instead.
        shown = _value(name, default) if default is not None else '"..."'
        lines.append(f"#{name} = {shown}")


def _alternative(model: type[BaseModel], chosen: type[BaseModel], simulated: Any, lines: list[str]) -> None:
    """Another type of the same table, in words, with how to try it on simulated hardware; keys that mean the same in
    both are not told again."""
    driver = f'#   driver = "{_driver(model)}"' + (f"  ({simulated})" if simulated else "")
    lines += ["#", f"# Instead: {(model.__doc__ or '').strip().splitlines()[0]}", driver]
    for name, field in model.model_fields.items():
        known = chosen.model_fields.get(name)
        if name != "driver" and (known is None or known.description != field.description):
            lines.append(f"#   {name}: {field.description}")


def _chosen(models: list[type[BaseModel]], driver: Any) -> type[BaseModel]:
    if len(models) == 1:
        return models[0]
    (found,) = (model for model in models if _driver(model) == driver)
    return found


def _driver(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("driver")
    return None if field is None else str(get_args(field.annotation)[0])


def _value(name: str, value: Any) -> str:
    """``value`` in TOML; addresses in hexadecimal, as data sheets have them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:#04x}" if name == "address" else f"{value:_}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(name, item) for item in value) + "]"
    return repr(value)


init_app = typer.Typer(name="init", help="Write a commented configuration to begin with.", no_args_is_help=True)

ForceOption = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]

SOCKET_HEAD = """The configuration of a wattline socket. It works as it is, on simulated hardware: a 48 V supply, a
toaster of 1300 W, an INA228 meter and a relay on a PCF8574. Put your own bus, addresses and shunt in their place;
docs/hardware.md tells how to wire them. Keys with a # before them are at their default. Money is in msat, energy in
microwatt-hours."""

AT_24_V = 'bus = "sim:toaster@24" in meters and relay of both sides'
"""It measures no 48 V."""

SOCKET_EXAMPLES = {
    "tariff.energy_msat_per_kwh": 300_000,
    "outlet.outlet_id": "A1",
    "outlet.max_power_w": 1400,
    "outlet.meter.driver": "ina228",
    "outlet.meter.bus": "sim:toaster",
    "outlet.meter.address": 0x40,
    "outlet.meter.shunt_ohms": 0.001,
    "outlet.meter.max_current_a": 40.0,
    "outlet.relay.driver": "pcf8574",
    "outlet.relay.bus": "sim:toaster",
    "outlet.relay.address": 0x20,
    "outlet.relay.bit": 0,
    "outlet.meter.ina226": f"simulated: address = 0x48, {AT_24_V}",
    "outlet.meter.ina219": f"simulated: address = 0x4a, {AT_24_V}",
    "outlet.relay.pca9554": "simulated: address = 0x21",
}

NOBODY = "02" + 32 * "00"
"""A node id that no node can have (not a point of the curve), so that nobody is paid before it is replaced."""

CABLE_HEAD = f"""The configuration of a wattline cable. The meter is a simulated one, on the other side of the socket's.
Two keys must be yours before it can buy:
- socket.address: as the socket's `lightning-cli wattline-status` shows it; nobody has the node id {NOBODY[:6]}...
- node.rpc: the lightning-rpc file of the node that pays
Keys with a # before them are at their default. Money is in msat, energy in microwatt-hours."""

CABLE_EXAMPLES = {
    "socket.address": f"{NOBODY}@127.0.0.1:9750",
    "node.rpc": "~/.lightning/bitcoin/lightning-rpc",
    "meter.driver": "ina228",
    "meter.bus": "sim:toaster",
    "meter.address": 0x44,
    "meter.shunt_ohms": 0.001,
    "meter.max_current_a": 40.0,
    "meter.ina226": f"simulated: address = 0x4c, {AT_24_V}",
    "meter.ina219": f"simulated: address = 0x4e, {AT_24_V}",
    "limits.max_price_msat_per_kwh": 400_000,
    "limits.max_prepaid_msat": 5_000,
    "limits.max_session_msat": 1_000_000,
    "limits.max_day_msat": 5_000_000,
}


@init_app.command()
def socket(
    output: Annotated[Path, typer.Option("--output", help="The file to write.")] = Path("socket.toml"),
    force: ForceOption = False,
) -> None:
    """The configuration of a socket: what it sells, from which outlets."""
    _write(output, template(SocketSettings, SOCKET_HEAD, SOCKET_EXAMPLES), force)
    typer.echo(f"""{output} is written; every key in it is explained there.

The plugin reads it as wattline/socket.toml in the node's directory (such as ~/.lightning/bitcoin/wattline/socket.toml),
or where lightningd's option wattline-config says. Next:

    {_script("wattline")} outlet test --config {output}
    lightning-cli plugin start {_script("wattline-plugin")}""")


@init_app.command()
def cable(
    output: Annotated[Path, typer.Option("--output", help="The file to write.")] = Path("cable.toml"),
    force: ForceOption = False,
) -> None:
    """The configuration of a cable: whose power it buys, from which wallet, up to what."""
    _write(output, template(CableSettings, CABLE_HEAD, CABLE_EXAMPLES), force)
    typer.echo(f"""{output} is written; put your socket's address and your node's rpc file into it. Next:

    {_script("wattline")} cable check --config {output}
    {_script("wattline")} cable run --config {output}""")


def _script(name: str) -> str:
    """The whole path of one of our commands: its directory need not be on PATH."""
    return shlex.quote(str(Path(sys.executable).parent / name))


def _write(path: Path, text: str, force: bool) -> None:
    """For this user only, and so are the directories that are made: an address of a ledger holds a password."""
    if path.is_dir():
        raise UsageError("config_unwritable", f"{path}: is a directory; name the file in it, too")
    before = os.umask(0o077)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _over(path) if force else path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        if not path.exists():
            raise UsageError("config_unwritable", f"{error.filename}: is in the way: no directory") from error
        raise UsageError("config_exists", f"{path}: is there already; --force writes over it") from None
    except OSError as error:
        raise UsageError("config_unwritable", f"{path}: cannot be written: {error.strerror}") from error
    finally:
        os.umask(before)


def _over(path: Path) -> TextIO:
    """The file ``path``, empty, with the mode that it has; one that has a second name elsewhere keeps what is in it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "w", encoding="utf-8")
    found = os.fstat(descriptor)
    try:
        # It may be /dev/stdout.
        if stat.S_ISREG(found.st_mode):
            check_plain(path, found)
            file.truncate()
    except BaseException:
        file.close()
        raise
    return file
