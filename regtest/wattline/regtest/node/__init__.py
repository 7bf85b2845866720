"""The practice node: a stand-in for lightningd without money, for learning and for tests.

It speaks lightningd's plugin protocol on stdin and stdout of its plugins and lightningd's JSON-RPC on a unix socket,
and is built from recordings of a real one (``regtest/recordings``). Peers talk over loopback in a protocol of their
own, the chain is a file in the network's directory, and an onion hides nothing from anybody who looks. Nothing is to be
concluded from it about Lightning.
"""
