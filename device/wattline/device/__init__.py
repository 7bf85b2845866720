"""What stands at the mains: buses, meters, relays, the process that holds them, and simulated ones below the
drivers."""
