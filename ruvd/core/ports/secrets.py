"""The contract of files with secrets, certificates and keys that can be read again at any time."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from ruvd.core.values import value


class SecretOutcome(Enum):
    """The outcome of reading a file again. With `REFUSED`, what was taken last stays in use."""

    UNCHANGED = "unchanged"
    TAKEN = "taken"
    REFUSED = "refused"


@value(frozen=True, slots=True)
class ReloadedSecret:
    """The result of reading one file or URL again: `error` says why it was refused."""

    setting: str
    location: str
    outcome: SecretOutcome
    error: str = ""


class SecretSource(Protocol):
    """Files that are used together, or a URL."""

    async def reload(self) -> Sequence[ReloadedSecret]:
        """Reads them again, whether they look changed or not, and returns a result for each."""
