"""The contract of the memory that large answers and prompts take."""

from typing import Protocol


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
