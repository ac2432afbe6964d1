"""The lines of a batch's files: requests that are read, and responses that are written."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core.completions.batch import BatchOutcome
from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.errors import FieldViolation, InvalidRequest, PermissionDenied, RuvdError
from ruvd.core.tenants import own
from ruvd.http import bodies
from ruvd.http.openai.calls import Rename
from ruvd.http.openai.chat import read_chat
from ruvd.http.openai.chat_stream import ChatAnswer
from ruvd.http.openai.completion_call import checked
from ruvd.http.openai.endpoint import with_names
from ruvd.http.openai.errors import respond_to
from ruvd.http.openai.fields import Fields
from ruvd.rpc.requests import MAX_ITEMS
from ruvd.rpc.validation import RequestLimits

ENDPOINT = "/v1/chat/completions"
_LINES_AT_ONCE = 50
_MAX_ERRORS = 100
_MAX_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read: its request, or the error that the request has failed with."""

    custom_id: str
    item: CompletionRequest | RuvdError
    rename: Rename


class LinesInvalid(Exception):
    """Lines that are no requests; `errors` are as OpenAI's API writes them."""

    def __init__(self, errors: Sequence[dict[str, Any]]) -> None:
        super().__init__("the file has lines that are no requests")
        self.errors = errors


async def read_lines(content: bytes, limits: RequestLimits) -> Sequence[Line]:
    """Reads the requests of a file. Raises LinesInvalid.

    A request whose body is wrong fails by itself, as it would alone.
    """
    lines: dict[str, Line] = {}
    errors: list[dict[str, Any]] = []
    for number, text in enumerate(content.split(b"\n"), 1):
        if number % _LINES_AT_ONCE == 0:
            await asyncio.sleep(0)  # others are to be served
        if not text.strip():
            continue
        try:
            line = _read_line(await bodies.parse(text), limits)
            _check_beside(line, lines)
        except InvalidRequest as error:
            errors.append(_error("invalid_line", str(error), number, error.violations[0].field))
        else:
            lines[line.custom_id] = line
        if len(errors) == _MAX_ERRORS or len(lines) > MAX_ITEMS:
            break
    if len(lines) > MAX_ITEMS:
        errors.append(_error("too_many_lines", f"more than {MAX_ITEMS} requests; split the file"))
    if not lines and not errors:
        errors.append(_error("empty_file", "the file has no requests"))
    if errors:
        raise LinesInvalid(errors)
    return list(lines.values())


def _check_beside(line: Line, lines: Mapping[str, Line]) -> None:
    if line.custom_id in lines:
        raise InvalidRequest([FieldViolation("custom_id", "is that of another line")])


def _error(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message[:1000], "param": param}


def _read_line(value: dict[str, Any], limits: RequestLimits) -> Line:
    """Reads one line. Raises InvalidRequest unless it is a request."""
    fields = Fields()
    custom_id = fields.text(value.pop("custom_id", None), "custom_id")
    if not 0 < len(custom_id) <= _MAX_ID:
        fields.refuse("custom_id", f"must have 1 to {_MAX_ID} characters")
    fields.choice(value.pop("method", None), "method", ("POST",))
    fields.choice(value.pop("url", None), "url", (ENDPOINT,))
    body = fields.object(value.pop("body", None), "body")
    fields.refuse_rest(value, "")
    fields.raise_if_wrong()
    of_body = Fields()
    if body.pop("stream", None):
        of_body.refuse("stream", "must be false in a batch")
    request, _, rename = read_chat(of_body, body)
    try:
        return Line(custom_id, checked(of_body, request, limits, rename), rename)
    except (InvalidRequest, PermissionDenied) as error:
        return Line(custom_id, error, lambda path: path)


def write_outcome(line: Line, outcome: BatchOutcome, model: str) -> bytes:
    """Returns the line of an outcome."""
    if outcome.finished is not None:
        answer = ChatAnswer(own(outcome.completion_id), outcome.model or model)
        return _written(line, 200, answer.whole(outcome.finished), own(outcome.completion_id))
    error = outcome.error or RuntimeError("an outcome without an answer and without an error")
    response = respond_to(with_names(error, line.rename))
    return _written(line, response.status, {"error": response.error}, "")


def _written(line: Line, status: int, body: Any, request_id: str) -> bytes:
    response = {"status_code": status, "request_id": request_id, "body": body}
    written = {"id": f"batch_req_{line.custom_id}", "custom_id": line.custom_id,
               "response": response, "error": None}  # fmt: skip
    return json.dumps(written, separators=(",", ":")).encode() + b"\n"
