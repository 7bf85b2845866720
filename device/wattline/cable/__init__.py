"""The cable: buys electricity from a socket, pays for it in small steps, and trusts no figure that it cannot check."""
