"""Reading of the options of a generation from OpenAI's fields into CompletionOptions.

A field that OpenAI's API does not have goes to the engine's server in `extra_body`, which is how
servers of open models take options of their own (`top_k`, `min_p`). A field of OpenAI's that ruvd
does not fulfil is refused, unless it has its default.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ruvd.http.openai.fields import Fields, clean, join
from ruvd.rpc.option_validation import MAX_EXTRA_VALUES
from ruvd.v1 import session_service_pb2 as pb

_INT64 = range(-(2**63), 2**63)
_MAX_DEPTH = 32
_MAX_TOKEN_DIGITS = 9
_MODES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_SESSIONS = "is not supported; label a session instead (metadata of /v1/conversations)"
# Fields of OpenAI's that are accepted with these values only, and what to use instead.
Only: TypeAlias = Mapping[str, tuple[tuple[Any, ...], str]]
ONLY: Only = {
    "n": ((1,), "must be 1; send the request several times, or use /v1/batches"),
    "best_of": ((1,), "must be 1; send the request several times"),
    "logprobs": ((False,), "must be false: log probabilities are not supported"),
    "top_logprobs": ((0,), "must be 0: log probabilities are not supported"),
    "echo": ((False,), "must be false"),
    "modalities": ((["text"],), 'must be ["text"]: only text is supported'),
    "audio": ((), "is not supported: only text is"),
    "store": ((False,), "must be false; use X-Ruvd-Session-Id or /v1/responses"),
    "metadata": (({},), _SESSIONS),
    "user": (("",), "is not supported; the caller's credential says who calls"),
    "safety_identifier": (("",), "is not supported; the caller's credential says who calls"),
    "prompt_cache_key": (("",), "is not supported; a session has its own cache key"),
    "prompt_cache_retention": ((), "is not supported; the engine's settings decide"),
    "service_tier": (("auto", "default"), "must be auto or default"),
    "prediction": ((), "is not supported"),
    "web_search_options": ((), "is not supported; give the model a function to search with"),
    "functions": (([],), "is deprecated: use tools"),
    "function_call": (("none",), "is deprecated: use tool_choice"),
    "moderation": ((), "is not supported"),
}  # fmt: skip


def refuse_unsupported(fields: Fields, body: dict[str, Any], only: Only, path: str = "") -> None:
    """Pops the fields that have one value only, and refuses other values."""
    for name, (accepted, text) in only.items():
        value = body.pop(name, None)
        if value is not None and not any(
            value == each and type(value) is type(each) for each in accepted
        ):
            fields.refuse(join(path, name), text)


class OptionReader:
    """Reads the options that all of OpenAI's endpoints have under the same names."""

    def __init__(self, fields: Fields, body: dict[str, Any]) -> None:
        self._fields = fields
        self._body = body
        self.options = pb.CompletionOptions()

    def read(self, name: str, read: Callable[[Any, str], Any], to: str = "") -> Any:
        """Pops and reads a field into the option of the same name, or `to`."""
        value = self._fields.optional(self._body, name, "", read)
        if value is not None:
            setattr(self.options, to or name, value)
        return value

    def read_common(self) -> None:
        """Reads what chat completions and responses both have."""
        fields = self._fields
        self.read("model", fields.text)
        for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
            self.read(name, fields.number)
        self.read("parallel_tool_calls", fields.flag)
        self.read("seed", lambda value, path: fields.integer(value, path, _INT64))
        fields.optional(self._body, "stop", "", self._read_stop)
        fields.optional(self._body, "logit_bias", "", self._read_bias)

    def read_rest(self) -> None:
        """Reads the fields that are left, which only the engine's server knows."""
        rest = {name: value for name, value in self._body.items() if value is not None}
        if len(rest) > MAX_EXTRA_VALUES:
            text = f"has more than {MAX_EXTRA_VALUES} fields that only the engine's server knows"
            self._fields.refuse("body", text)
            return
        for name, value in rest.items():
            path = clean(name)
            if self._is_sendable(name, path) and self._is_sendable(value, path):
                self.options.extra_body.update({name: value})
        self._body.clear()

    def _read_stop(self, value: Any, path: str) -> None:
        if isinstance(value, str):
            self.options.stop.append(self._fields.text(value, path))
            return
        for at, each in self._fields.items(value, path):
            self.options.stop.append(self._fields.text(each, at))

    def _read_bias(self, value: Any, path: str) -> None:
        for token, bias in self._fields.object(value, path).items():
            at = join(path, clean(token))
            is_id = token.isascii() and token.isdigit() and len(token) <= _MAX_TOKEN_DIGITS
            if not is_id:
                self._fields.refuse(at, "is not a token id")
            elif (number := self._fields.number(bias, at)) is not None:
                self.options.logit_bias[int(token)] = number

    def _is_sendable(self, value: Any, path: str, depth: int = 1) -> bool:
        fields = self._fields
        if depth > _MAX_DEPTH:
            fields.refuse(path, f"is nested deeper than {_MAX_DEPTH}")
            return False
        if isinstance(value, str):
            return value == "" or bool(fields.text(value, path))
        if isinstance(value, bool) or value is None:
            return True
        if isinstance(value, int | float):
            number = fields.number(value, path)
            if number is not None and number != value:
                fields.refuse(path, "is an integer that a double cannot represent")
            return number == value
        if isinstance(value, list):
            return all(self._is_sendable(each, path, depth + 1) for each in value)
        return all(
            self._is_sendable(name, path) and self._is_sendable(each, path, depth + 1)
            for name, each in value.items()
        )


def read_function(fields: Fields, value: Any, path: str) -> pb.Tool:
    """Reads a function that the model may call."""
    function = fields.object(value, path)
    tool = pb.Tool(name=fields.text(function.pop("name", None), f"{path}.name"))
    tool.description = fields.optional(function, "description", path, fields.text) or ""
    tool.parameters = fields.optional(function, "parameters", path, fields.schema) or ""
    strict = fields.optional(function, "strict", path, fields.flag)
    if strict is not None:
        tool.strict = strict
    fields.refuse_rest(function, path)
    return tool


def read_mode(fields: Fields, value: Any, path: str) -> pb.ToolChoice:
    """Reads a tool choice that is a word."""
    word = fields.choice(value, path, _MODES)
    return pb.ToolChoice(mode=_MODES[word or "auto"])


def read_schema(fields: Fields, given: dict[str, Any], path: str) -> pb.ResponseFormat:
    """Reads the JSON Schema that the answer must follow, with its name and description."""
    inner = fields.object(given.pop("schema", None), f"{path}.schema")
    description = fields.optional(given, "description", path, fields.text)
    if description:
        inner.setdefault("description", description)
    form = pb.ResponseFormat(json_schema=fields.schema(inner, f"{path}.schema"))
    form.name = fields.optional(given, "name", path, fields.text) or ""
    strict = fields.optional(given, "strict", path, fields.flag)
    if strict is not None:
        form.strict = strict
    fields.refuse_rest(given, path)
    return form
