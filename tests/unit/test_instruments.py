"""Metrics have the names, units and buckets of the conventions, and agree with `Statistics`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import semconv
from core import collect, failed, settle
from fakes import done
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from watched import Watched

from ruvd.core.errors import EngineRejected
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import (
    BackgroundTaskFailed,
    EngineStateChanged,
    EngineStateMoved,
    LeaseRenewed,
    PromptEvaluated,
    PromptFoundEvaluated,
    SessionCreated,
    SessionGone,
    SessionTakenOver,
    StoreBatch,
    StoredDataDamaged,
    StoreStateChanged,
    UncertainWriteEnded,
    WriteFenced,
)
from ruvd.telemetry.conventions import (
    CAPTURE_CONTENT,
    NEWEST,
    OPT_IN,
    V1_41_1,
    Conventions,
    chosen,
)

METHOD = "/ruvd.v1.SessionService/Complete"


async def everything(watched: Watched) -> None:
    """Gives every instrument a value."""
    watched.engine.scripts = [
        [EngineText("a"), EngineText("b"), done(prompt=20, cached=15, completion=2)],
        [EngineRejected("no")],
    ]
    with watched.rpcs.call(METHOD, (), ""):
        await collect(watched.start())
    scope = {"method": "GET", "scheme": "http", "path": "/", "query_string": b"", "headers": ()}
    with watched.http.call(scope | {"http_version": "1.1"}):
        pass
    await failed(watched.start(), EngineRejected)
    watched.observer(StoreBatch(3))
    watched.instruments.count_store_error("get")


@pytest.mark.parametrize(("names", "known"), [(V1_41_1, "V1_41_1"), (NEWEST, "NEWEST")])
async def test_every_metric_is_the_conventions_or_ours(names: Any, known: str) -> None:
    watched = Watched(Conventions(names))
    await everything(watched)
    expected = getattr(semconv, known) | semconv.HTTP
    found = watched.metrics()
    theirs = {name: metric for name, metric in found.items() if not name.startswith("ruvd.")}
    assert set(theirs) == set(expected)
    for name, metric in theirs.items():
        unit, buckets = expected[name]
        assert metric.unit == unit, name
        for point in metric.data.data_points:
            if isinstance(point, HistogramDataPoint):
                assert list(point.explicit_bounds) == buckets, name
            else:
                assert buckets is None, name
    for name, metric in found.items():
        used = {key for point in metric.data.data_points for key in point.attributes or {}}
        assert not semconv.strangers(used, semconv.METRIC_ATTRIBUTES), name
        assert (metric.description or "").endswith("."), name
    assert "session" not in {
        value
        for metric in found.values()
        for point in metric.data.data_points
        for key, value in (point.attributes or {}).items()
        if key not in ("ruvd.completion.kind", "ruvd.queue.name")
    }


def test_the_newest_conventions_and_content_have_to_be_asked_for() -> None:
    assert chosen({}) == Conventions(V1_41_1, content=False)
    assert chosen({OPT_IN: "http, gen_ai_latest_experimental"}).names is NEWEST
    for value, content in (("true", True), ("SPAN_ONLY", True), ("event_only", False), ("", False)):
        assert chosen({CAPTURE_CONTENT: value}).content is content


async def test_tokens_are_counted_by_direction() -> None:
    watched = Watched()
    await everything(watched)
    sums = {
        (point.attributes or {})["gen_ai.token.type"]: point.sum
        for point in watched.histogram("gen_ai.client.token.usage")
    }
    assert sums == {"input": 20, "output": 2}


async def test_the_newest_count_what_failed_as_nothing_of_an_unknown_modality() -> None:
    watched = Watched(Conventions(NEWEST))
    await everything(watched)
    name = "gen_ai.client.inference.usage."
    assert watched.value(name + "input_tokens", gen_ai__token__modality="text") == 20
    assert watched.value(name + "input_tokens", gen_ai__token__modality="unknown") == 0
    assert watched.value(name + "cache_read.input_tokens") == 15
    failed_ones = [
        point.count
        for point in watched.histogram("gen_ai.client.inference.operation.output_tokens")
        if "error.type" in (point.attributes or {})
    ]
    assert failed_ones == [1]


async def test_the_duration_says_what_failed_and_the_server_metrics_only_what_succeeded() -> None:
    watched = Watched()
    await everything(watched)
    counts = {
        (point.attributes or {}).get("error.type"): point.count
        for point in watched.histogram("gen_ai.client.operation.duration")
    }
    assert counts == {None: 1, "ENGINE_REJECTED": 1}
    assert [p.count for p in watched.histogram("gen_ai.server.time_to_first_token")] == [1]
    assert [p.count for p in watched.histogram("gen_ai.server.time_per_output_token")] == [1]


async def test_items_of_a_batch_count_in_no_latency() -> None:
    watched = Watched()
    await collect(watched.start(batch=True))
    assert watched.value("ruvd.completions", ruvd__completion__kind="batch") == 1
    for name in ("ruvd.completion.duration", "gen_ai.server.time_to_first_token"):
        assert watched.histogram(name) == [], name


async def test_get_session_metrics_and_the_instruments_have_the_same_figures() -> None:
    watched = Watched()
    watched.engine.scripts = [
        [EngineText("a"), done(prompt=10, cached=0)],
        [EngineText("b"), done(prompt=30, cached=20)],
    ]
    for session_id in ("s", "s", ""):
        await collect(watched.start(session_id=session_id))
    sums = watched.statistics
    cached, prompt = watched.value("ruvd.prompt.cached_tokens"), watched.value("ruvd.prompt.tokens")
    assert 100 * cached / prompt == sums.cache_hit_rate == 50.0
    spent, saved = watched.value("ruvd.prefill.spent"), watched.value("ruvd.prefill.saved")
    assert 100 * saved / (saved + spent) == pytest.approx(sums.prefill_reduction)
    means = {
        (point.attributes or {})["ruvd.completion.kind"]: (point.count, point.sum)
        for point in watched.histogram("ruvd.completion.duration")
    }
    assert means["session"] == (sums.session.count, sums.session.seconds)
    assert means["stateless"] == (sums.stateless.count, sums.stateless.seconds)


def test_events_of_sessions_engine_and_store_are_counted() -> None:
    watched = Watched()
    for event in (
        SessionCreated("a"),
        SessionGone("a", "idle"),
        SessionGone("b", "client"),
        SessionGone("c", "client"),
        EngineStateChanged(up=True, detail=""),
        EngineStateChanged(up=True, detail=""),
        EngineStateChanged(up=False, detail=""),
        EngineStateChanged(up=False, detail=""),
        EngineStateChanged(up=True, detail=""),
        StoreStateChanged(up=True, detail=""),
        StoreStateChanged(up=False, detail=""),
        BackgroundTaskFailed("sweep"),
        StoredDataDamaged("a", "its record"),
    ):
        watched.observer(event)
    assert watched.value("ruvd.sessions.created") == 1
    assert watched.value("ruvd.sessions.ended", ruvd__session__end_reason="client") == 2
    assert watched.value("ruvd.sessions.ended", ruvd__session__end_reason="idle") == 1
    assert watched.value("ruvd.sessions.ended", ruvd__session__end_reason="capacity") == 0
    assert watched.value("ruvd.engine.restarts") == 1
    assert watched.value("ruvd.task.failures", ruvd__task__name="sweep") == 1
    assert watched.value("ruvd.store.damage") == 1
    assert (watched.value("ruvd.engine.up"), watched.value("ruvd.store.up")) == (1, 0)
    assert watched.value("ruvd.sessions.active") == 7


def test_saved_states_and_prewarming_are_counted_from_zero() -> None:
    watched = Watched()
    moves = "ruvd.engine.states.moves"
    assert watched.value(moves, ruvd__state__action="save", ruvd__state__outcome="failed") == 0
    for event in (
        EngineStateMoved("save", "ok"),
        EngineStateMoved("restore", "stale"),
        EngineStateMoved("restore", "stale"),
        PromptEvaluated(64, 0.25, "s"),
        PromptEvaluated(10, 0.05, "s"),
        PromptFoundEvaluated(70),
    ):
        watched.observer(event)
    assert watched.value(moves, ruvd__state__action="save", ruvd__state__outcome="ok") == 1
    assert watched.value(moves, ruvd__state__action="restore", ruvd__state__outcome="stale") == 2
    assert watched.value("ruvd.engine.ahead.tokens") == 74
    assert watched.value("ruvd.engine.ahead.duration") == pytest.approx(0.3)
    assert watched.value("ruvd.engine.ahead.found_tokens") == 70


def test_what_a_replica_does_with_sessions_of_others_is_counted_from_zero() -> None:
    watched = Watched()
    fenced, uncertain = "ruvd.store.fenced", "ruvd.store.uncertain_writes"
    renewals = "ruvd.store.lease.renewals"
    assert watched.value("ruvd.store.takeovers") == 0
    for reason in ("taken", "created", "in_use", "changed"):
        assert watched.value(fenced, ruvd__store__fence_reason=reason) == 0
    for outcome in ("written", "repeated", "unknown"):
        assert watched.value(uncertain, ruvd__store__write_outcome=outcome) == 0
    for outcome in ("ok", "failed"):
        assert watched.value(renewals, ruvd__store__renewal_outcome=outcome) == 0
    for event in (
        SessionTakenOver("a", "other"),
        SessionTakenOver("b", "other"),
        WriteFenced("a", "taken"),
        WriteFenced("b", "in_use"),
        WriteFenced("c", "in_use"),
        UncertainWriteEnded("a", "repeated"),
        UncertainWriteEnded("a", "unknown"),
        LeaseRenewed(failed=False),
        LeaseRenewed(failed=False),
        LeaseRenewed(failed=True),
    ):
        watched.observer(event)
    assert watched.value("ruvd.store.takeovers") == 2
    assert watched.value(fenced, ruvd__store__fence_reason="taken") == 1
    assert watched.value(fenced, ruvd__store__fence_reason="created") == 0
    assert watched.value(fenced, ruvd__store__fence_reason="in_use") == 2
    assert watched.value(uncertain, ruvd__store__write_outcome="written") == 0
    assert watched.value(uncertain, ruvd__store__write_outcome="repeated") == 1
    assert watched.value(uncertain, ruvd__store__write_outcome="unknown") == 1
    assert watched.value(renewals, ruvd__store__renewal_outcome="ok") == 2
    assert watched.value(renewals, ruvd__store__renewal_outcome="failed") == 1


async def test_running_and_waiting_completions_are_counted_while_they_last() -> None:
    watched = Watched()
    hold = asyncio.Event()
    watched.engine.scripts = [[hold, EngineText("x"), done()]]
    running, waiting = watched.start(), watched.start()
    await settle()
    assert watched.value("ruvd.completions.active") == 2
    tasks = watched.value("ruvd.tasks")
    assert watched.value("ruvd.queue.size", ruvd__queue__name="session") == 1
    hold.set()
    await asyncio.gather(collect(running), collect(waiting))
    assert watched.value("ruvd.completions.active") == 0
    assert watched.value("ruvd.tasks") == tasks - 2
    assert watched.value("ruvd.queue.size") == 0
    assert watched.value("ruvd.event_log.size") > 0


async def test_callers_cannot_create_an_unbounded_number_of_label_sets() -> None:
    watched = Watched()
    for number in range(60):
        options = CompletionOptions(model=f"model-{number}")
        await collect(watched.start(session_id="", options=options))
    models = [
        (point.attributes or {})["gen_ai.request.model"]
        for point in watched.histogram("gen_ai.client.operation.duration")
    ]
    assert len(models) == 51
    assert "_OTHER" in models


async def test_the_exemplar_of_a_generation_leads_to_its_span() -> None:
    watched = Watched()
    await collect(watched.start())
    chat = watched.span("chat")
    (point,) = watched.histogram("gen_ai.client.operation.duration")
    (exemplar,) = point.exemplars
    assert chat.context is not None
    assert exemplar.span_id == chat.context.span_id
    assert exemplar.trace_id == chat.context.trace_id
    assert chat.start_time is not None
    assert exemplar.time_unix_nano >= chat.start_time


async def test_numbers_of_tokens_and_writes_have_no_exemplars_not_even_of_another_call() -> None:
    watched = Watched()
    await collect(watched.start())
    watched.observer(StoreBatch(1))
    with watched.rpcs.call(METHOD, (), ""):
        watched.deferred.flush()
    for name in ("gen_ai.client.token.usage", "ruvd.store.batch.size"):
        for point in watched.histogram(name):
            assert not point.exemplars, name


async def test_attributes_are_on_the_points_and_on_no_scope() -> None:
    watched = Watched()
    await everything(watched)
    (resource,) = watched.data().resource_metrics
    (scope,) = resource.scope_metrics
    assert not scope.scope.attributes
    names = [metric.name for metric in scope.metrics]
    assert len(names) == len(set(names))
    (point,) = watched.histogram("rpc.server.call.duration")
    assert dict(point.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD[1:],
        "rpc.response.status_code": "OK",
    }
