"""Conversion of OpenAI's batch lines: an input line to a request, an outcome to an output line.

Pure functions. A failed item has the HTTP status of its error, and ruvd's error reason as its code;
paths of fields in the daemon's errors become paths in the line. The id of an item, which is also
its request id, is a hash of its custom_id and body, so it is the same in every run.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from ruvd_client import RuvdError
from ruvd_client.v1.session_service_pb2 import CompleteRequest, Completion, FinishReason

from ruvd.cli.openai_messages import (
    LineRefused,
    escape_line,
    read_object,
    refuse_rest,
    to_openai,
)
from ruvd.cli.openai_requests import read_request

MAX_LINE_BYTES = 16 << 20  # far more than a daemon accepts
ID_PREFIX = "batch_req_"
_URL = "/v1/chat/completions"
_SURROGATE = re.compile("[\ud800-\udfff]")
# google.rpc.Code's own mapping to HTTP.
_HTTP = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
_OK = 200
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the input; `custom_id` is None and `fields` an error if it cannot be read."""

    number: int
    id: str
    custom_id: str | None
    fields: Mapping[str, Any] | LineRefused

    @property
    def key(self) -> str:
        """The key that the item shares with its line of the output."""
        return self.custom_id or self.id


@dataclass(frozen=True, slots=True)
class Written:
    """The item and outcome of a line of the output."""

    id: str
    key: str
    succeeded: bool


# --- input ---------------------------------------------------------------------------------


def read_item(line: bytes, number: int) -> Item:
    """Reads a line as an item; an invalid line becomes an item that `to_request` refuses."""
    if len(line) > MAX_LINE_BYTES:
        return _unreadable(line, number, LineRefused("", f"is longer than {MAX_LINE_BYTES} bytes"))
    try:
        fields = read_object(json.loads(line), "")
        identity = json.dumps([fields.get("custom_id"), fields.get("body")], sort_keys=True)
    except (ValueError, RecursionError) as error:
        return _unreadable(line, number, LineRefused("", f"not valid JSON: {error}"))
    except LineRefused as refusal:
        return _unreadable(line, number, refusal)
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or _SURROGATE.search(custom_id):
        return _unreadable(line, number, LineRefused("custom_id", "must be a non-empty string"))
    return Item(number, _id(identity.encode()), custom_id, fields)


def to_request(item: Item) -> CompleteRequest:
    """Returns the stateless request of an item. Raises LineRefused."""
    if isinstance(item.fields, LineRefused):
        raise item.fields
    fields = dict(item.fields)
    del fields["custom_id"]
    if (method := fields.pop("method", None)) not in (None, "POST"):
        raise LineRefused("method", f"must be POST, not {method!r}")
    if (url := fields.pop("url", None)) not in (None, _URL):
        raise LineRefused("url", f"must be {_URL}, not {url!r}")
    body = fields.pop("body", None)
    refuse_rest(fields, "")
    return read_request(body, item.id)


def _unreadable(line: bytes, number: int, refusal: LineRefused) -> Item:
    return Item(number, _id(b"%d:%s" % (number, line)), None, refusal)


def _id(content: bytes) -> str:
    return ID_PREFIX + hashlib.sha256(content).hexdigest()[:32]


# --- output --------------------------------------------------------------------------------


def completed(item_id: str, custom_id: str | None, completion: Completion, created: int) -> str:
    """Returns the line, without line break, of an item answered at `created`, a Unix time."""
    finished = completion.finished
    reason = FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_").lower()
    body: dict[str, Any] = {
        "id": completion.completion_id,
        "object": "chat.completion",
        "created": created,
        "model": completion.model,
        "choices": [
            {
                "index": 0,
                "message": to_openai(finished.message) | {"refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
        ],
    }
    if finished.HasField("usage"):
        usage = finished.usage
        body["usage"] = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        if usage.HasField("cached_tokens"):
            body["usage"]["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return _line(item_id, custom_id, _OK, body)


def failed(item_id: str, custom_id: str | None, number: int, error: RuvdError | LineRefused) -> str:
    """Returns the line, without line break, of a failed item; `number` is its input line."""
    if isinstance(error, LineRefused):
        status, code, path, message = 400, "INVALID_REQUEST", error.path, str(error)
    else:
        status = _HTTP.get(error.code, _SERVER_ERROR)
        code, message = error.reason or error.code.name, error.message
        path = _path(error.violations[0].field) if error.violations else ""
    kind = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    body = {
        "error": {
            "message": f"line {number}: {message}",
            "type": kind,
            "param": path or None,
            "code": code,
        }
    }
    return _line(item_id, custom_id, status, body)


def read_written(line: bytes) -> Written | None:
    """Reads a line of the output; returns None if ruvd batch did not write it."""
    try:
        fields = json.loads(line)
        item_id, custom_id = fields["id"], fields["custom_id"]
        status = fields["response"]["status_code"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    wrong_key = custom_id is not None and not isinstance(custom_id, str)
    if not isinstance(item_id, str) or not item_id.startswith(ID_PREFIX) or wrong_key:
        return None
    return Written(item_id, custom_id or item_id, status == _OK)


def _path(field: str) -> str:
    """Returns the path in the line for a field of the request."""
    if field == "request":  # the whole request, such as one that is too large
        return "body"
    return "body." + field.removeprefix("options.").removeprefix("extra_body.")


def _line(item_id: str, custom_id: str | None, status: int, body: Mapping[str, Any]) -> str:
    fields = {
        "id": item_id,
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": item_id, "body": body},
        "error": None,
    }
    return escape_line(json.dumps(fields, ensure_ascii=False))
