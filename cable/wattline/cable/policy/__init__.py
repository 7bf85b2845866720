"""What the cable decides, without I/O, clock or threads: when to pay, how much, by which way, and when to stop."""
