"""What the core needs from outside, and the contracts, written once: a port is a module.

Adapters live in `ruvd.stores` and `ruvd.engines`, and know nothing of each other.
"""
