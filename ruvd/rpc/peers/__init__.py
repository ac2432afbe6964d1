"""Calls to other replicas with the same store, and calls from them."""
