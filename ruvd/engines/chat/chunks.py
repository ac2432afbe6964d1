"""The decoding of an event's JSON: fast for what is usual, lenient for what is not.

The usual event is decoded into structs by msgspec. If that fails, the standard library decodes it,
which accepts NaN, control characters and halves of surrogate pairs; bytes that are no UTF-8 become
U+FFFD; and fields of an unexpected type are left out. So no answer fails for a field that is not
needed. Only what is no JSON at all is an error.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

_UNFIT: Any = object()
_MAX_DIGITS = 30


class ChunkError(ValueError):
    """An event that is no JSON."""


class Delta(msgspec.Struct, gc=False):
    """A delta, or a whole message. Its last fields are those of `engine_data.MESSAGE_FIELDS`."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    extra_content: Any = None
    provider_specific_fields: Any = None
    thought_signature: Any = None
    reasoning_signature: Any = None
    reasoning_opaque: Any = None

    @property
    def has_fields(self) -> bool:
        """Whether it has one of the `MESSAGE_FIELDS`. It is read for every token."""
        return not (
            self.reasoning_details is None
            and self.thinking_blocks is None
            and self.extra_content is None
            and self.provider_specific_fields is None
            and self.thought_signature is None
            and self.reasoning_signature is None
            and self.reasoning_opaque is None
        )


class Choice(msgspec.Struct, gc=False):
    """A choice. Only the first of a chunk counts."""

    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: Any = None
    usage: dict[str, Any] | None = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """An event with a part of an answer."""

    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: Any = None

    @property
    def only_text(self) -> str:
        """The text of a chunk that has a text and nothing else, as nearly all have. Else empty."""
        if not self.choices or self.error is not None or self.usage is not None:
            return ""
        choice = self.choices[0]
        delta = choice.delta
        if (
            delta is not None
            and not choice.finish_reason
            and not delta.tool_calls
            and not delta.reasoning_content
            and not delta.reasoning
            and not delta.refusal
            and not delta.function_call
            and choice.error is None
            and choice.usage is None
            and self.timings is None
            and not delta.has_fields
        ):
            return delta.content if type(delta.content) is str else ""
        return ""


_decoder = msgspec.json.Decoder(Chunk)
_all_decoder = msgspec.json.Decoder(list[Chunk])


def decode_usual(data: bytes) -> Chunk | None:
    """Returns the chunk in an event of the usual form, None for any other."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def decode(data: bytes) -> list[tuple[Chunk, bytes]]:
    """Returns the chunks in an event, as a rule one, each with its data. Raises ChunkError."""
    try:
        return [(_decoder.decode(data), data)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    lines = data.split(b"\n")
    try:
        value = _load(data)
    except ChunkError:
        if len(lines) == 1:
            raise
        # Events that lack the blank lines between them.
        return [chunk for line in lines if line.strip() for chunk in decode(line)]
    values = value if isinstance(value, list) else [value]
    return [(conform(item, Chunk), data) for item in values if isinstance(item, dict)]


def decode_all(events: Sequence[bytes]) -> Sequence[Chunk] | None:
    """Decodes events as one array, which takes half the time of decoding each by itself. Returns
    None if that fails."""
    try:
        if len(events) == 1:
            return [_decoder.decode(events[0])]
        chunks = _all_decoder.decode(b"[%s]" % b",".join(events))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return chunks if len(chunks) == len(events) else None


def load(data: bytes) -> Any:
    """Returns the JSON value in `data`, with valid texts. Raises ChunkError if there is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return valid_value(_load(data))


def valid_text(text: str) -> str:
    """Returns a text with U+FFFD for each half of a surrogate pair that is alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def valid_value(value: Any) -> Any:
    """Returns a JSON value whose texts are valid, see `valid_text`."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [valid_value(item) for item in value]
    if isinstance(value, dict):
        return {valid_text(name): valid_value(item) for name, item in value.items()}
    return value


def _load(data: bytes) -> Any:
    """Returns the JSON value as the standard library decodes it, with halves of pairs."""
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False, parse_int=_integer)
    except (ValueError, RecursionError):
        raise ChunkError(f"no JSON: {shown(data)}") from None


def conform(value: Any, kind: type[T]) -> T:
    """Returns a struct of type `kind` with the fields of `value` whose types fit."""
    fitting = _fit(value, inspect.type_info(kind))
    return msgspec.convert({} if fitting is _UNFIT else fitting, kind)


def shown(data: bytes, most: int = 200) -> str:
    """Returns the beginning of what a server sent, for an error's text."""
    text = data[: most + 1].decode(errors="replace").strip()
    return ascii_quoted(text if len(text) <= most else text[:most] + "…")


def ascii_quoted(text: str) -> str:
    """Returns a text in quotes, with its control characters escaped."""
    return json.dumps(text, ensure_ascii=False)


def _integer(digits: str) -> int | float:
    # Python refuses to convert very many digits, which no count or code needs.
    return int(digits) if len(digits) < _MAX_DIGITS else float(digits)


def _fit(value: Any, kind: inspect.Type) -> Any:
    """Returns the value as far as it fits the type, or _UNFIT."""
    match kind:
        case inspect.UnionType():
            return _fit_any(value, kind.types)
        case inspect.StructType():
            return _fit_fields(value, kind.fields) if isinstance(value, dict) else _UNFIT
        case inspect.ListType():
            if not isinstance(value, list):
                return _UNFIT
            items = (_fit(item, kind.item_type) for item in value)
            return [item for item in items if item is not _UNFIT]
        case inspect.DictType():
            return valid_value(value) if isinstance(value, dict) else _UNFIT
        case inspect.StrType():
            return valid_text(value) if isinstance(value, str) else _UNFIT
        case inspect.IntType():
            return _fit_integer(value)
        case inspect.NoneType():
            return value if value is None else _UNFIT
        case _:
            return value


def _fit_any(value: Any, kinds: Sequence[inspect.Type]) -> Any:
    fits = (_fit(value, kind) for kind in kinds)
    return next((fit for fit in fits if fit is not _UNFIT), _UNFIT)


def _fit_fields(value: Mapping[str, Any], fields: Sequence[inspect.Field]) -> Any:
    found = {
        field.encode_name: _fit(value[field.encode_name], field.type)
        for field in fields
        if field.encode_name in value
    }
    return {name: fit for name, fit in found.items() if fit is not _UNFIT}


def _fit_integer(value: Any) -> Any:
    if isinstance(value, bool):
        return _UNFIT
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isdecimal() and len(value) < _MAX_DIGITS:
        return int(value)
    return value if isinstance(value, int) else _UNFIT
