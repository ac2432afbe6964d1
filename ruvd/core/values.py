"""Value classes: frozen dataclasses whose immutability only the type checker enforces.

A frozen dataclass sets each field of a new object by a function call, which takes four times as
long as an assignment, and a turn makes dozens of such objects. mypy rejects every assignment to
a field of a value, so there is nothing left to check at run time. Values are hashed by their
fields, as frozen dataclasses are.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(cls: type | None = None, /, *, frozen: bool = False, **options: Any) -> Any:
        """Does what `dataclasses.dataclass` does, without the run-time cost of `frozen`."""
        return dataclasses.dataclass(cls, unsafe_hash=frozen, **options)
