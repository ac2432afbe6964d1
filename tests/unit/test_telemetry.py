"""SessionMetrics, on figures that were worked out by hand."""

from __future__ import annotations

import pytest

from ruvd.core.model import Timings, Usage
from ruvd.core.ports.events import CompletionEnded
from ruvd.core.statistics import Statistics


def ended(
    session_id: str,
    total: float,
    *,
    usage: Usage | None = None,
    prefill: float | None = None,
    failed: bool = False,
    batch: bool = False,
) -> CompletionEnded:
    return CompletionEnded(
        completion_id="c",
        session_id=session_id,
        batch=batch,
        model="m",
        reason="STOP",
        failed=failed,
        usage=usage,
        timings=Timings(0.0, None, total, prefill),
        context_messages=1,
        context_trimmed=False,
    )


def test_nothing_measured_is_nothing_known() -> None:
    statistics = Statistics()
    assert statistics.cache_hit_rate is None
    assert statistics.latency_reduction is None
    assert statistics.prefill_reduction is None
    assert statistics.session.mean is None


def test_latencies_are_means_and_their_reduction_may_be_negative() -> None:
    statistics = Statistics()
    for seconds in (1.0, 3.0):
        statistics(ended("s", seconds))
    assert statistics.latency_reduction is None
    statistics(ended("", 4.0))
    assert (statistics.session.mean, statistics.stateless.mean) == (2.0, 4.0)
    assert statistics.latency_reduction == pytest.approx(50.0)
    statistics(ended("s", 20.0))  # the mean is 8 now, against 4
    assert statistics.latency_reduction == pytest.approx(-100.0)


def test_items_of_a_batch_wait_for_each_other_so_their_latency_counts_for_nothing() -> None:
    statistics = Statistics()
    statistics(ended("", 100.0, batch=True))
    statistics(ended("s", 100.0, batch=True, usage=Usage(100, 50, 5)))
    assert (statistics.session.count, statistics.stateless.count) == (0, 0)
    assert statistics.cache_hit_rate == pytest.approx(50.0)  # what was cached was cached


def test_the_hit_rate_is_of_the_tokens_of_sessions_that_the_engine_reported() -> None:
    statistics = Statistics()
    statistics(ended("s", 1.0, usage=Usage(100, 0, 5)))
    statistics(ended("s", 1.0, usage=Usage(300, 300, 5)))
    statistics(ended("", 1.0, usage=Usage(1000, 0, 5)))  # stateless does not count
    statistics(ended("s", 1.0, usage=Usage(1000, None, 5)))  # unknown does not count
    statistics(ended("s", 1.0, usage=Usage(1000, 0, 5), failed=True))  # nor does a failure
    statistics(ended("s", 1.0))  # nor what the engine did not report
    assert statistics.cache_hit_rate == pytest.approx(75.0)


def test_the_prefill_reduction_is_by_the_engines_own_rate() -> None:
    statistics = Statistics()
    # 100 tokens in 0.5 s, then 50 more in 0.25 s: 5 ms a token.
    statistics(ended("s", 1.0, usage=Usage(100, 0, 5), prefill=0.5))
    statistics(ended("s", 1.0, usage=Usage(200, 150, 5), prefill=0.25))
    # 150 cached tokens at 5 ms saved 0.75 s; 0.75 s were spent.
    assert statistics.prefill_reduction == pytest.approx(50.0)
    # A stateless completion says what a token costs, but saves nothing for sessions:
    # 350 tokens in 2.75 s; 150 cached saved 150 * 2.75 / 350 s.
    statistics(ended("", 1.0, usage=Usage(200, 0, 5), prefill=2.0))
    saved = 150 * 2.75 / 350
    assert statistics.prefill_reduction == pytest.approx(100 * saved / (saved + 0.75))
