"""What gRPC's own C core writes is bounded, too: nothing, whoever connects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONNECTIONS = 20
SERVER = """
import socket, sys
from pathlib import Path
from wattline.plugin.certificate import load_or_make
from wattline.plugin.service import ChargingService, serve

found = socket.create_server(("127.0.0.1", 0))
port = found.getsockname()[1]
found.close()
server = serve(ChargingService(object()), f"127.0.0.1:{port}", load_or_make(Path(sys.argv[1]), is_pinned=False))
for _ in range(int(sys.argv[2])):
    with socket.create_connection(("127.0.0.1", port), 10) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        stranger.settimeout(10)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionError:
            pass
print("all refused", flush=True)
server.stop(None).wait()
"""


def test_strangers_who_speak_no_tls_write_no_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    arguments = [sys.executable, "-c", SERVER, str(tmp_path), str(CONNECTIONS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("all refused\n", "")
