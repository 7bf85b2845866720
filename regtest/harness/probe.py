"""A plugin that writes down what lightningd tells it and answers hooks as it was told: the recorder's end of the
plugin protocol. Its text is run as a program of its own (nothing of wattline or pyln in it), so that what it sees is
what lightningd sent, and the recording can be held against any other node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SUBSCRIPTIONS = (
    "block_added",
    "channel_state_changed",
    "connect",
    "disconnect",
    "invoice_creation",
    "invoice_payment",
    "sendpay_failure",
    "sendpay_success",
    "shutdown",
)


def write_probe(directory: Path, node: str, name: str = "probe") -> Path:
    """The program for one node; what it hears goes to a file beside it, ``heard``."""
    path = directory / f"{name}-{node}"
    text = _PROGRAM.format(python=sys.executable, subscriptions=list(SUBSCRIPTIONS), name=name)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def heard(program: Path) -> list[dict[str, Any]]:
    """The messages that the probe got so far, over all its runs, in their order."""
    log = program.with_name(program.name + ".heard")
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


_PROGRAM = """#!{python}
import json, os, sys

NAME = "{name}"
answers, held = [], []
heard = open(os.path.abspath(sys.argv[0]) + ".heard", "a", encoding="utf-8")


def send(message):
    sys.stdout.write(json.dumps({{"jsonrpc": "2.0", **message}}) + "\\n\\n")
    sys.stdout.flush()


def answer_hook(request, answer):
    if answer == "die":
        os._exit(1)
    if answer == "hold":
        held.append(request)
    else:
        send({{"id": request["id"], "result": {{"result": "continue"}} if answer == "continue" else answer}})


MANIFEST = {{
    "options": [
        {{"name": NAME + "-text", "type": "string", "default": "bread", "description": "a text"}},
        {{"name": NAME + "-number", "type": "int", "default": 7, "description": "a number"}},
        {{"name": NAME + "-flag", "type": "flag", "default": False, "description": "a flag"}},
        {{"name": NAME + "-disable", "type": "string", "description": "a reason not to run"}},
    ],
    "rpcmethods": [
        {{"name": NAME + "-answers", "usage": "answers", "description": "what the next hooks are answered"}},
        {{"name": NAME + "-release", "usage": "answer", "description": "answer the hook that is held longest"}},
        {{"name": NAME + "-echo", "usage": "[text]", "description": "the parameters"}},
        {{"name": NAME + "-refuse", "usage": "", "description": "an error"}},
        {{"name": NAME + "-hang", "usage": "", "description": "never answered"}},
        {{"name": NAME + "-log", "usage": "level message", "description": "a line for the log"}},
    ],
    "subscriptions": {subscriptions},
    "hooks": [{{"name": "htlc_accepted", "before": ["keysend"]}}],
    "dynamic": True,
    "nonnumericids": True,
}}


def answer(request):
    method, params = request["method"], request.get("params", {{}})
    if method == "getmanifest":
        send({{"id": request["id"], "result": MANIFEST}})
    elif method == "init":
        reason = params["options"].get(NAME + "-disable")
        send({{"id": request["id"], "result": {{"disable": reason}} if reason else {{}}}})
    elif method == "htlc_accepted":
        answer_hook(request, answers.pop(0) if answers else "continue")
    elif method == NAME + "-answers":
        answers.extend(params["answers"])
        send({{"id": request["id"], "result": {{"answers": len(answers)}}}})
    elif method == NAME + "-release":
        answer_hook(held.pop(0), params["answer"])
        send({{"id": request["id"], "result": {{"held": len(held)}}}})
    elif method == NAME + "-refuse":
        send({{"id": request["id"], "error": {{"code": -77, "message": "no bread", "data": {{"slices": 0}}}}}})
    elif method == NAME + "-log":
        send({{"method": "log", "params": params}})
        send({{"id": request["id"], "result": {{}}}})
    elif method == NAME + "-echo":
        send({{"id": request["id"], "result": {{"params": params}}}})
    elif method == "shutdown":
        os._exit(0)


buffer = b""
while True:
    data = os.read(0, 65536)
    if not data:
        break
    buffer += data
    while b"\\n\\n" in buffer:
        text, buffer = buffer.split(b"\\n\\n", 1)
        request = json.loads(text)
        heard.write(json.dumps(request) + "\\n")
        heard.flush()
        answer(request)
"""
