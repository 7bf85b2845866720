"""A session from a cable's open to the final receipt: pure values and one pure function, :func:`step`.

Nothing here does I/O, reads a clock or knows how a payment travels. The shell feeds events with its own monotonic
time and carries out the effects, in their order.
"""
