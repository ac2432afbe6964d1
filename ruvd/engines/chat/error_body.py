"""The error that a server reports in a response's body or in an event of a stream.

Servers put the same facts under many names: the message, a code or a type, sometimes the HTTP
status that they would have answered with, and the error of the server behind them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ruvd.engines.chat.chunks import ChunkError, load, valid_text

_ERROR_FIELDS = ("error", "errors", "err", "exception")
_MESSAGES = (
    "message", "msg", "detail", "details", "description", "error_description", "error_msg",
    "error_message", "errorMessage", "status_msg", "status_message", "text", "title", "reason",
    "error", "raw",
)  # fmt: skip
_CODES = (
    "code", "status_code", "statusCode", "http_status", "http_code", "status", "error_code",
    "errorCode",
)  # fmt: skip
_TYPES = ("type", "error_type", "kind", "name", "status", "object", "reason")
_NO_ERRORS = {"", "0", "none", "ok", "success", "succeeded", "null", "200", "false"}
# Words of a type or a code, and the HTTP status that they stand for.
_MEANINGS = {
    re.compile(words, re.IGNORECASE): status
    for words, status in {
        r"balance|billing|payment|arrear": HTTPStatus.PAYMENT_REQUIRED,
        r"rate.?limit|too.?many.?req|throttl|resource.?exhausted|quota": (
            HTTPStatus.TOO_MANY_REQUESTS
        ),
        r"overload|unavailable|capacity|(server|service|engine).?busy|no.?healthy|loading.?model": (
            HTTPStatus.SERVICE_UNAVAILABLE
        ),
        r"bad.?gateway": HTTPStatus.BAD_GATEWAY,
        r"time.?d?.?out|deadline.?exceeded": HTTPStatus.GATEWAY_TIMEOUT,
        r"permission|forbidden|access.?denied": HTTPStatus.FORBIDDEN,
        r"auth|api.?key": HTTPStatus.UNAUTHORIZED,
        r"not.?found": HTTPStatus.NOT_FOUND,
        r"too.?large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        r"invalid|bad.?request|validation|unsupported|unprocessable|content.?(filter|policy)": (
            HTTPStatus.BAD_REQUEST
        ),
    }.items()
}
# A message alone names the status only in the standard's own phrases.
_PHRASES = {
    re.compile(words, re.IGNORECASE): status
    for words, status in {
        r"too many requests|rate limit": HTTPStatus.TOO_MANY_REQUESTS,
        r"service (temporarily )?unavailable|overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
        r"bad gateway": HTTPStatus.BAD_GATEWAY,
    }.items()
}
_STATED = re.compile(
    r"\b(?:error code|status code|status|http(?:/1\.1)?(?: error)?)\W{0,3}([45]\d\d)\b",
    re.IGNORECASE,
)
_MAX_DEPTH = 4
_MAX_NAME = 200


@dataclass(slots=True)
class ErrorBody:
    """An error as a server reports it. `status` is the HTTP status that it stands for, if known.

    llama.cpp adds the sizes of the prompt and of the context.
    """

    message: str = ""
    type: str = ""
    code: str = ""
    status: int | None = None
    prompt_tokens: int | None = None
    context_tokens: int | None = None


def error_in(value: Any, *, always: bool = False) -> ErrorBody | None:
    """Returns the error in a JSON value, None if it reports none.

    It is an object's field `error`, or the object itself if it has a code of an error. Unless it is
    certain that the value is an error (`always`), an object with nothing but a message is none: it
    may report progress.
    """
    if isinstance(value, list):
        found = (error_in(item) for item in value)
        first = next((error for error in found if error), None)
        return first or (_parse(value, 0) if always else None)
    if not isinstance(value, Mapping):
        return _parse(value, 0) if always else None
    for name in _ERROR_FIELDS:
        if _says_something(field := value.get(name)):
            return _with_outer(_parse(field, 0), value)
    if isinstance(base := value.get("base_resp"), Mapping) and (error := error_in(base)):
        return error  # MiniMax
    error = _parse(value, 0)
    if always or (_is_error_code(value) and (error.message or error.status)):
        return error
    return None


def _says_something(field: Any) -> bool:
    if isinstance(field, (str, int, float)) and not isinstance(field, bool):
        return str(field).strip().lower() not in _NO_ERRORS
    return bool(field)


def _is_error_code(value: Mapping[str, Any]) -> bool:
    if "error" in (str(value.get("object")), str(value.get("type")), str(value.get("status"))):
        return True
    if value.get("detail") and len(value) == 1:
        return True  # FastAPI
    return any(_is_failure(name, value[name]) for name in _CODES if name in value)


def _is_failure(name: str, code: Any) -> bool:
    if isinstance(code, (bool, dict, list)) or not _says_something(code):
        return False
    text = str(code).strip().lower()
    if "status" in name:  # it may be the status of something that goes well
        is_named = any(meaning.search(text) for meaning in _MEANINGS)
        return _http_status(text) is not None or is_named or "fail" in text or "status_" in name
    return text not in _NO_ERRORS


def _with_outer(error: ErrorBody, outer: Mapping[str, Any]) -> ErrorBody:
    """Adds what stands beside the field `error`."""
    beside = _parse({k: v for k, v in outer.items() if k not in _ERROR_FIELDS}, 0)
    if not error.message:
        error.message = beside.message
    elif beside.message and error.message.lower().replace(" ", "_") == error.message.lower():
        # The field is a code, and the words stand beside it.
        error.code = error.code or error.message
        error.message = beside.message
    error.status = error.status or beside.status or _status_by_words(error)
    return error


def _parse(value: Any, depth: int) -> ErrorBody:
    if depth > _MAX_DEPTH:
        return ErrorBody()
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            try:
                return _parse(load(text.encode(errors="replace")), depth + 1)
            except ChunkError:
                pass
        error = ErrorBody(message=text)
        error.status = _phrase(text)
        return error
    if isinstance(value, list):
        parts = [_parse(item, depth + 1) for item in value]
        first = next((part for part in parts if part.message), ErrorBody())
        texts = dict.fromkeys(part.message for part in parts if part.message)
        first.message = "; ".join(texts)
        return first
    if not isinstance(value, Mapping):
        return ErrorBody() if value is None or isinstance(value, bool) else ErrorBody(str(value))
    return _parse_object(value, depth)


def _parse_object(value: Mapping[str, Any], depth: int) -> ErrorBody:
    inner = ErrorBody()
    for name in _MESSAGES:
        if _says_something(value.get(name)):
            inner = _parse(value[name], depth + 1)
            if inner.message:
                break
    error = ErrorBody(
        message=inner.message,
        type=_first_text(value, _TYPES) or inner.type,
        code=_first_text(value, _CODES) or inner.code,
        prompt_tokens=_count(value.get("n_prompt_tokens")) or inner.prompt_tokens,
        context_tokens=_count(value.get("n_ctx")) or inner.context_tokens,
    )
    statuses = (_http_status(value.get(name)) for name in _CODES)
    error.status = next((status for status in statuses if status), None)
    metadata = value.get("metadata")
    if isinstance(metadata, Mapping) and _says_something(metadata.get("raw")):
        _add_raw(error, _parse(metadata["raw"], depth + 1))
    error.status = error.status or inner.status or _status_by_words(error)
    return error


def _add_raw(error: ErrorBody, raw: ErrorBody) -> None:
    """Adds the error of the server behind a gateway (OpenRouter)."""
    if raw.message and raw.message not in error.message:
        error.message = f"{error.message}: {raw.message}" if error.message else raw.message
    error.status = error.status or raw.status
    if raw.code and (not error.code or error.code.isdecimal()):
        error.code = raw.code
    error.prompt_tokens = error.prompt_tokens or raw.prompt_tokens
    error.context_tokens = error.context_tokens or raw.context_tokens


def _status_by_words(error: ErrorBody) -> int | None:
    for words in (error.code, error.type):
        for meaning, status in _MEANINGS.items():
            if meaning.search(words):
                return status
    return _phrase(error.message)


def _phrase(message: str) -> int | None:
    """Returns the status that a message states, by its number or in the standard's phrases."""
    if stated := _STATED.search(message):
        return int(stated[1])
    return next((status for phrase, status in _PHRASES.items() if phrase.search(message)), None)


def _http_status(value: Any) -> int | None:
    text = str(value).strip()
    if not text.isdecimal() or len(text) != 3:
        return None
    status = int(text)
    return status if status >= HTTPStatus.BAD_REQUEST and text < "600" else None


def _first_text(value: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        found = value.get(name)
        if isinstance(found, (str, int)) and not isinstance(found, bool) and str(found).strip():
            return valid_text(str(found)).strip()[:_MAX_NAME]
    return ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
