"""The named engines of a running daemon, which are taken from the settings again on request.

The settings are read as at the start: the same file, and the flags and variables that the process
was started with. If anything in them is wrong, nothing is changed. An engine whose settings have
not changed goes on as it is. Of one that was changed or removed, the requests that run go on to
their end; then it is closed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings, SettingsInvalid
from ruvd.config.named_engines import TABLE, NamedEngineSettings
from ruvd.core.completions.engines import Engines
from ruvd.core.errors import EngineRejected
from ruvd.core.ports.background import StartTask
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import EngineStateChanged, Event, Observer
from ruvd.core.ports.secrets import ReloadedSecret, SecretSource
from ruvd.engines.routing.engine import RoutingEngine
from ruvd.engines.routing.named_engine import NamedEngine
from ruvd.rpc.admin.ports import EngineChange, ReloadedSettings
from ruvd.rpc.watched_files import FilesInvalid
from ruvd.server.engine_composition import build_engine, build_openai_engine
from ruvd.telemetry import conventions

if TYPE_CHECKING:
    from ruvd.sealing.keys import OperatorKeys
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")

LoadSettings = Callable[[], Settings]


class _NamedObserver:
    """Tells an observer of a named engine's events. An Observer.

    It says no more of the engine's state once another engine may have the name.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer = observer
        self.is_retired = False

    def __call__(self, event: Event) -> None:
        """Passes an event on, with the name."""
        if not isinstance(event, EngineStateChanged):
            self._observer(event)
        elif not self.is_retired:
            self._observer(replace(event, engine=self._name))


@dataclass(frozen=True, slots=True)
class _Built:
    """A named engine with what belongs to it."""

    settings: NamedEngineSettings
    engine: NamedEngine
    observer: _NamedObserver
    api_key: SecretSource


