"""What plugins keep in the node's database (lightningd/datastore.c, wallet/datastore.c)."""

from __future__ import annotations

import json
from typing import Any

from wattline.regtest.node.fault import INVALID_PARAMETERS, Fault
from wattline.regtest.node.parameters import Parameters
from wattline.regtest.node.rpc_server import Given, RpcServer
from wattline.regtest.node.store import Store

Json = dict[str, Any]
ALREADY_EXISTS = 1202
NO_SUCH_KEY = 1200
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS datastore (key TEXT PRIMARY KEY, data BLOB NOT NULL, generation INTEGER NOT NULL);"
)


class Datastore:
    """Keys are lists of text; one that has a value has no children, which is not checked here."""

    def __init__(self, store: Store, rpc: RpcServer) -> None:
        self._store = store
        store.create(_SCHEMA)
        rpc.add("datastore", self._datastore)
        rpc.add("listdatastore", self._listdatastore)

    async def _datastore(self, given: Given, _: str) -> Json:
        params = Parameters(given, ("key",), ("string", "hex", "mode", "generation"))
        key, mode = _key(params), params.text("mode", "must-create")
        if mode not in ("must-create", "must-replace", "create-or-replace"):
            raise params.invalid("mode", "should be 'must-create', 'must-replace' or 'create-or-replace'")
        if params.has("string") is params.has("hex"):
            raise Fault(INVALID_PARAMETERS, "Must have either hex or string")
        data = params.text("string").encode() if params.has("string") else bytes.fromhex(params.text("hex"))
        with self._store.unit():
            known = self._store.row("SELECT * FROM datastore WHERE key = ?", json.dumps(key))
            if known is not None and mode == "must-create":
                raise Fault(ALREADY_EXISTS, "Key already exists")
            if known is None and mode == "must-replace":
                raise Fault(NO_SUCH_KEY, "Key does not exist")
            generation = known["generation"] + 1 if known is not None else 0
            self._store.execute("DELETE FROM datastore WHERE key = ?", json.dumps(key))
            self._store.insert("datastore", key=json.dumps(key), data=data, generation=generation)
        return _shown(key, data, generation)

    async def _listdatastore(self, given: Given, _: str) -> Json:
        params = Parameters(given, (), ("key",))
        key = _key(params) if params.has("key") else []
        rows = [(json.loads(row["key"]), row) for row in self._store.rows("SELECT * FROM datastore ORDER BY key")]
        exact = [_shown(own, row["data"], row["generation"]) for own, row in rows if own == key]
        if exact:
            return {"datastore": exact}
        below = [(own, row) for own, row in rows if own[: len(key)] == key]
        # Of what lies deeper only the next part of the key is shown.
        shown = {
            tuple(own[: len(key) + 1]): _shown(own, row["data"], row["generation"])
            if len(own) == len(key) + 1
            else {"key": own[: len(key) + 1]}
            for own, row in below
        }
        return {"datastore": list(shown.values())}


def _key(params: Parameters) -> list[str]:
    value = params.raw("key")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise params.invalid("key", "should be string or array of strings")
    return value


def _shown(key: list[str], data: bytes, generation: int) -> Json:
    shown: Json = {"key": key, "generation": generation, "hex": data.hex()}
    try:
        return {**shown, "string": data.decode()}
    except UnicodeDecodeError:
        return shown
