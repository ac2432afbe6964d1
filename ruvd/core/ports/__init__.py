"""The contracts of the core's adapters, one module each.

Adapters live in `ruvd.stores` and `ruvd.engines`, and know nothing of each other.
"""
