"""What is read when somebody collects: the sums of `Statistics`, which GetSessionMetrics has, too,
and what the core says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ruvd.core.model import FinishReason
from ruvd.core.statistics import KINDS, Statistics
from ruvd.telemetry.spans import Attributes

# A rate sees the first of a kind only if it comes after a 0.
_NONE_YET = {(kind, reason.name): 0 for kind in KINDS for reason in FinishReason}
_NONE_MOVED = {
    (action, outcome): 0 for action in ("save", "restore") for outcome in ("ok", "failed")
}

Reading: TypeAlias = Callable[[], Iterable[tuple[float, Attributes]]]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read when somebody collects, from the collector's thread. `active_sessions` may
    ask the store; None is unknown."""

    active_sessions: Callable[[], int | None]
    active_completions: Callable[[], int]
    waiting: Callable[[], Mapping[str, int]]
    event_log_bytes: Callable[[], int]
    tasks: Callable[[], int]


class ObservableInstruments:
    """Makes the instruments that are read."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def watch(self, gauges: Gauges) -> None:
        """Observe the core."""
        self.gauge(
            "ruvd.sessions.active",
            "{session}",
            "Sessions in the store that have not expired.",
            lambda: _known(gauges.active_sessions()),
        )
        self.gauge(
            "ruvd.completions.active",
            "{completion}",
            "Completions that run or wait.",
            lambda: [(gauges.active_completions(), {})],
        )
        self.gauge(
            "ruvd.queue.size",
            "{completion}",
            "Who waits, by what for: the engine, the engine as an item of a batch, or a session.",
            lambda: [
                (count, {"ruvd.queue.name": name}) for name, count in gauges.waiting().items()
            ],
        )
        self.gauge(
            "ruvd.event_log.size",
            "By",
            "Memory for the events of completions that run or can be resumed.",
            lambda: [(gauges.event_log_bytes(), {})],
        )
        self.gauge(
            "ruvd.tasks",
            "{task}",
            "Tasks of the event loop: some for each call, and a few that are always there.",
            lambda: [(gauges.tasks(), {})],
        )

    def observe(self, sums: Statistics) -> None:
        """Observe the sums."""
        sessions = "{session}"
        self.counter(
            "ruvd.completions",
            "{completion}",
            "Completions that ended, by how.",
            lambda: [
                (count, {"ruvd.completion.kind": kind, "ruvd.completion.reason": reason})
                for (kind, reason), count in {**_NONE_YET, **sums.completions}.items()
            ],
        )
        self.counter(
            "ruvd.sessions.created",
            sessions,
            "Sessions that were committed for the first time.",
            lambda: [(sums.sessions_created, {})],
        )
        self.counter(
            "ruvd.sessions.ended",
            sessions,
            "Sessions that are no longer: idle, displaced at capacity, or ended by a client.",
            lambda: [
                (sums.sessions_ended[reason], {"ruvd.session.end_reason": reason})
                for reason in ("idle", "capacity", "client")
            ],
        )
        self.counter(
            "ruvd.context.trims",
            "{completion}",
            "Completions whose context window was trimmed.",
            lambda: [(sums.context_trims, {})],
        )
        self.counter(
            "ruvd.completions.resumed",
            "{call}",
            "Calls that resumed a completion.",
            lambda: [(sums.resumed, {})],
        )
        self.counter(
            "ruvd.completions.deduplicated",
            "{call}",
            "Calls whose request id had a completion already.",
            lambda: [(sums.deduplicated, {})],
        )
        self.counter(
            "ruvd.engine.restarts",
            "{restart}",
            "How often the engine came up again.",
            lambda: [(sums.engine_restarts, {})],
        )
        self.counter(
            "ruvd.prompt.tokens",
            "{token}",
            "Prompt tokens of session completions for which the engine reported what was cached.",
            lambda: [(sums.prompt_tokens, {})],
        )
        self.counter(
            "ruvd.prompt.cached_tokens",
            "{token}",
            "Those of them that were cached.",
            lambda: [(sums.cached_tokens, {})],
        )
        self.counter(
            "ruvd.prefill.spent",
            "s",
            "Prefill time of session completions, by the engine's clock.",
            lambda: [(sums.session_prefill_seconds, {})],
        )
        self.gauge(
            "ruvd.prefill.saved",
            "s",
            "What the cached tokens would have cost, by the mean over all evaluated tokens.",
            lambda: _known(sums.prefill_saved_seconds),
        )
        self._observe_warmth(sums)
        self.gauge(
            "ruvd.engine.up", "", "Whether the engine is up.", lambda: [(int(sums.engine_up), {})]
        )
        self.gauge(
            "ruvd.store.up", "", "Whether the store is up.", lambda: [(int(sums.store_up), {})]
        )

    def _observe_warmth(self, sums: Statistics) -> None:
        self.counter(
            "ruvd.engine.states.moves",
            "{state}",
            "KV states of conversations that were saved or restored, by outcome.",
            lambda: [
                (count, {"ruvd.state.action": action, "ruvd.state.outcome": outcome})
                for (action, outcome), count in {**_NONE_MOVED, **sums.states_moved}.items()
            ],
        )
        self.counter(
            "ruvd.engine.ahead.tokens",
            "{token}",
            "Prompt tokens that were evaluated before they were asked for.",
            lambda: [(sums.ahead_tokens, {})],
        )
        self.counter(
            "ruvd.engine.ahead.duration",
            "s",
            "What that took, by the engine's clock.",
            lambda: [(sums.ahead_seconds, {})],
        )
        self.counter(
            "ruvd.engine.ahead.found_tokens",
            "{token}",
            "Those of them that the next turn of their session found cached.",
            lambda: [(sums.ahead_found_tokens, {})],
        )

    def counter(self, name: str, unit: str, text: str, read: Reading) -> None:
        """Make a counter."""
        self._meter.create_observable_counter(name, [_callback(read)], unit, text)

    def gauge(self, name: str, unit: str, text: str, read: Reading) -> None:
        """Make a gauge."""
        self._meter.create_observable_gauge(name, [_callback(read)], unit, text)


def _callback(read: Reading) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, dict(attributes)) for value, attributes in read()]


def _known(value: float | None) -> Iterable[tuple[float, Attributes]]:
    return [] if value is None else [(value, {})]
