"""The store in memory."""

from ruvd.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
