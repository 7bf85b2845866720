"""A socket's real shell on a real bitcoind without lightningd, and a cable that does what it likes."""
