"""The contract of every engine."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import field
from typing import Protocol, TypeAlias

from ruvd.core.model import FinishReason, Message, ToolCallDelta, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.events import PromptEvaluated
from ruvd.core.tenants import DEFAULT
from ruvd.core.values import value


@value(frozen=True, slots=True)
class EngineRequest:
    """The input of one generation. `session_key` is stable per session, empty if stateless.

    Requests with the same `prefix_key` have prompts with a common beginning that is long enough to
    be evaluated once for all of them; it is empty if no such beginning is known. No part of a
    prompt is reused for another `tenant`, where the engine can tell its caches apart. No caller
    waits for a request in the `background`, which is closed when one comes.
    """

    messages: Sequence[Message]
    options: CompletionOptions = CompletionOptions()
    session_key: str = ""
    prefix_key: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    tenant: str = DEFAULT
    background: bool = False


@value(frozen=True, slots=True)
class EngineText:
    """More of the answer's text. Never empty."""

    text: str


NO_DATA: Mapping[int, str] = {}


@value(frozen=True, slots=True)
class EngineDone:
    """The last chunk: figures as the engine reported them; None is unknown.

    `message_data` and, by a call's number, `call_data` are what the engine needs back when the
    conversation goes on; see `Message.engine_data`. `prefill_seconds` is the time in which
    `prompt_tokens - cached_tokens` were evaluated. `raw_finish_reason` is the engine's own word for
    the finish reason, empty if it has none.
    """

    finish_reason: FinishReason
    usage: Usage | None = None
    prefill_seconds: float | None = None
    raw_finish_reason: str = ""
    message_data: str = ""
    call_data: Mapping[int, str] = field(default_factory=lambda: NO_DATA)


@value(frozen=True, slots=True)
class EngineReasoning:
    """More of the model's reasoning before its answer. Never empty."""

    text: str


EngineChunk: TypeAlias = EngineText | EngineReasoning | ToolCallDelta | EngineDone


class Engine(Protocol):
    """A generator of answers: an embedded model, a remote server, or a fake."""

    @property
    def model(self) -> str:
        """The name of the default model."""

    def for_model(self, model: str) -> "Engine":
        """Returns the engine that answers for a model: itself, unless it routes to several.

        An empty name is the default model. For a model that no engine has it returns one that is
        never ready, and whose `ready` and `generate` raise EngineRejected.
        """

    @property
    def name(self) -> str:
        """The name by which a call may choose it; empty for the engine of calls that name none."""

    @property
    def slots(self) -> int | None:
        """The number of completions that it runs at a time; None if it has no limit."""

    @property
    def window_tokens(self) -> int | None:
        """The default of a context window's `max_tokens`; None if unknown.

        It is the size of one completion's context less room for the answer.
        """

    async def start(self) -> None:
        """Begins the start and returns at once. The observer learns when the engine is up."""

    @property
    def is_ready(self) -> bool:
        """Whether `ready` would return at once."""

    async def ready(self) -> None:
        """Returns when the engine is up.

        Raises EngineUnavailable when it is not up within its start timeout, or has given up.
        Cancelling the wait is safe.
        """

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Yields any number of chunks of the answer, then one EngineDone.

        Tool calls are numbered from 0; the first delta of each has its id and its name. Closing
        the generator or cancelling its task stops the generation in the engine, in every phase.
        Raises EngineUnavailable, EngineRejected (also for an option that the engine does not
        have), EngineRateLimited, EngineTimeout, or ContextTooLong, the last only before the
        first chunk. With a response format also InvalidRequest and SchemaViolated.
        """

    async def models(self) -> Sequence[str]:
        """Returns the allowed values of `CompletionOptions.model`. Raises as `generate` does."""

    @property
    def prefix_cache(self) -> "PrefixCache | None":
        """The cache of evaluated prompts that the engine keeps; None if it keeps none."""

    async def close(self) -> None:
        """Saves its state, stops, and leaves no process behind. Idempotent."""


class PrefixCache(Protocol):
    """An engine's cache of evaluated prompts, such as a KV cache.

    It makes answers come sooner and never changes them.
    """

    def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """Evaluates the beginning of a prompt, which more messages will follow, in steps.

        Yields after every step, and may be closed then. Raises as `Engine.generate` does. In the
        `background`, nothing is evaluated if another session would lose what the engine has of it.
        """

    def adopt(self, session_key: str, prepared_key: str) -> None:
        """Makes what was prepared under another key that of a session, in place of its own."""

    def forget(self, session_key: str) -> None:
        """Deletes everything that is kept of a session that has ended."""

    def remembered(self) -> Collection[str]:
        """Returns the sessions of which this daemon, or an earlier one, has saved state."""

    async def save(self) -> None:
        """Saves the state that a stop would lose. Raises nothing."""
