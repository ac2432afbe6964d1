"""The words of `ruvd`, as frozen values: what sessions, messages and completions are.

Times are seconds: `*_time` since the epoch (wall clock), `*_seconds` are durations. A value that
is unknown is None, never 0. The vocabulary is the API's (`proto/ruvd/v1`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import TypeAlias

from ruvd.core.values import dataclass


class Role(Enum):
    """Who a message is from. The values are the words of OpenAI's API and of the store."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Rendering(Enum):
    """How a context window is put into a prompt."""

    MESSAGES = "messages"
    TRANSCRIPT = "transcript"


class FinishReason(Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class IfBusy(Enum):
    """What a completion does when its session has one running."""

    QUEUE = "queue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


class OnDisconnect(Enum):
    """What happens to a completion when its last reader has gone."""

    CANCEL = "cancel"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish that the caller runs a function; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `tool_call_id` is the call that a tool's message answers. `reasoning` is what the model
    thought before it answered: kept, and never sent again.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""

    @property
    def size_bytes(self) -> int:
        """What the message counts against `max_session_bytes`."""
        content = self.content
        size = len(content) if content.isascii() else len(content.encode())
        if not (self.tool_calls or self.reasoning or self.tool_call_id):
            return size  # nearly all; it is asked of every message of a window at every turn
        size += _size(self.reasoning) + _size(self.tool_call_id)
        for call in self.tool_calls:
            size += _size(call.id) + _size(call.name) + _size(call.arguments)
        return size


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


Exchange: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """How much of the history is sent. `max_exchanges` 0 is all of it; see
    `ruvd.core.sessions.window`."""

    keep_exchanges: int = 3
    max_exchanges: int = 10
    max_tokens: int | None = None
    rendering: Rendering = Rendering.MESSAGES


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them. `cached_tokens` is None where it does not say."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        cached = [c for c in (self.cached_tokens, other.cached_tokens) if c is not None]
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            sum(cached) if cached else None,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """How long a completion took, from the call's arrival; `prefill` is by the engine's clock."""

    queue_seconds: float
    time_to_first_token_seconds: float | None
    total_seconds: float
    prefill_seconds: float | None


# How much of its idle time-out a session may lose to a daemon that dies in a turn.
_TOUCH_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as the store has it, without its messages.

    `window_start` is the first exchange that is sent to the engine; `context_tokens` is the last
    turn's prompt and answer as the engine reported them (None if it did not), and
    `context_bytes` how many bytes of messages those tokens were.
    """

    id: str
    create_time: float
    last_used_time: float
    idle_timeout_seconds: float
    system_prompt: str = ""
    model: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    context_window: ContextWindow = ContextWindow()
    parent_id: str = ""
    message_count: int = 0
    exchange_count: int = 0
    size_bytes: int = 0
    usage: Usage = Usage()
    window_start: int = 0
    context_tokens: int | None = None
    context_bytes: int = 0

    @property
    def expire_time(self) -> float:
        """When it expires if nothing happens. At that instant it has expired."""
        return self.last_used_time + self.idle_timeout_seconds

    def is_touch_due(self, now: float) -> bool:
        """Whether a turn that begins writes that it does. Its end will, and who has the turn is
        neither expired nor evicted, so that it matters only to a daemon that dies in between."""
        return now - self.last_used_time >= self.idle_timeout_seconds * _TOUCH_SHARE


@dataclass(frozen=True, slots=True)
class Started:
    """The turn has the engine; its prompt is evaluated next."""

    completion_id: str
    session_id: str
    session_created: bool
    model: str
    context_messages: int
    context_trimmed: bool


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the tool call `index`; the id and the name come with its first."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the answer: of its text, of its reasoning or of one tool call."""

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete and, in a session, durably committed; `usage` None is unknown."""

    finish_reason: FinishReason
    message: Message
    usage: Usage | None
    timings: Timings
    exchange_count: int


@dataclass(frozen=True, slots=True)
class CompletionEvent:
    """A step of a completion, numbered from 1."""

    sequence: int
    event: Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """What the store remembers of a committed request, so that it is never committed twice.

    `digest` is of everything in the request that must be the same when its id comes again. A
    completion also leaves `completion_id`, the number of its `Finished` event and that event.
    """

    request_id: str
    digest: bytes
    completion_id: str = ""
    last_sequence: int = 0
    finished: Finished | None = None
