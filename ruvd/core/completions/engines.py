"""The engine of each model, with the scheduler of its slots."""

from collections.abc import Mapping
from typing import NamedTuple

from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.ports.engine import Engine
from ruvd.core.tenant_limits import LimitsOf


class ChosenEngine(NamedTuple):
    """The engine of a model. The default one may be on this machine; others are elsewhere."""

    engine: Engine
    scheduler: SlotScheduler
    is_default: bool


class Engines:
    """Finds the engine of a model. Each engine has slots of its own, which a scheduler gives out.

    Most daemons have one engine, which is the default one.
    """

    def __init__(self, engine: Engine, batch_share: float, limits_of: LimitsOf) -> None:
        self._engine = engine
        self._batch_share = batch_share
        self._limits_of = limits_of
        scheduler = self._scheduler(engine.slots)
        self.default = ChosenEngine(engine.for_model(""), scheduler, is_default=True)
        self._named: dict[Engine, SlotScheduler] = {}

    def of(self, model: str) -> ChosenEngine:
        """Returns the engine of a model, that of the default model for an empty name."""
        engine = self._engine.for_model(model)
        if engine is self.default.engine:
            return self.default
        scheduler = self._named.get(engine)
        if scheduler is None:
            scheduler = self._scheduler(engine.slots)
            if engine.name:  # and not one that only rejects a model that no engine has
                self._named[engine] = scheduler
        return ChosenEngine(engine, scheduler, is_default=False)

    @property
    def default_model(self) -> str:
        """The model of requests that name none."""
        return self._engine.model

    @property
    def waiting(self) -> Mapping[bool, int]:
        """The numbers of completions that wait for an engine, by whether they are of batches."""
        counts = [self.default.scheduler.waiting]
        counts += [each.waiting for each in list(self._named.values())]
        return {False: sum(each[0] for each in counts), True: sum(each[1] for each in counts)}

    async def wait_unused(self, engine: Engine) -> None:
        """Returns when nothing holds a slot of an engine that gets no more requests."""
        if scheduler := self._named.get(engine):
            await scheduler.wait_unused()
            self._named.pop(engine, None)

    def _scheduler(self, slots: int | None) -> SlotScheduler:
        limits_of = self._limits_of
        return SlotScheduler(slots, self._batch_share, lambda tenant: limits_of(tenant).weight)
