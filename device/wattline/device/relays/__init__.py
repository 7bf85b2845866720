"""Relays behind one Protocol, and the guard: the separate process that holds them on short leases."""
