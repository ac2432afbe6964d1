"""The vocabulary of `ruvd` as immutable values: sessions, messages, completions and their parts.

Times are in seconds: `*_time` is a time of the core's clock, `*_seconds` is a duration. An unknown
value is None, never 0. The words are those of the API (`proto/ruvd/v1`).
"""

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import TypeAlias

from ruvd.core.summaries import PinnedExchange, Summary
from ruvd.core.values import value


class Role(Enum):
    """The author of a message. The values are the words of OpenAI's API and of the store."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Rendering(Enum):
    """The form in which a context window is put into a prompt."""

    MESSAGES = "messages"
    TRANSCRIPT = "transcript"


class Compaction(Enum):
    """A rule for the exchanges that leave a context window."""

    NONE = "none"
    SUMMARY = "summary"


class FinishReason(Enum):
    """The reason why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class IfBusy(Enum):
    """The behaviour of a completion whose session already has one running."""

    QUEUE = "queue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


class OnDisconnect(Enum):
    """The behaviour of a completion when its last reader has gone."""

    CANCEL = "cancel"
    CONTINUE = "continue"


@value(frozen=True, slots=True)
class ToolCall:
    """A model's request to call a function; `arguments` is JSON text as the model wrote it.

    `engine_data` is what the engine needs back with the call, as JSON text that only it reads.
    """

    id: str
    name: str
    arguments: str
    engine_data: str = ""


@value(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `tool_call_id` is the call that a tool's message answers. `reasoning` is the model's reasoning
    before its answer; an engine gets it again only with tool calls. `engine_data` is what the
    engine needs back with the message, as JSON text that only it reads. The exchange of a `pinned`
    message is sent in every turn.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""
    engine_data: str = ""
    pinned: bool = False

    @property
    def size_bytes(self) -> int:
        """The size that counts against `max_session_bytes`."""
        content = self.content
        size = len(content) if content.isascii() else len(content.encode())
        if not (self.tool_calls or self.reasoning or self.tool_call_id or self.engine_data):
            return size  # the common case: this runs for every message of a window in every turn
        size += _size(self.reasoning) + _size(self.tool_call_id) + _size(self.engine_data)
        for call in self.tool_calls:
            size += _size(call.id) + _size(call.name) + _size(call.arguments)
            size += _size(call.engine_data)
        return size


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


Exchange: TypeAlias = tuple[Message, ...]


@value(frozen=True, slots=True)
class ContextWindow:
    """The part of the history that is sent, see `sessions.window`. `max_exchanges` 0 sends all.

    The first `keep_first` exchanges are sent in every turn. `compact_at` is the share of the limits
    at which a summary is due, see `sessions.compaction`.
    """

    keep_exchanges: int = 3
    max_exchanges: int = 10
    max_tokens: int | None = None
    rendering: Rendering = Rendering.MESSAGES
    compaction: Compaction = Compaction.NONE
    keep_first: int = 0
    compact_at: float = 0.6


@value(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them. `cached_tokens` is None if it does not report them."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        cached = [c for c in (self.cached_tokens, other.cached_tokens) if c is not None]
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            sum(cached) if cached else None,
            self.completion_tokens + other.completion_tokens,
        )


@value(frozen=True, slots=True)
class Timings:
    """Durations of a completion since the call arrived; prefill is by the engine's clock."""

    queue_seconds: float
    time_to_first_token_seconds: float | None
    total_seconds: float
    prefill_seconds: float | None


# The share of its idle timeout that a session may lose if the daemon dies during a turn.
TOUCH_SHARE = 0.1


@value(frozen=True, slots=True)
class Session:
    """A conversation as it is stored, without its messages.

    `window_start` is the first exchange that is sent to the engine. `context_tokens` are the
    tokens of the last turn's prompt and answer as the engine reported them, None if it did not.
    `context_bytes` is the size of the messages that those tokens stand for. `version` is a number
    that each write in a store of several daemons changes, so that a commit can say what it is based
    on; other stores leave it 0.

    `compactions` is the number of summaries that were made, the last of which is `summary`.
    `compaction_instruction` is the client's, for the summaries. `pinned` are the exchanges before
    `window_start` that are still sent, in order.
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
    compactions: int = 0
    summary: Summary | None = None
    compaction_instruction: str = ""
    pinned: tuple[PinnedExchange, ...] = ()
    version: int = field(default=0, compare=False)

    @property
    def expire_time(self) -> float:
        """The time at which it expires unless it is used before. At that time it has expired."""
        return self.last_used_time + self.idle_timeout_seconds

    @property
    def labels_bytes(self) -> int:
        """The approximate size of the labels."""
        return sum(len(key) + len(value) for key, value in self.labels.items())

    def is_touch_due(self, now: float) -> bool:
        """Whether a turn that begins must be written to the store.

        The end of the turn is written anyway, and a session with a running turn neither expires
        nor is evicted. So the write at the beginning matters only if the daemon dies meanwhile.
        """
        return now - self.last_used_time >= self.idle_timeout_seconds * TOUCH_SHARE


@value(frozen=True, slots=True)
class Started:
    """The turn has a slot of the engine; its prompt is evaluated next."""

    completion_id: str
    session_id: str
    session_created: bool
    model: str
    context_messages: int
    context_trimmed: bool
    context_summarized: bool = False


@value(frozen=True, slots=True)
class ToolCallDelta:
    """More of the tool call `index`; its first delta has the id and the name."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@value(frozen=True, slots=True)
class Delta:
    """More of the answer: of its text, of its reasoning or of one tool call."""

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None


@value(frozen=True, slots=True)
class SentContext:
    """The prompt of a turn: its number of messages, and if it was trimmed or had a summary."""

    messages: int
    trimmed: bool = False
    summarized: bool = False


@value(frozen=True, slots=True)
class Finished:
    """The answer is complete and, in a session, durably committed; `usage` None is unknown.

    `raw_finish_reason` is the engine's own word for the finish reason, empty if it has none.
    `sent` and `time`, at which a turn ended, are stored for people who look at a session. They are
    None for turns of versions that did not store them.
    """

    finish_reason: FinishReason
    message: Message
    usage: Usage | None
    timings: Timings
    exchange_count: int
    raw_finish_reason: str = ""
    sent: SentContext | None = None
    time: float | None = None


@value(frozen=True, slots=True)
class CompletionEvent:
    """A step of a completion, numbered from 1."""

    sequence: int
    event: Started | Delta | Finished


@value(frozen=True, slots=True)
class IdempotencyRecord:
    """The store's record of a committed request, so that it is never committed twice.

    `digest` covers everything in the request that must be the same when its id is repeated. The
    record of a completion also has `completion_id`, its `Finished` event and that event's number.
    """

    request_id: str
    digest: bytes
    completion_id: str = ""
    last_sequence: int = 0
    finished: Finished | None = None
