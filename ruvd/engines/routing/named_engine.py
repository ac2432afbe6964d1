"""An engine with a name, and the models that it answers for."""

import re
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import replace

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.engine import Engine, EngineChunk, EngineRequest, PrefixCache
from ruvd.core.ports.engine_wrapper import EngineWrapper
from ruvd.core.ports.events import PromptEvaluated
from ruvd.core.text import star_pattern


class NamedEngine(EngineWrapper):
    """Passes every call on to `engine`, which gets its own names of models.

    A call may name the engine alone, the engine and a model (`NAME/MODEL`), or one of `models`, in
    which `*` stands for any text. Without `models` it has any model that is named with its name.
    `window_tokens` is the default limit of windows. Once it is retired it takes no more requests,
    and those that run go on. `evaluates_ahead` says whether prompts may be evaluated ahead.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        models: Sequence[str] = (),
        window_tokens: int | None = None,
        *,
        evaluates_ahead: bool = False,
    ) -> None:
        super().__init__(engine)
        self._name = name
        self._window_tokens = window_tokens
        self._evaluates_ahead = evaluates_ahead
        self.models_offered = tuple(models)
        self.is_retired = False

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self._name

    @property
    def window_tokens(self) -> int | None:
        """The setting, or the engine's own value."""
        return self._window_tokens or self._engine.window_tokens

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return not self.is_retired and self._engine.is_ready

    async def ready(self) -> None:
        """Returns when the engine is up, or when it has been retired.

        Then it is not ready, and whoever waited has to look for the engine of the model again.
        """
        try:
            await self._engine.ready()
        except EngineUnavailable as error:
            if not self.is_retired:
                raise self._named(error) from error

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        return self._engine.generate(self.own_request(request))

    def own_request(self, request: EngineRequest) -> EngineRequest:
        """Returns the request with the engine's own name of the model."""
        model = self.own_model(request.options.model)
        if model == request.options.model:
            return request
        return replace(request, options=replace(request.options, model=model))

    def own_model(self, model: str) -> str:
        """Returns the engine's own name of a model that a call has named."""
        return self.model if model == self._name else model.removeprefix(f"{self._name}/")

    def has(self, model: str) -> bool:
        """Whether the engine may be asked for a model by its own name."""
        return not self.models_offered or any(
            star_pattern(each).fullmatch(model) for each in self.models_offered
        )

    async def models(self) -> Sequence[str]:
        """Returns the names by which calls may choose this engine's models, as far as it knows.

        The server is asked only where the settings do not name all of them.
        """
        exact = [each for each in self.models_offered if "*" not in each]
        if len(exact) == len(self.models_offered) and exact:
            return exact
        found = await self._engine.models()
        if not self.models_offered:
            return [f"{self._name}/{model}" for model in found]
        patterns = [star_pattern(each) for each in self.models_offered if "*" in each]
        return [*exact, *(each for each in found if _matches(patterns, each))]

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The engine itself, with its own names; None unless prompts may be evaluated ahead."""
        return self if self._evaluates_ahead and self._engine.prefix_cache else None

    def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """See `PrefixCache.prepare`."""
        return self._cache().prepare(self.own_request(request))

    def adopt(self, session_key: str, prepared_key: str) -> None:
        """See `PrefixCache.adopt`."""
        self._cache().adopt(session_key, prepared_key)

    def forget(self, session_key: str) -> None:
        """See `PrefixCache.forget`."""
        self._cache().forget(session_key)

    def remembered(self) -> Collection[str]:
        """See `PrefixCache.remembered`."""
        return self._cache().remembered()

    async def save(self) -> None:
        """See `PrefixCache.save`."""
        await self._cache().save()

    def _cache(self) -> PrefixCache:
        cache = self._engine.prefix_cache
        assert cache is not None  # noqa: S101  # `prefix_cache` has checked that
        return cache

    def _named(self, error: EngineUnavailable) -> EngineUnavailable:
        return EngineUnavailable(
            f"engine {self._name}: {error}", retry_after_seconds=error.retry_after_seconds
        )


def _matches(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    return any(each.fullmatch(name) for each in patterns)
