"""Counters and sums of everything that happens in the daemon.

GetSessionMetrics and the metrics of `ruvd.telemetry.observables` read the same sums, so they cannot
disagree. The proto defines each figure and its unit at SessionMetrics. Figures of the engine are
used as the engine reported them. Values that it does not report are left out, never counted as 0.
"""

from collections import Counter
from dataclasses import dataclass

from ruvd.core.ports.events import (
    AuditRecordLost,
    BackgroundTaskFailed,
    CallForwarded,
    CompactionGivenUp,
    CompletionEnded,
    CompletionJoined,
    EngineStateChanged,
    EngineStateMoved,
    Event,
    LeaseRenewed,
    PromptEvaluated,
    PromptFoundEvaluated,
    QuotaRefused,
    SessionCompacted,
    SessionCreated,
    SessionGone,
    SessionTakenOver,
    StoredDataDamaged,
    StoreStateChanged,
    SummaryRequested,
    UncertainWriteEnded,
    WriteFenced,
)


@dataclass(slots=True)
class _Latency:
    count: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.seconds / self.count if self.count else None


KINDS = ("batch", "session", "stateless")


def kind(event: CompletionEnded) -> str:
    """Returns the kind of a completion: `batch`, `session` or `stateless`."""
    if event.batch:
        return "batch"
    return "session" if event.session_id else "stateless"


