"""The shell: lightningd's options, hook, notifications and RPC methods, the gRPC service, and one loop per outlet."""

import os

# Before anybody imports grpc: its C core writes a line for each connection that speaks no TLS, whoever makes it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
