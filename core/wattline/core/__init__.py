"""What socket and cable share: units and rules without I/O, the node, the chain, the ledger, and how each is asked."""