class Statistics:
    """The sums since the start of the daemon. An Observer.

    The event loop writes the sums and any thread may read them. Each update replaces a single
    value, so a reader sees at worst a slightly older sum.
    """

    def __init__(self) -> None:
        self.session = _Latency()
        self.stateless = _Latency()
        self.completions: Counter[tuple[str, str]] = Counter()  # by kind and reason
        self.sessions_created = 0
        self.sessions_ended: Counter[str] = Counter()  # by reason
        self.context_trims = 0
        self.compactions = 0
        self.compactions_given_up: Counter[str] = Counter()  # by the reason of an error
        self.summary_requests: Counter[tuple[str, bool]] = Counter()  # by outcome, and if ahead
        self.summary_seconds = 0.0
        self.summary_tokens: Counter[str] = Counter()  # prompt, cached and completion
        self.resumed = 0
        self.deduplicated = 0
        self.engine_up = False
        self.engine_restarts = 0
        self.named_engines_up: dict[str, bool] = {}
        self.named_engine_restarts: Counter[str] = Counter()
        self.states_moved: Counter[tuple[str, str]] = Counter()  # by action and outcome
        self.ahead_tokens = 0
        self.ahead_seconds = 0.0
        self.ahead_found_tokens = 0
        self.store_up = False
        self.damaged_data = 0
        self.takeovers = 0
        self.fenced_writes: Counter[str] = Counter()  # by reason
        self.uncertain_writes: Counter[str] = Counter()  # by outcome
        self.lease_renewals: Counter[str] = Counter()  # by outcome
        self.forwarded_calls: Counter[tuple[str, str]] = Counter()  # by RPC and outcome
        self.forwarded_seconds: dict[tuple[str, str], float] = {}
        self.quota_refusals: Counter[str] = Counter()  # by quota
        self.audit_records_lost = 0
        self.task_failures: Counter[str] = Counter()  # by task
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.session_prefill_seconds = 0.0
        self._were_up: set[str] = set()  # the names of engines, empty for the default one
        self._prefill_seconds = 0.0
        self._evaluated_tokens = 0
        self._session_cached_tokens = 0

    def __call__(self, event: Event) -> None:
        """Counts an event."""
        match event:
            case CompletionEnded():
                self.completions[kind(event), event.reason] += 1
                self.context_trims += event.context_trimmed
                if not event.failed:
                    self._count_success(event)
            case CompletionJoined(resumed=resumed):
                self.resumed += resumed
                self.deduplicated += not resumed
            case SessionCreated():
                self.sessions_created += 1
            case SessionGone(reason=reason):
                self.sessions_ended[reason] += 1
            case EngineStateChanged():
                self._note_state(event)
            case StoredDataDamaged() | BackgroundTaskFailed() | QuotaRefused() | AuditRecordLost():
                self._count_failure(event)
            case EngineStateMoved() | PromptEvaluated() | PromptFoundEvaluated():
                self._count_prewarming(event)
            case StoreStateChanged(up):
                self.store_up = up
            case _:
                self._count_other(event)

    def _note_state(self, event: EngineStateChanged) -> None:
        name, is_up = event.engine, event.up is True
        if event.up is None:
            self.named_engines_up.pop(name, None)
            self.named_engine_restarts.pop(name, None)
            self._were_up.discard(name)
            return
        was_up = self.named_engines_up.get(name, False) if name else self.engine_up
        restarts = int(is_up and not was_up and name in self._were_up)
        if is_up:
            self._were_up.add(name)
        if name:
            self.named_engine_restarts[name] += restarts
            self.named_engines_up[name] = is_up
        else:
            self.engine_restarts += restarts
            self.engine_up = is_up

    def _count_failure(
        self, event: StoredDataDamaged | BackgroundTaskFailed | QuotaRefused | AuditRecordLost
    ) -> None:
        match event:
            case BackgroundTaskFailed(name):
                self.task_failures[name] += 1
            case QuotaRefused(quota):
                self.quota_refusals[quota] += 1
            case AuditRecordLost():
                self.audit_records_lost += 1
            case StoredDataDamaged():
                self.damaged_data += 1

    def _count_prewarming(
        self, event: EngineStateMoved | PromptEvaluated | PromptFoundEvaluated
    ) -> None:
        match event:
            case EngineStateMoved(action, outcome):
                self.states_moved[action, outcome] += 1
            case PromptEvaluated(tokens, seconds):
                self.ahead_tokens += tokens
                self.ahead_seconds += seconds
            case PromptFoundEvaluated(tokens):
                self.ahead_found_tokens += tokens

    def _count_other(self, event: Event) -> None:
        match event:
            case SessionCompacted():
                self.compactions += 1
            case CompactionGivenUp(reason=reason):
                self.compactions_given_up[reason] += 1
            case SummaryRequested():
                self.summary_requests[event.outcome, event.ahead] += 1
                self.summary_seconds += event.seconds
                if usage := event.usage:
                    self.summary_tokens["prompt"] += usage.prompt_tokens
                    self.summary_tokens["cached"] += usage.cached_tokens or 0
                    self.summary_tokens["completion"] += usage.completion_tokens
            case _:
                self._count_replica(event)

    def _count_replica(self, event: Event) -> None:
        match event:
            case SessionTakenOver():
                self.takeovers += 1
            case WriteFenced(reason=reason):
                self.fenced_writes[reason] += 1
            case UncertainWriteEnded(outcome=outcome):
                self.uncertain_writes[outcome] += 1
            case LeaseRenewed(failed):
                self.lease_renewals["failed" if failed else "ok"] += 1
            case CallForwarded(rpc, outcome, seconds):
                key = (rpc, outcome)
                self.forwarded_calls[key] += 1
                self.forwarded_seconds[key] = self.forwarded_seconds.get(key, 0.0) + seconds

    def _count_success(self, event: CompletionEnded) -> None:
        if not event.batch:
            latency = self.session if event.session_id else self.stateless
            latency.count += 1
            latency.seconds += event.timings.total_seconds
        usage = event.usage
        if usage is None or usage.cached_tokens is None:
            return
        if event.session_id:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
        if event.timings.prefill_seconds is None:
            return
        self._prefill_seconds += event.timings.prefill_seconds
        self._evaluated_tokens += usage.prompt_tokens - usage.cached_tokens
        if event.session_id:
            self.session_prefill_seconds += event.timings.prefill_seconds
            self._session_cached_tokens += usage.cached_tokens

    @property
    def cache_hit_rate(self) -> float | None:
        """Returns the percentage of the prompt tokens of session completions that were cached."""
        if not self.prompt_tokens:
            return None
        return 100.0 * self.cached_tokens / self.prompt_tokens

    @property
    def latency_reduction(self) -> float | None:
        """Returns the percentage by which session completions were faster than stateless ones."""
        session, stateless = self.session.mean, self.stateless.mean
        if session is None or not stateless:
            return None
        return 100.0 * (stateless - session) / stateless

    @property
    def prefill_saved_seconds(self) -> float | None:
        """Returns the prefill time that the cached tokens of session completions saved.

        It is estimated by the mean prefill time of all tokens evaluated so far.
        """
        if not self._evaluated_tokens:
            return None
        return self._session_cached_tokens * self._prefill_seconds / self._evaluated_tokens

    @property
    def prefill_reduction(self) -> float | None:
        """Returns the percentage of the prefill time of session completions that was saved."""
        saved = self.prefill_saved_seconds
        if saved is None:
            return None
        total = saved + self.session_prefill_seconds
        return 100.0 * saved / total if total else None
