"""The practice node, and harnesses for real bitcoind and lightningd on regtest."""
