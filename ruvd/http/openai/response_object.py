"""The response object, and the ids of responses, which are those of their completions."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ruvd.core.completions.completion import Completion
from ruvd.core.model import Finished, FinishReason, Usage
from ruvd.rpc import validation

_COMPLETION, _RESPONSE = "cmpl-", "resp_"
_MAX_KNOWN = 1000
_INCOMPLETE = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CANCELLED: "cancelled",
}
_DEFAULTS: Mapping[str, Any] = {
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "temperature": None,
    "top_p": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "reasoning": None,
    "truncation": "auto",
}


def response_id(completion_id: str) -> str:
    """Returns the id of a completion's response."""
    return _RESPONSE + completion_id.removeprefix(_COMPLETION)


def completion_id(given: str) -> str:
    """Returns the id of a response's completion; an id that cannot be is that of none."""
    name = given.removeprefix(_RESPONSE)
    return _COMPLETION + (name if validation.is_id(name) else "")


def item_name(given: str) -> str:
    """Returns the part of a response's id with which the ids of its items end."""
    return given.removeprefix(_RESPONSE)


@dataclass(slots=True)
class ResponseFacts:
    """The facts of a response that neither its answer nor its session has."""

    created_at: float = 0.0
    model: str = ""
    conversation: str = ""
    previous: str | None = None
    background: bool = False
    store: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    echo: dict[str, Any] = field(default_factory=dict)
    _completion: Callable[[], Completion | None] = lambda: None

    def watch(self, completion: Completion) -> None:
        """Remembers the completion as long as others keep it."""
        self._completion = weakref.ref(completion)

    def is_running(self) -> bool:
        """Whether the completion still runs or waits."""
        completion = self._completion()
        return completion is not None and completion.ended_at is None and not completion.replayed

    def small(self) -> "ResponseFacts":
        """Returns the facts without what may be large."""
        return replace(self, echo={})


class KnownResponses:
    """The facts of the latest responses, by the scoped ids of their completions."""

    def __init__(self) -> None:
        self._facts: OrderedDict[str, ResponseFacts] = OrderedDict()

    def add(self, scoped_id: str, facts: ResponseFacts) -> None:
        """Keeps the facts of a response."""
        self._facts[scoped_id] = facts.small()
        if len(self._facts) > _MAX_KNOWN:
            self._facts.popitem(last=False)

    def find(self, scoped_id: str) -> ResponseFacts | None:
        """Returns the facts of a response, None if they are not kept any more."""
        return self._facts.get(scoped_id)


def write(
    given_id: str,
    facts: ResponseFacts,
    status: str,
    output: list[dict[str, Any]],
    finished: Finished | None,
) -> dict[str, Any]:
    """Returns the response object; without a status, that of its answer."""
    reason = _INCOMPLETE.get(finished.finish_reason) if finished else None
    if not status:
        status = "incomplete" if reason else "completed"
    return {
        **_DEFAULTS,
        **facts.echo,
        "id": given_id,
        "object": "response",
        "created_at": int(facts.created_at),
        "status": status,
        "background": facts.background,
        "conversation": {"id": facts.conversation} if facts.conversation else None,
        "previous_response_id": facts.previous,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": facts.model,
        "output": output,
        "store": facts.store,
        "metadata": facts.metadata,
        "usage": usage(finished.usage) if finished else None,
    }


def usage(counted: Usage | None) -> dict[str, Any] | None:
    """Returns the token counts; None if the engine did not report them.

    OpenAI's format asks for numbers, so an unknown number of cached tokens is 0, and so is that of
    the tokens of reasoning, which are part of the output.
    """
    if counted is None:
        return None
    return {
        "input_tokens": counted.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counted.cached_tokens or 0},
        "output_tokens": counted.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
    }
