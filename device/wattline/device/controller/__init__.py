"""The process that holds relays closed on short leases, its client, and how the two find each other."""