class NamedEngines:
    """Builds the named engines, and exchanges them in the `router`. A SecretSource of their keys.

    It takes the engines of settings that are read again once it is attached to the core.
    """

    def __init__(
        self,
        settings: Settings,
        router: RoutingEngine,
        observer: Observer,
        start_task: StartTask,
        monitoring: "Monitoring | None",
    ) -> None:
        """Builds the engines of the settings. Raises FilesInvalid for a name that is ambiguous."""
        self._settings = settings
        self._load_settings: LoadSettings | None = None
        self._engines: Engines | None = None
        self._router = router
        self._observer = observer
        self._start_task = start_task
        self._monitoring = monitoring
        self._built: Mapping[str, _Built] = {}
        self._reloading = asyncio.Lock()
        self._requested = asyncio.Event()
        built = self._build(settings)
        if errors := self._errors(settings, built):
            raise FilesInvalid("\n".join(errors))
        self._exchange(built)

    def attach(self, engines: Engines, load_settings: LoadSettings | None) -> None:
        """Takes the core's engines, and a function that reads the settings again."""
        self._engines = engines
        self._load_settings = load_settings

    async def reload(self) -> Sequence[ReloadedSecret]:
        """Reads the API keys of all named engines again; see `SecretSource.reload`."""
        results: list[ReloadedSecret] = []
        for built in list(self._built.values()):
            results += await built.api_key.reload()
        return results

    def request_reload(self) -> None:
        """Makes `run` read the settings again."""
        self._requested.set()

    async def run(self) -> None:
        """Reads the settings again whenever that is requested, until it is cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await self.reload_settings()

    async def reload_settings(self) -> ReloadedSettings:
        """Reads the settings again, and takes the named engines; see `Process.reload_settings`."""
        async with self._reloading:
            result = await self._reload_settings()
        if result.errors:
            _log.error(
                "the settings were read again and not taken", extra={"errors": list(result.errors)}
            )
            return result
        changed = {
            change.value: [name for name, each in result.engines.items() if each is change]
            for change in (EngineChange.ADDED, EngineChange.CHANGED, EngineChange.REMOVED)
        }
        _log.info("the settings were read again", extra={k: v for k, v in changed.items() if v})
        if result.restart_needed:
            _log.warning(
                "changed settings need a restart", extra={"settings": list(result.restart_needed)}
            )
        return result

    async def _reload_settings(self) -> ReloadedSettings:
        if self._load_settings is None:
            return ReloadedSettings(["the settings of this daemon were not read from a file"])
        try:
            settings = await asyncio.to_thread(self._load_settings)
        except SettingsInvalid as error:
            return ReloadedSettings(str(error).splitlines())
        before = self._built
        built = await asyncio.to_thread(self._build, settings)
        if errors := self._errors(self._settings, built):
            return ReloadedSettings(errors)
        retired = self._exchange(built)
        for name, each in built.items():
            if name not in before or each.engine is not before[name].engine:
                await each.engine.start()
        for engine in retired:
            self._start_task("closing of an engine", partial(self._close_when_unused, engine))
        fields = Settings.model_fields
        restart = [f for f in fields if getattr(settings, f) != getattr(self._settings, f)]
        return ReloadedSettings(engines=_changes(before, built), restart_needed=restart)

    def _build(self, settings: Settings) -> Mapping[str, _Built]:
        """Builds the engines that are new or changed. Imports modules, so it blocks."""
        built = {}
        for name, own in settings.engines.items():
            former = self._built.get(name)
            if former and _without_models(former.settings) == _without_models(own):
                built[name] = replace(former, settings=own)
            else:
                built[name] = self._build_one(name, own)
        return built

    def _build_one(self, name: str, settings: NamedEngineSettings) -> _Built:
        from ruvd.engines.validated.engine import ValidatedEngine  # noqa: PLC0415  # if needed

        observer = _NamedObserver(name, self._observer)
        table = f"{TABLE}.{name}"
        server = build_openai_engine(settings, observer, self._start_task, table)
        engine: Engine = ValidatedEngine(server)
        if self._monitoring:
            provider = _provider(settings)
            engine = self._monitoring.named_engine(name, engine, provider)
        ahead = self._settings.evaluate_ahead == "on"
        named = NamedEngine(
            name, engine, settings.models, settings.window_tokens, evaluates_ahead=ahead
        )
        return _Built(settings, named, observer, server.api_key)

    def _errors(self, settings: Settings, built: Mapping[str, _Built]) -> list[str]:
        """Returns what is wrong with engines of these settings in this daemon."""
        table = self._router.table(_with_models(built))
        errors = [f"{TABLE}.{name}: {text}" for name, text in table.ambiguities()]
        model = settings.compaction_model
        former = self._router.for_model(model).name
        try:
            if table.find(model) is None and former:
                text = f"{model!r} is a model of the engine {former}, which no longer has it"
                errors.append(f"compaction_model: {text}; to change it, restart the daemon")
        except EngineRejected as refusal:
            errors.append(f"compaction_model: {refusal}")
        return errors

    def _exchange(self, built: Mapping[str, _Built]) -> Sequence[NamedEngine]:
        """Takes the engines from now on, and returns those that are no longer used."""
        retired = self._router.exchange(_with_models(built))
        for name, each in self._built.items():
            if each.engine in retired:
                each.observer.is_retired = True
                self._observer(EngineStateChanged(up=None, detail="", engine=name))
        if self._monitoring:
            for name, each in built.items():
                self._monitoring.label_engine(name, _provider(each.settings), each.settings.model)
        self._built = built
        return retired

    async def _close_when_unused(self, engine: NamedEngine) -> None:
        if self._engines:
            await self._engines.wait_unused(engine)
        await self._router.close_retired(engine)


def _changes(
    before: Mapping[str, _Built], after: Mapping[str, _Built]
) -> Mapping[str, EngineChange]:
    changes = {name: EngineChange.REMOVED for name in before if name not in after}
    for name, built in after.items():
        if name not in before:
            changes[name] = EngineChange.ADDED
        elif built.settings == before[name].settings:
            changes[name] = EngineChange.UNCHANGED
        else:
            changes[name] = EngineChange.CHANGED
    return changes


def _provider(settings: NamedEngineSettings) -> conventions.Provider:
    return conventions.provider("openai", settings.affinity, settings.base_url)


def _with_models(built: Mapping[str, _Built]) -> list[tuple[NamedEngine, Sequence[str]]]:
    return [(each.engine, each.settings.models) for each in built.values()]


def _without_models(settings: NamedEngineSettings) -> NamedEngineSettings:
    """Returns the settings without those that are exchanged while the engine goes on."""
    return settings.model_copy(update={"models": []})


def build_engines(
    settings: Settings,
    observer: Observer,
    start_task: StartTask,
    secrets: list[SecretSource],
    keys: "OperatorKeys | None",
    monitoring: "Monitoring | None",
) -> tuple[RoutingEngine, NamedEngines]:
    """Builds the default engine and the named ones beside it. Imports modules, so it blocks.

    Adds their files with secrets to `secrets`. Raises FilesInvalid.
    """
    engine = build_engine(settings, observer, start_task, secrets, keys)
    engine = monitoring.engine(engine) if monitoring else engine
    router = RoutingEngine(engine, has_one_model=settings.engine == "llama")
    named = NamedEngines(settings, router, observer, start_task, monitoring)
    secrets.append(named)
    return router, named
