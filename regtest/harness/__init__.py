"""What tests are made of: a socket's real shell on a real bitcoind without lightningd, a cable that does what it likes,
and what a whole run shares (its order, its compiled statements)."""
