"""The plugins of the node: started, asked, told, stopped (lightningd/plugin.c)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wattline.regtest.node.fault import INVALID_PARAMETERS, PLUGIN_ERROR, PLUGIN_TERMINATED, UNKNOWN_METHOD, Fault
from wattline.regtest.node.hooks import HookChain, Registration
from wattline.regtest.node.log import Log
from wattline.regtest.node.options import OptionError, Options
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.plugin import Plugin
from wattline.regtest.node.rpc_server import Given, RpcServer

Json = dict[str, Any]
FEATURES = {"init": "800898880a8a59a1", "node": "808898880a8a59a1", "channel": "", "invoice": "02000002024100"}
_MORE_FEATURES = {
    "bolt12_offer": "",
    "bolt12_invreq": "",
    "bolt12_invoice": "020000",
    "channel_type": "08800000800000",
}
START_S = 60.0


class PluginHost:
    """All plugins; also the ``plugin`` command."""

    def __init__(
        self, options: Options, directory: Path, rpc: RpcServer, hooks: Mapping[str, HookChain], log: Log
    ) -> None:
        self._options = options
        self._directory = directory
        self._rpc = rpc
        self._hooks = hooks
        self._log = log
        self._plugins: list[Plugin] = []
        self._set: Json = {}
        """Options given when a plugin was started at run time; they stay until it is stopped, also when it did not
        start."""
        self._count = 0
        rpc.add("plugin", self._command)

    async def load(self, paths: Sequence[Path]) -> None:
        """The plugins of the command line: all manifests. Raises OptionError when the node must not start with them."""
        for path in paths:
            try:
                plugin = await self._spawn(path, f"cln:getmanifest#{self._number()}")
            except Fault as fault:
                raise OptionError(f"error starting plugin '{path}': {fault.message}") from fault
            self._plugins.append(plugin)
        self._options.check([str(option["name"]) for plugin in self._plugins for option in _options_of(plugin)])

    async def initialise(self) -> None:
        """Tell the loaded plugins to begin; one that disables itself is gone afterwards."""
        for plugin in list(self._plugins):
            try:
                await self._initialise(plugin, startup=True)
            except (TimeoutError, Fault) as fault:
                self._log.info(f"plugin-{plugin.name}: {fault}")
                await self._drop(plugin)

    def notify(self, topic: str, content: Json) -> None:
        """Tell everybody who subscribed."""
        for plugin in self._plugins:
            if plugin.is_ready:
                plugin.notify(topic, {topic: content})

    async def stop_all(self) -> None:
        """At the end of the node: all are told, and have their time at the same time."""
        await asyncio.gather(*(plugin.stop() for plugin in list(self._plugins)))

    def command_help(self, command: str) -> str | None:
        """Name and usage of a plugin's method."""
        for plugin in self._plugins:
            for method in plugin.manifest.get("rpcmethods") or []:
                if method["name"] == command:
                    return f"{command} {method.get('usage', '')}".strip()
        return None

    # One plugin.

    async def _spawn(self, path: Path, request_id: str) -> Plugin:
        plugin = Plugin(path, self._log, self._is_gone)
        try:
            await plugin.spawn()
        except OSError as error:
            raise Fault(PLUGIN_ERROR, f"{path}: {error.strerror}") from error
        try:
            wanted = {"allow-deprecated-apis": self._options.text("allow-deprecated-apis") == "true"}
            plugin.manifest = await asyncio.wait_for(plugin.request(request_id, "getmanifest", wanted), START_S)
        except Fault as fault:
            plugin.kill()
            if fault.code == PLUGIN_TERMINATED:
                raise Fault(PLUGIN_ERROR, f"{path}: exited before replying to getmanifest") from fault
            raise
        return plugin

    async def _initialise(self, plugin: Plugin, startup: bool) -> None:
        plugin.options = self._values_for(plugin)
        configuration = {
            "lightning-dir": str(self._directory),
            "rpc-file": "lightning-rpc",
            "startup": startup,
            "network": "regtest",
            "feature_set": {**FEATURES, **_MORE_FEATURES},
        }
        # Methods and hooks count from the manifest on; what comes before the answer to init waits in the pipe.
        self._register(plugin)
        given = {"options": plugin.options, "configuration": configuration}
        answer = await asyncio.wait_for(plugin.request(f"cln:init#{self._number()}", "init", given), START_S)
        if "disable" in answer:
            raise Fault(PLUGIN_ERROR, f"{plugin.path}: disabled itself at init: {answer['disable']}")
        plugin.is_ready = True

    def _register(self, plugin: Plugin) -> None:
        for method in plugin.manifest.get("rpcmethods") or []:
            self._rpc.add(str(method["name"]), self._passed_on(plugin, str(method["name"])))
        for hook in plugin.manifest.get("hooks") or []:
            name, before, after = (
                (hook, (), ())
                if isinstance(hook, str)
                else (hook["name"], hook.get("before", ()), hook.get("after", ()))
            )
            if name not in self._hooks:
                raise Fault(PLUGIN_ERROR, f"{plugin.path}: Unknown hook name {name}")

            async def ask(params: Json, name: str = name) -> Json:
                return await plugin.request(f"cln:{name}#{self._number()}", name, params)

            self._hooks[name].register(Registration(plugin.name, ask, tuple(before or ()), tuple(after or ())))

    def _passed_on(self, plugin: Plugin, name: str) -> Any:
        async def call(given: Given, request_id: str) -> Json:
            return await plugin.request(f"{request_id}/cln:{name}#{self._number()}", name, given)

        return call

    def _values_for(self, plugin: Plugin) -> Json:
        values: Json = {}
        for option in _options_of(plugin):
            name, kind = str(option["name"]), option.get("type", "string")
            given = [str(self._set[name])] if name in self._set else self._options.all(name)
            if not given:
                if option.get("default") not in (None, False):
                    values[name] = option["default"]
            elif option.get("multi"):
                values[name] = [_converted(plugin, kind, text) for text in given]
            else:
                value = _converted(plugin, kind, given[-1])
                if kind != "flag" or value:
                    values[name] = value
        return values

    def _is_gone(self, plugin: Plugin) -> None:
        for method in plugin.manifest.get("rpcmethods") or []:
            self._rpc.remove(str(method["name"]))
        for hook in self._hooks.values():
            hook.leave(plugin.name)
        if plugin in self._plugins:
            self._plugins.remove(plugin)
            if not plugin.is_leaving:
                self._log.info(f"plugin-{plugin.name}: Killing plugin: exited during normal operation")

    async def _drop(self, plugin: Plugin) -> None:
        plugin.is_leaving = True
        plugin.kill()
        await plugin.wait_ended()

    def _number(self) -> int:
        self._count += 1
        return self._count

    # The command.

    async def _command(self, given: Given, request_id: str) -> Json:
        values = dict(given) if isinstance(given, Mapping) else dict(zip(("subcommand", "plugin"), given, strict=False))
        subcommand = Parameters({"subcommand": values.pop("subcommand", None)}, ("subcommand",)).text("subcommand")
        if subcommand in ("list", "startdir", "rescan"):
            return {"command": subcommand, "plugins": self._listed()}
        if subcommand not in ("start", "stop"):
            raise Fault(INVALID_PARAMETERS, f"Unknown subcommand '{subcommand}'")
        name = Parameters({"plugin": values.pop("plugin", None)}, ("plugin",)).text("plugin")
        if subcommand == "stop":
            return await self._stop(name)
        await self._start(name, values, request_id)
        return {"command": "start", "plugins": self._listed()}

    async def _start(self, name: str, options: Json, request_id: str) -> None:
        path = Path(name) if Path(name).is_absolute() else self._directory / name
        if not os.access(path, os.X_OK) or path.is_dir():
            reason = "Permission denied" if path.exists() else "No such file or directory"
            raise Fault(INVALID_PARAMETERS, f"{name} is not executable: {reason}")
        path = path.resolve()
        if any(plugin.path == path for plugin in self._plugins):
            raise Fault(INVALID_PARAMETERS, f"{path}: Invalid argument")
        plugin = await self._spawn(path, f"{request_id}/cln:getmanifest#{self._number()}")
        self._plugins.append(plugin)
        try:
            known = {str(option["name"]) for option in _options_of(plugin)}
            for option, value in options.items():
                if option not in known:
                    raise Fault(PLUGIN_ERROR, f"{path}: unknown parameter {option}")
                kind = next(o.get("type") for o in _options_of(plugin) if o["name"] == option)
                _converted(plugin, str(kind), str(value))
                self._set[option] = value
            await self._initialise(plugin, startup=False)
        except Fault as fault:
            await self._drop(plugin)
            if fault.code == PLUGIN_TERMINATED:
                raise Fault(PLUGIN_ERROR, f"{path}: exited before replying to init") from fault
            raise
        except (TimeoutError, ValueError) as error:
            await self._drop(plugin)
            raise Fault(PLUGIN_ERROR, f"{path}: {error or 'timed out before replying to init'}") from error

    async def _stop(self, name: str) -> Json:
        for plugin in self._plugins:
            if name in (plugin.name, str(plugin.path)) or Path(name).resolve() == plugin.path:
                await plugin.stop()
                for option in _options_of(plugin):
                    self._set.pop(option["name"], None)
                return {"command": "stop", "result": f"Successfully stopped {plugin.name}."}
        raise Fault(INVALID_PARAMETERS, f"Could not find plugin {name}")

    def _listed(self) -> list[Json]:
        return [
            {"name": str(plugin.path), "active": plugin.is_ready, "dynamic": bool(plugin.manifest.get("dynamic"))}
            for plugin in self._plugins
        ]


def _options_of(plugin: Plugin) -> list[Json]:
    return list(plugin.manifest.get("options") or [])


def _converted(plugin: Plugin, kind: str, text: str) -> Any:
    if kind == "int":
        with contextlib.suppress(ValueError):
            return int(text)
        raise Fault(PLUGIN_ERROR, f"{plugin.path}: '{text}' is not a number")
    if kind in ("bool", "flag"):
        if text.lower() in ("", "true", "1"):
            return True
        if text.lower() in ("false", "0"):
            return False
        raise Fault(PLUGIN_ERROR, f"{plugin.path}: '{text}' is not a boolean")
    return text


def unknown_command(name: str) -> Fault:
    """As ``help`` says it."""
    return Fault(UNKNOWN_METHOD, f"Unknown command {name}")
