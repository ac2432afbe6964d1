"""The labels of engines: of the default one, and of a bounded number of engines with names."""

from ruvd.telemetry.conventions import Provider

# The attribute with the name of an engine of the settings' tables; the default engine has none.
ENGINE_NAME = "ruvd.engine.name"
OTHER = "_OTHER"
# The named engines that are told apart, also those that were removed.
_MAX_ENGINES = 64
_OTHER_LABELS: dict[str, str | int] = {"gen_ai.operation.name": "chat", ENGINE_NAME: OTHER}


class EngineLabels:
    """The labels by the names of engines."""

    def __init__(self, default: Provider) -> None:
        self._labels = {"": default.attributes()}
        self._default_models: dict[str, str] = {}

    def add(self, name: str, provider: Provider, default_model: str) -> None:
        """Adds a named engine, or changes its labels. Beyond the limit it is one of the others."""
        if name in self._labels or len(self._labels) <= _MAX_ENGINES:
            self._labels[name] = {**provider.attributes(), ENGINE_NAME: name}
            self._default_models[name] = default_model

    def of(self, name: str) -> dict[str, str | int]:
        """Returns the labels of an engine."""
        return self._labels.get(name, _OTHER_LABELS)

    def own_model(self, name: str, model: str) -> str:
        """Returns the engine's own name of a model that a call has named, alone or with it."""
        if not name:
            return model
        return (
            self._default_models.get(name, OTHER)
            if model == name
            else model.removeprefix(f"{name}/")
        )
