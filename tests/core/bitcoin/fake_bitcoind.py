"""An HTTP server that speaks bitcoind's JSON-RPC and answers as it is told: the real client code is tested on it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wattline.core.bitcoin.chain import Outpoint

Answer = tuple[int, bytes]
"""HTTP status and body."""

COOKIE = "__cookie__:00ff"
HASHES = [f"{number:064x}" for number in range(100, 200)]


def result(text: str) -> Answer:
    """``text`` is the result as JSON, so that a test says how a number is written."""
    return 200, b'{"result":' + text.encode() + b',"error":null,"id":null}'


def error(code: int, message: str) -> Answer:
    return 500, json.dumps({"result": None, "error": {"code": code, "message": message}, "id": None}).encode()


class FakeBitcoind:
    """Several connections at a time, each kept open until :meth:`hang_up` or an answer that is None."""

    def __init__(self) -> None:
        self.secret = COOKIE
        self.answers: dict[str, Callable[[list[Any]], Answer | None]] = {}
        """None: the connection is closed without a word."""
        self.calls: list[tuple[str, list[Any]]] = []
        self.connections = 0
        self.hold = threading.Event()
        self.hold.set()
        """Cleared: answers are held back."""
        self._open: list[Any] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def answer(self, method: str, answer: Answer | None) -> None:
        self.answers[method] = lambda _params: answer

    def result(self, method: str, text: str) -> None:
        self.answer(method, result(text))

    def error(self, method: str, code: int, message: str = "no") -> None:
        self.answer(method, error(code, message))

    def called(self, method: str) -> list[list[Any]]:
        """The parameters of every call of ``method``."""
        return [params for name, params in self.calls if name == method]

    def hang_up(self) -> None:
        """Close every open connection, as bitcoind does with idle ones."""
        for connection in self._open:
            connection.shutdown(2)
        self._open.clear()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def setup(self) -> None:
                super().setup()
                fake.connections += 1
                fake._open.append(self.connection)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                expected = "Basic " + base64.b64encode(fake.secret.encode()).decode()
                if self.headers["Authorization"] != expected:
                    self._say(401, b"")
                    return
                fake.calls.append((request["method"], request["params"]))
                answer = fake.answers[request["method"]](request["params"])
                fake.hold.wait()
                if answer is None:
                    self.close_connection = True
                    return
                self._say(*answer)

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def fake_bitcoind() -> Iterator[FakeBitcoind]:
    fake = FakeBitcoind()
    try:
        yield fake
    finally:
        fake.close()


class FakeBlocks:
    """A chain of blocks behind a :class:`FakeBitcoind`; block ``n`` of it has hash ``HASHES[n]``."""

    def __init__(self, fake: FakeBitcoind, height: int) -> None:
        self.height = height
        self.spent_in: dict[int, Outpoint] = {}
        self.mentioned_in: dict[int, Outpoint] = {}
        """The same bytes, in a place where they spend nothing."""
        self.stale: set[str] = set()
        self.pruned_below = 0
        self.on_block: Callable[[int], None] = lambda _height: None
        fake.result("gettxout", "null")
        fake.answers["getblockchaininfo"] = lambda _params: result(
            json.dumps(
                {
                    "chain": "regtest",
                    "initialblockdownload": False,
                    "blocks": self.height,
                    "bestblockhash": HASHES[self.height],
                }
            )
        )
        fake.answers["getblock"] = lambda params: self._block(params[0], params[1])
        fake.answers["getblockheader"] = lambda params: result(
            json.dumps({"confirmations": -1 if params[0] in self.stale else 1})
        )

    def _block(self, block_hash: str, verbosity: int) -> Answer:
        number = HASHES.index(block_hash)
        self.on_block(number)
        if number < self.pruned_below:
            return error(-1, "Block not available (pruned data)")
        spent = self.spent_in.get(number)
        if verbosity == 0:
            before = bytes.fromhex(HASHES[number - 1])[::-1].hex()
            inside = [item for item in (spent, self.mentioned_in.get(number)) if item is not None]
            tail = "".join(bytes.fromhex(o.txid)[::-1].hex() + o.vout.to_bytes(4, "little").hex() for o in inside)
            return result(json.dumps("00000020" + before + "ee" * 44 + tail))
        items: list[dict[str, object]] = [{"coinbase": "00", "sequence": 0xFFFFFFFF}]
        if spent is not None:
            items.append({"txid": spent.txid, "vout": spent.vout, "scriptSig": {"hex": ""}, "sequence": 0xFFFFFFFD})
        rows = [_tx_json(f"{number:02x}{kind:02x}" * 16, item) for kind, item in enumerate(items)]
        return result(f'{{"tx": [{", ".join(rows)}]}}')


def _tx_json(txid: str, item: dict[str, object]) -> str:
    return (
        f'{{"txid": "{txid}", "version": 2, "locktime": 0, "vsize": 154, "hex": "02", "vin": [{json.dumps(item)}], '
        '"vout": [{"value": 0.00012345, "scriptPubKey": {"hex": "5120"}}]}'
    )
