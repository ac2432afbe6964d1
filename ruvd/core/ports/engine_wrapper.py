"""The base of an engine around another one."""

from collections.abc import AsyncGenerator, Sequence

from ruvd.core.ports.engine import Engine, EngineChunk, EngineRequest, PrefixCache


class EngineWrapper:
    """Passes every call on to `engine`. A subclass overrides those that it changes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def model(self) -> str:
        """See `Engine.model`."""
        return self._engine.model

    def for_model(self, model: str) -> "Engine":
        """Returns this engine; see `Engine.for_model`."""
        return self

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._engine.name

    @property
    def slots(self) -> int | None:
        """See `Engine.slots`."""
        return self._engine.slots

    @property
    def window_tokens(self) -> int | None:
        """See `Engine.window_tokens`."""
        return self._engine.window_tokens

    async def start(self) -> None:
        """See `Engine.start`."""
        await self._engine.start()

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return self._engine.is_ready

    async def ready(self) -> None:
        """See `Engine.ready`."""
        await self._engine.ready()

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        return self._engine.generate(request)

    async def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return await self._engine.models()

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """See `Engine.prefix_cache`."""
        return self._engine.prefix_cache

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()
