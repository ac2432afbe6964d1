"""The table of the named engines: which of them a model belongs to. It never changes.

In this order a name is that of an engine, an engine with a model (`NAME/MODEL`), the default
engine's own model, one of an engine's models, and one that matches an engine's pattern. Anything
else is for the default engine.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from ruvd.core.errors import EngineRejected
from ruvd.core.text import star_pattern
from ruvd.engines.routing.named_engine import NamedEngine

_SHOWN = 20
_SHOWN_LENGTH = 100


class Table:
    """The engines by their names, with their models.

    `default_model` is the model of the default engine, which has no other if it `has_one_model`.
    `removed` are the names of engines that there were.
    """

    def __init__(
        self,
        engines: Mapping[str, NamedEngine],
        models: Mapping[str, Sequence[str]],
        *,
        default_model: str,
        has_one_model: bool,
        removed: Collection[str] = (),
    ) -> None:
        self.engines = engines
        self._default_model = default_model
        self._has_one_model = has_one_model
        self._removed = frozenset(removed)
        self._models = models
        self._exact: dict[str, NamedEngine] = {}
        self._patterns: list[tuple[re.Pattern[str], NamedEngine]] = []
        for name, engine in engines.items():
            for model in models[name]:
                if "*" in model:
                    self._patterns.append((star_pattern(model), engine))
                else:
                    self._exact[model] = engine

    def ambiguities(self) -> Iterator[tuple[str, str]]:
        """Yields the names of engines that claim the default engine's model, and how they do."""
        default = self._default_model
        for name, models in self._models.items():
            if default.partition("/")[0] == name:
                yield name, f"the name is that of the default engine's model {default!r}"
            elif default in models:
                yield name, f"the model {default!r} is that of the default engine"

    def find(self, model: str) -> NamedEngine | None:
        """Returns the engine of a model, None for the default engine.

        Raises EngineRejected, with the names that there are, if no engine has it.
        """
        name, slash, own = model.partition("/")
        if named := self.engines.get(name):
            if slash and not named.has(own):
                models = self._models[name]
                raise EngineRejected(f"engine {name} has no model {own!r}; it has {_list(models)}")
            return named
        if model == self._default_model or not model:
            return None
        if found := self._exact.get(model) or self._by_pattern(model):
            return found
        if name in self._removed:
            raise EngineRejected(
                f"there is no model {model!r}: the engine {name} was removed from the settings; "
                f"there are {self._names()}"
            )
        if self._has_one_model and self.engines:
            raise EngineRejected(f"there is no model {model!r}; there are {self._names()}")
        return None

    def _by_pattern(self, model: str) -> NamedEngine | None:
        matching = (engine for pattern, engine in self._patterns if pattern.fullmatch(model))
        return next(matching, None)

    def _names(self) -> str:
        names = [self._default_model]
        for name, models in self._models.items():
            names += models or [f"{name}/..."]
        return _list(names)


def _list(names: Sequence[str]) -> str:
    """Returns the first names as a text, and the number of the others."""
    shown = ", ".join(repr(each[:_SHOWN_LENGTH]) for each in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
