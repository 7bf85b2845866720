"""The Lightning node as the rest of wattline sees it, and Core Lightning behind it.

:mod:`~wattline.core.lightning.node` holds the domain types and Protocols, :mod:`~wattline.core.lightning.cln` the real
node, :mod:`~wattline.core.record` and :mod:`~wattline.core.lightning.onion` the bytes that a payment carries.
"""
