"""`/v1/files`: the files of batches."""

import logging
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ruvd.http.openai.calls import Call
from ruvd.http.openai.files import FileStore, StoredFile
from ruvd.http.openai.lists import page
from ruvd.http.refusals import Refused
from ruvd.rpc.identity import caller

# It warns of every form that is malformed, which its sender is told.
logging.getLogger("python_multipart").setLevel(logging.ERROR)
_PIECE_BYTES = 64 << 10
_MAX_NAME = 200
_PURPOSE = "batch"


class Files:
    """The operations of files."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    async def create(self, call: Call) -> None:
        """Keeps a file that is uploaded."""
        name, purpose, content = await _read_form(call)
        if purpose != _PURPOSE:
            raise Refused(400, "invalid_request", f"must be {_PURPOSE}", "purpose")
        stored = self._store.add(caller.tenant(), name[:_MAX_NAME], purpose, content)
        await call.respond(stored.written())

    async def list(self, call: Call) -> None:
        """Lists the files, by default the latest first."""
        files = self._store.of(caller.tenant())
        if purpose := call.query.get("purpose"):
            files = [each for each in files if each.purpose == purpose]
        await call.respond(page(call, files, 10_000, "file_not_found"))

    async def retrieve(self, call: Call) -> None:
        """Returns a file without its content."""
        await call.respond(self._find(call).written())

    async def content(self, call: Call) -> None:
        """Returns the content of a file."""
        await call.send_body(self._find(call).content, kind="application/octet-stream")

    async def delete(self, call: Call) -> None:
        """Deletes a file."""
        file_id = call.path["file_id"]
        self._store.delete(caller.tenant(), file_id)
        await call.respond({"id": file_id, "object": "file", "deleted": True})

    def _find(self, call: Call) -> StoredFile:
        return self._store.get(caller.tenant(), call.path["file_id"])


async def _read_form(call: Call) -> tuple[str, str, bytes]:
    """Returns the name, the purpose and the content of the file in a form."""
    body = call.raw

    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _PIECE_BYTES):
            yield body[start : start + _PIECE_BYTES]

    headers = Headers(raw=call.scope["headers"])
    parser = MultiPartParser(headers, pieces(), max_files=1, max_fields=10)
    parser.spool_max_size = len(body) + 1  # it stays in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, "invalid_request", f"is no form: {error.message}", "body") from None
    try:
        for name in form:
            if name not in ("file", "purpose"):
                raise Refused(400, "invalid_request", "is not supported", name[:100])
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise Refused(400, "invalid_request", "must be a file", "file")
        return file.filename or "file", str(purpose or ""), await file.read()
    finally:
        await form.close()
