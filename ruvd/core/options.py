"""The options of a generation that a caller may set for any engine; see the proto."""

from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum
from typing import Any

from ruvd.core.values import value

# The fields that `extra_body` must not have. They are the fields of CompletionOptions, under every
# name that a server knows them by; the fields that the daemon decides, above all the conversation
# and the sharing of caches; and fields that ask for more than an answer of this API can hold.
RESERVED_FIELDS = frozenset(
    {
        "model", "temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty",
        "max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict", "logit_bias",
        "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
        "response_format",
        "messages", "prompt", "input_ids", "stream", "stream_options",
        "prompt_cache_key", "cache_salt", "extra_key", "cache_prompt", "n_cache_reuse",
        "id_slot", "slot_id", "session_id", "session_params", "kv_transfer_params",
        "n", "n_cmpl", "best_of", "echo", "logprobs", "top_logprobs", "prompt_logprobs", "n_probs",
        "return_progress", "modalities", "audio",
    }
)  # fmt: skip


class ToolChoiceMode(Enum):
    """Whether the model may, must not or must call tools, in the words of OpenAI's API."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@value(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON Schema as text, or empty."""

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool | None = None


@value(frozen=True, slots=True)
class ResponseFormat:
    """The answer is JSON that follows a JSON Schema, given as text, or any JSON object."""

    json_schema: str = ""
    name: str = ""
    strict: bool | None = None
    json_object: bool = False


@value(frozen=True, slots=True)
class CompletionOptions:
    """The options of a generation; None leaves the choice to the engine.

    `tool_choice` is a rule for all tools or the name of one tool. `extra_body` has JSON values for
    the body of the engine's request that only the engine's server understands.
    """

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    bypass_cache: bool = False
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoiceMode | str | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def for_model(self, model: str) -> "CompletionOptions":
        """Returns the options with a session's `model`, unless they name one themselves."""
        return self if self.model or not model else replace(self, model=model)
