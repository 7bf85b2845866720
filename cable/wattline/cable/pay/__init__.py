"""How the cable pays: by keysend, or by one transaction on the chain that grows."""
