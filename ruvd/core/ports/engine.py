"""What generates: the contract of every engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import field
from typing import Protocol, TypeAlias

from ruvd.core.model import FinishReason, Message, ToolCallDelta, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.events import PromptEvaluated
from ruvd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation. `session_key` is stable per session, empty if stateless.

    Requests with the same `prefix_key` have prompts that begin alike, for long enough that it is
    worth to evaluate that once; empty if nothing is known.
    """

    messages: Sequence[Message]
    options: CompletionOptions = CompletionOptions()
    session_key: str = ""
    prefix_key: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineText:
    """More text. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class EngineDone:
    """The last chunk: figures as the engine reported them; None is unknown.

    `prefill_seconds` is what the `prompt_tokens - cached_tokens` evaluated tokens took.
    """

    finish_reason: FinishReason
    usage: Usage | None = None
    prefill_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineReasoning:
    """More of what the model thinks before it answers. Never empty."""

    text: str


EngineChunk: TypeAlias = EngineText | EngineReasoning | ToolCallDelta | EngineDone


class Engine(Protocol):
    """What generates."""

    @property
    def model(self) -> str:
        """The name of the default model."""

    @property
    def slots(self) -> int | None:
        """How many completions it runs side by side; None if it sets no bound."""

    @property
    def window_tokens(self) -> int | None:
        """The default of a context window's `max_tokens`: what one completion's context holds
        less room for the answer; None if unknown."""

    async def start(self) -> None:
        """Begin to come up, and return at once. The observer is told when it is up."""

    async def ready(self) -> None:
        """Return when the engine is up. Raises EngineUnavailable when it is not within its
        start time-out, or has given up. Cancelling the wait is safe."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate: any number of chunks of the answer, then one EngineDone.

        Tool calls are numbered from 0; the first delta of each has its id and its name. Closing
        the generator or cancelling its task stops the generation in the engine, in every phase.
        Raises EngineUnavailable, EngineRejected (also for an option that the engine does not
        have), EngineRateLimited, EngineTimeout, or ContextTooLong, the last only before the
        first chunk.
        """

    async def models(self) -> Sequence[str]:
        """What `CompletionOptions.model` may be. Raises as `generate` does."""

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """What it can be asked to do with the state that it keeps; None if it keeps none."""

    async def close(self) -> None:
        """Save what may be saved, stop, and leave no process behind. Idempotent."""


class PrefixCache(Protocol):
    """An engine's own state of conversations, such as a KV cache. It makes answers come sooner
    and never changes them."""

    def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """Evaluate the messages, in steps, after which something else is going to be said.

        It yields after every step, and may be closed then. Raises as `Engine.generate` does.
        """

    def forget(self, session_key: str) -> None:
        """The session is no more: keep nothing of it."""

    def remembered(self) -> Collection[str]:
        """The sessions of which an earlier daemon, or this one, has saved something."""

    async def save(self) -> None:
        """Save what a stop would lose. Raises nothing."""
