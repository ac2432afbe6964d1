"""The contract of the memory that large answers, prompts and responses take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ruvd.core.errors import Overloaded


class Memory(Protocol):
    """The memory of the process, for content that has no small bound of its own."""

    def try_reserve(self, size_bytes: int) -> bool:
        """Reserves what so many bytes of content take. Returns False if there is too little."""

    def release(self, size_bytes: int) -> None:
        """Gives back what was reserved for so many bytes."""


class UnlimitedMemory:
    """Memory that is never used up, for a core without a budget."""

    def try_reserve(self, size_bytes: int) -> bool:
        """See `Memory.try_reserve`."""
        return True

    def release(self, size_bytes: int) -> None:
        """See `Memory.release`."""


@contextmanager
def reserved(memory: Memory, size_bytes: int, purpose: str) -> Iterator[None]:
    """Holds the memory for so many bytes. Raises Overloaded if there is too little."""
    if not memory.try_reserve(size_bytes):
        raise Overloaded(f"there is no memory for {purpose} now (max_memory_bytes); try again")
    try:
        yield
    finally:
        memory.release(size_bytes)
