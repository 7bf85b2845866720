"""The practice node, real nodes on regtest, and the demo that runs on either."""
