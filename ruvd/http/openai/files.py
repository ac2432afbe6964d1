"""Files of batches, kept in memory: bounded, and gone after a day or with the daemon.

They are not written to the disk, because they hold prompts and answers, and what the daemon stores
may have to be encrypted. A tenant may have half of the room.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruvd.core import ids
from ruvd.http.refusals import Refused

MAX_FILES = 200
MAX_BYTES = 32 << 20
KEPT_SECONDS = 86_400
_OVERHEAD_BYTES = 1000


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a tenant."""

    tenant: str
    name: str
    purpose: str
    content: bytes = b""
    id: str = field(default_factory=lambda: f"file-{ids.unguessable()}")
    created_at: int = 0

    @property
    def size_bytes(self) -> int:
        """The size that counts for the limits."""
        return len(self.content) + _OVERHEAD_BYTES

    def written(self) -> dict[str, Any]:
        """Returns the file as OpenAI's API writes it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "expires_at": self.created_at + KEPT_SECONDS,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """The files of all tenants."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._files: dict[str, StoredFile] = {}

    def add(self, tenant: str, name: str, purpose: str, content: bytes) -> StoredFile:
        """Keeps a file. Raises Refused if there is no room for it."""
        self._expire()
        stored = StoredFile(tenant, name, purpose, content, created_at=int(self._now()))
        for files, share in ((list(self._of(tenant)), 2), (list(self._files.values()), 1)):
            size = sum(each.size_bytes for each in files) + stored.size_bytes
            if len(files) >= MAX_FILES // share or size > MAX_BYTES // share:
                text = f"there is no room for {len(content)} bytes more; delete files"
                raise Refused(429, "files_limit", text, "file")
        self._files[stored.id] = stored
        return stored

    def get(self, tenant: str, file_id: str, param: str = "file_id") -> StoredFile:
        """Returns a tenant's file. Raises Refused."""
        self._expire()
        stored = self._files.get(file_id)
        if stored is None or stored.tenant != tenant:
            raise Refused(404, "file_not_found", "there is no such file", param)
        return stored

    def of(self, tenant: str) -> Sequence[StoredFile]:
        """Returns a tenant's files, the latest first."""
        self._expire()
        return list(self._of(tenant))[::-1]

    def delete(self, tenant: str, file_id: str) -> None:
        """Deletes a tenant's file. Raises Refused."""
        del self._files[self.get(tenant, file_id).id]

    def _of(self, tenant: str) -> Iterator[StoredFile]:
        return (each for each in self._files.values() if each.tenant == tenant)

    def _expire(self) -> None:
        """Forgets the files that are too old. They are in the order of their age."""
        horizon = self._now() - KEPT_SECONDS
        while self._files:
            oldest = next(iter(self._files.values()))
            if oldest.created_at > horizon:
                return
            del self._files[oldest.id]
