"""The Lightning node as the rest of wattline sees it, and Core Lightning behind it.

:mod:`~wattline.lightning.node` holds the domain types and Protocols, :mod:`~wattline.lightning.cln` the real node,
:mod:`~wattline.lightning.record` and :mod:`~wattline.lightning.onion` the bytes that a payment carries.
"""
