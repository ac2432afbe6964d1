"""Dataclasses that are frozen by the type checker's word.

What a frozen dataclass does at run time is to set each field of a new object by a call, which
takes four times as long as an assignment, and a turn makes dozens of objects. mypy refuses an
assignment to a field of these wherever it is written, so nothing is left to refuse at run time.
They are hashed by their fields, as frozen ones are.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, **options: Any) -> Any:
        """`dataclasses.dataclass`, without what `frozen` does to each new object."""
        return dataclasses.dataclass(cls, unsafe_hash=frozen, **options)
