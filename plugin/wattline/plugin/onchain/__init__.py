"""Payments on the chain at the socket: versions taken in, inputs watched, one decided on, broadcast and followed."""
