"""What the daemon measures. `Statistics` is told of every completion and keeps the sums.

Definitions, each with its unit, are in the proto at SessionMetrics. Figures of the engine are
used as it reported them; what it does not report is left out, never taken as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from ruvd.ports import CompletionEnded, Event


@dataclass(slots=True)
class _Latency:
    count: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.seconds / self.count if self.count else None


class Statistics:
    """The sums behind SessionMetrics, since the daemon started. An Observer."""

    def __init__(self) -> None:
        self.session = _Latency()
        self.stateless = _Latency()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._prefill_seconds = 0.0
        self._evaluated_tokens = 0
        self._session_prefill_seconds = 0.0
        self._session_cached_tokens = 0

    def __call__(self, event: Event) -> None:
        """Count a completion that finished."""
        if not isinstance(event, CompletionEnded) or event.failed:
            return
        if not event.batch:
            latency = self.session if event.session_id else self.stateless
            latency.count += 1
            latency.seconds += event.timings.total_seconds
        usage = event.usage
        if usage is None or usage.cached_tokens is None:
            return
        if event.session_id:
            self._prompt_tokens += usage.prompt_tokens
            self._cached_tokens += usage.cached_tokens
        if event.timings.prefill_seconds is None:
            return
        self._prefill_seconds += event.timings.prefill_seconds
        self._evaluated_tokens += usage.prompt_tokens - usage.cached_tokens
        if event.session_id:
            self._session_prefill_seconds += event.timings.prefill_seconds
            self._session_cached_tokens += usage.cached_tokens

    @property
    def cache_hit_rate(self) -> float | None:
        """Percent of the prompt tokens of session completions that were cached."""
        if not self._prompt_tokens:
            return None
        return 100.0 * self._cached_tokens / self._prompt_tokens

    @property
    def latency_reduction(self) -> float | None:
        """Percent by which session completions were faster than stateless ones."""
        session, stateless = self.session.mean, self.stateless.mean
        if session is None or not stateless:
            return None
        return 100.0 * (stateless - session) / stateless

    @property
    def prefill_reduction(self) -> float | None:
        """Percent of the prefill time of session completions that cached tokens saved.

        What a cached token would have cost is the mean over all tokens that were evaluated.
        """
        if not self._evaluated_tokens:
            return None
        rate = self._prefill_seconds / self._evaluated_tokens
        saved = self._session_cached_tokens * rate
        total = saved + self._session_prefill_seconds
        return 100.0 * saved / total if total else None
