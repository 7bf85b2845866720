"""The cable: buys electricity from a socket, pays for it in small steps, and trusts no figure that it cannot check."""

import os

# Before anybody imports grpc: its C core writes what a stranger's socket makes it write, as it came.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
