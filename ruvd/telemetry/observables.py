"""The instruments that are read when somebody collects: the sums of `Statistics`, from which
GetSessionMetrics is made as well, and gauges of the core.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.util.types import Attributes

from ruvd.core.model import FinishReason
from ruvd.core.statistics import KINDS, Statistics
from ruvd.core.tenant_limits import QUOTAS
from ruvd.telemetry.engine_labels import ENGINE_NAME

# A rate misses the first event of a kind unless it follows a 0.
_NO_COMPLETIONS = {(kind, reason.name): 0 for kind in KINDS for reason in FinishReason}
_NO_MOVES = {(action, outcome): 0 for action in ("save", "restore") for outcome in ("ok", "failed")}
_NO_REFUSALS = dict.fromkeys(QUOTAS, 0)
_NO_FENCED = dict.fromkeys(("taken", "created", "in_use", "changed"), 0)
_NO_UNCERTAIN = dict.fromkeys(("written", "repeated", "unknown"), 0)
_NO_RENEWALS = dict.fromkeys(("ok", "failed"), 0)

Reading: TypeAlias = Callable[[], Iterable[tuple[float, Attributes]]]


@dataclass(frozen=True, slots=True)
class Gauges:
    """Functions that read the core. They are called on the thread of whoever collects.

    `active_sessions` may ask the store and returns None if the number is unknown.
    """

    active_sessions: Callable[[], int | None]
    active_completions: Callable[[], int]
    waiting: Callable[[], Mapping[str, int]]
    event_log_bytes: Callable[[], int]
    tasks: Callable[[], int]


class ObservableInstruments:
    """Creates the instruments that are read."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def watch(self, gauges: Gauges) -> None:
        """Creates the gauges of the core."""
        self.gauge(
            "ruvd.sessions.active",
            "{session}",
            "The number of sessions in the store that have not expired.",
            lambda: _known(gauges.active_sessions()),
        )
        self.gauge(
            "ruvd.completions.active",
            "{completion}",
            "The number of completions that are running or waiting.",
            lambda: [(gauges.active_completions(), {})],
        )
        self.gauge(
            "ruvd.queue.size",
            "{completion}",
            "The number of completions that wait, by queue: for the engine, for the engine as an"
            " item of a batch, or for the running turn of their session.",
            lambda: [
                (count, {"ruvd.queue.name": name}) for name, count in gauges.waiting().items()
            ],
        )
        self.gauge(
            "ruvd.event_log.size",
            "By",
            "The memory that holds the events of completions that are running or can be resumed.",
            lambda: [(gauges.event_log_bytes(), {})],
        )
        self.gauge(
            "ruvd.tasks",
            "{task}",
            "The number of asyncio tasks: a few that always run, and some for each open call.",
            lambda: [(gauges.tasks(), {})],
        )

    def observe(self, sums: Statistics) -> None:
        """Creates the instruments that read the sums."""
        sessions = "{session}"
        self.counter(
            "ruvd.completions",
            "{completion}",
            "The number of completions that ended, by kind and reason.",
            lambda: [
                (count, {"ruvd.completion.kind": kind, "ruvd.completion.reason": reason})
                for (kind, reason), count in {**_NO_COMPLETIONS, **sums.completions}.items()
            ],
        )
        self.counter(
            "ruvd.sessions.created",
            sessions,
            "The number of sessions that were created.",
            lambda: [(sums.sessions_created, {})],
        )
        self.counter(
            "ruvd.sessions.ended",
            sessions,
            "The number of sessions that ended, by reason: idle for too long, evicted at capacity,"
            " or ended by a client.",
            lambda: [
                (sums.sessions_ended[reason], {"ruvd.session.end_reason": reason})
                for reason in ("idle", "capacity", "client")
            ],
        )
        self.counter(
            "ruvd.context.trims",
            "{completion}",
            "The number of completions whose context window was trimmed.",
            lambda: [(sums.context_trims, {})],
        )
        self.counter(
            "ruvd.completions.resumed",
            "{call}",
            "The number of calls that resumed a completion.",
            lambda: [(sums.resumed, {})],
        )
        self.counter(
            "ruvd.completions.deduplicated",
            "{call}",
            "The number of calls whose request id already had a completion.",
            lambda: [(sums.deduplicated, {})],
        )
        self.counter(
            "ruvd.quota.refusals",
            "{call}",
            "The number of calls that were refused because their tenant had used up a quota, by"
            " quota.",
            lambda: [
                (count, {"ruvd.quota.name": name})
                for name, count in {**_NO_REFUSALS, **sums.quota_refusals}.items()
            ],
        )
        self.counter(
            "ruvd.engine.restarts",
            "{restart}",
            "The number of times that the engine came up again after a failure. Engines of the"
            " settings' tables have their name.",
            lambda: [
                (sums.engine_restarts, {}),
                *_by_engine(sums.named_engine_restarts),
            ],
        )
        self.counter(
            "ruvd.store.damage",
            "{read}",
            "The number of reads that found stored data damaged and did not return it.",
            lambda: [(sums.damaged_data, {})],
        )
        self.counter(
            "ruvd.audit.lost",
            "{record}",
            "The number of records of the audit log that were lost because it cannot be written.",
            lambda: [(sums.audit_records_lost, {})],
        )
        self.counter(
            "ruvd.task.failures",
            "{failure}",
            "The number of times that a background task of the daemon failed, by task.",
            lambda: [
                (count, {"ruvd.task.name": name}) for name, count in sums.task_failures.items()
            ],
        )
        self.counter(
            "ruvd.prompt.tokens",
            "{token}",
            "The number of prompt tokens of session completions for which the engine reported its"
            " cached tokens.",
            lambda: [(sums.prompt_tokens, {})],
        )
        self.counter(
            "ruvd.prompt.cached_tokens",
            "{token}",
            "The number of prompt tokens of session completions that were cached by the engine.",
            lambda: [(sums.cached_tokens, {})],
        )
        self.counter(
            "ruvd.prefill.spent",
            "s",
            "The time that the engine spent on the prefill of session completions.",
            lambda: [(sums.session_prefill_seconds, {})],
        )
        self.gauge(
            "ruvd.prefill.saved",
            "s",
            "The prefill time that cached tokens of session completions saved, estimated by the"
            " mean time of all evaluated tokens.",
            lambda: _known(sums.prefill_saved_seconds),
        )
        self._observe_prewarming(sums)
        self._observe_replica(sums)
        self.gauge(
            "ruvd.engine.up",
            "",
            "1 if the engine is up, otherwise 0. Engines of the settings' tables have their name.",
            lambda: [(int(sums.engine_up), {}), *_by_engine(sums.named_engines_up)],
        )
        self.gauge(
            "ruvd.store.up",
            "",
            "1 if the store is up, otherwise 0.",
            lambda: [(int(sums.store_up), {})],
        )

    def _observe_prewarming(self, sums: Statistics) -> None:
        self.counter(
            "ruvd.engine.states.moves",
            "{state}",
            "The number of KV states of sessions that were saved or restored, by outcome.",
            lambda: [
                (count, {"ruvd.state.action": action, "ruvd.state.outcome": outcome})
                for (action, outcome), count in {**_NO_MOVES, **sums.states_moved}.items()
            ],
        )
        self.counter(
            "ruvd.engine.ahead.tokens",
            "{token}",
            "The number of prompt tokens that were evaluated ahead of the next turn of a session.",
            lambda: [(sums.ahead_tokens, {})],
        )
        self.counter(
            "ruvd.engine.ahead.duration",
            "s",
            "The time that the engine spent on evaluating prompts ahead of the next turn.",
            lambda: [(sums.ahead_seconds, {})],
        )
        self.counter(
            "ruvd.engine.ahead.found_tokens",
            "{token}",
            "The number of prompt tokens evaluated ahead that the next turn of the session found"
            " cached.",
            lambda: [(sums.ahead_found_tokens, {})],
        )

    def _observe_replica(self, sums: Statistics) -> None:
        self.counter(
            "ruvd.store.takeovers",
            "{session}",
            "The number of sessions that turns took from replicas whose lease was over.",
            lambda: [(sums.takeovers, {})],
        )
        self.counter(
            "ruvd.store.fenced",
            "{write}",
            "The number of writes that were refused because of another replica, by reason.",
            lambda: [
                (count, {"ruvd.store.fence_reason": reason})
                for reason, count in {**_NO_FENCED, **sums.fenced_writes}.items()
            ],
        )
        self.counter(
            "ruvd.store.uncertain_writes",
            "{write}",
            "The number of writes whose answer was lost, by the outcome that was found.",
            lambda: [
                (count, {"ruvd.store.write_outcome": outcome})
                for outcome, count in {**_NO_UNCERTAIN, **sums.uncertain_writes}.items()
            ],
        )
        self.counter(
            "ruvd.store.lease.renewals",
            "{renewal}",
            "The number of times that the lease of this replica was renewed, by outcome.",
            lambda: [
                (count, {"ruvd.store.renewal_outcome": outcome})
                for outcome, count in {**_NO_RENEWALS, **sums.lease_renewals}.items()
            ],
        )

    def counter(self, name: str, unit: str, text: str, read: Reading) -> None:
        """Creates a counter that `read` reads."""
        self._meter.create_observable_counter(name, [_callback(read)], unit, text)

    def gauge(self, name: str, unit: str, text: str, read: Reading) -> None:
        """Creates a gauge that `read` reads."""
        self._meter.create_observable_gauge(name, [_callback(read)], unit, text)


def _callback(read: Reading) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, attributes) for value, attributes in read()]


def _by_engine(figures: Mapping[str, int]) -> Iterable[tuple[float, Attributes]]:
    return [(int(figure), {ENGINE_NAME: name}) for name, figure in dict(figures).items()]


def _known(value: float | None) -> Iterable[tuple[float, Attributes]]:
    return [] if value is None else [(value, {})]
