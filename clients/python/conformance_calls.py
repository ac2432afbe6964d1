"""`PROGRAM calls` of clients/CONFORMANCE.md: every call of the service with all of its fields."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from conformance_output import (
    attempt,
    batched,
    describe,
    optional,
    out,
    print_answer,
    print_summary,
    reason_of,
    show_messages,
    shown,
    word,
)
from conformance_sessions import append, compact, create, fork, get, list_pages, update
from ruvd_client import (
    ResponseFormat,
    SessionView,
    Tool,
    ToolChoiceMode,
    request,
    tool_result,
)

LONG = " ".join(f"w{number}" for number in range(1, 2001))
OPTIONS: dict[str, Any] = {
    "model": "echo",
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 2,
    "stop": ["never"],
    "seed": 7,
    "bypass_cache": True,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {5: -1.0},
    "extra_body": {"top_k": 40},
}
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}})


def calls(connect: Callable[..., Any]) -> None:
    client = connect(os.environ["RUVD_ADDRESS"])
    for step in (
        create, get, list_pages, update, append, fork, compact, complete, tools, formats, resume,
        cancel, batch, end, server, metrics,
    ):  # fmt: skip
        step(client)
    out(f"health {word(connect(os.environ['RUVD_NOBODY']).health())}")


def complete(client: Any) -> None:
    out("# complete")
    answer = client.complete("four five six", session_id="alpha")
    print_answer(answer)
    started = answer.started
    flags = (started.session_created, started.context_trimmed, started.context_summarized)
    created, trimmed, summarized = map(word, flags)
    out(f"started created={created} trimmed={trimmed} summarized={summarized}")
    sent = started.context_messages
    out(f"started session={started.session_id} model={started.model} sent={sent}")
    print_answer(client.complete("one two three", **OPTIONS))
    new = {"session_id": "gamma", "system_prompt": "New.", "recreate_if_gone": True}
    print_answer(client.complete("seven", disconnect_grace_seconds=1, **new))
    print_answer(client.complete("eight", session_id="gamma", system_prompt="Other."))
    print_answer(client.complete("nine", session_id="nobody", require_existing=True))


def tools(client: Any) -> None:
    out("# tools")
    weather = Tool(
        name="weather", description="The weather.", parameters='{"type": "object"}', strict=False
    )
    turn = {"session_id": "delta", "tools": [weather], "parallel_tool_calls": False}
    answer = client.complete("in Oslo", tool_choice="weather", **turn)
    print_answer(answer)
    results = [tool_result(call, "12 degrees") for call in answer.message().tool_calls]
    print_answer(client.complete(results, **turn))
    print_answer(
        client.complete("weather", tool_choice=ToolChoiceMode.TOOL_CHOICE_MODE_NONE, **turn)
    )
    show_messages(client.get_session("delta", SessionView.SESSION_VIEW_FULL))


def formats(client: Any) -> None:
    out("# formats")
    print_answer(client.complete("ada", response_format=ResponseFormat(json_object=True)))
    schema = ResponseFormat(json_schema=SCHEMA, name="person", strict=True)
    print_answer(client.complete("ada", response_format=schema))


def resume(client: Any) -> None:
    out("# resume")
    answer = client.complete("one two three", session_id="epsilon", request_id="resume-1")
    print_answer(answer)
    completion_id, last = answer.started.completion_id, answer.last_sequence
    print_answer(client.resume_completion(completion_id))
    print_answer(client.resume_completion(session_id="epsilon", request_id="resume-1"))
    print_answer(client.resume_completion(completion_id, after_sequence=last - 1))
    print_answer(client.resume_completion("nobody"))


def cancel(client: Any) -> None:
    out("# cancel")
    turn = {"session_id": "zeta", "request_id": "cancel-1"}
    answer = client.complete(LONG, **turn)
    next(answer)
    client.cancel_completion(**turn, keep_partial=True)
    attempt(lambda: [*answer])
    finished = answer.finished
    out(f"finished {reason_of(finished)} exchanges={finished.exchange_count}")
    out(f"partial {word(0 < len(finished.message.content) < len(LONG))}")

    answer = client.complete(LONG, session_id="zeta")
    next(answer)
    completion_id = answer.started.completion_id
    client.cancel_completion(completion_id)
    attempt(lambda: [*answer])
    client.cancel_completion(completion_id)
    out("cancelled")
    out(shown(client.get_session("zeta")))
    attempt(lambda: client.cancel_completion("nobody"))


def batch(client: Any) -> None:
    out("# batch")
    items = [
        request("a"),
        request("!fault ENGINE_REJECTED"),
        request("b", session_id="eta"),
        request("c", session_id="eta"),
        request("too hot", temperature=3.0),
    ]
    run = client.batch(items, max_concurrency=2)
    batched(run)
    print_summary(run.summary)
    out(shown(client.get_session("eta")))

    run = client.batch("x" * 1_000_000 for _ in range(5))
    for outcome in sorted(run, key=lambda outcome: int(outcome.index)):
        out(f"item {outcome.index} bytes={len(outcome.text())}")
    print_summary(run.summary)
    attempt(lambda: [*client.batch(["a"], max_concurrency=-1)])


def end(client: Any) -> None:
    out("# end")
    client.append_messages("alpha", "bye")
    describe(client.get_session("alpha"))
    client.end_session("alpha")
    out("ended")
    attempt(lambda: client.end_session("alpha"))
    client.end_session("alpha", allow_missing=True)
    out("ended")


def server(client: Any) -> None:
    out("# server")
    models = client.list_models()
    out(f"models {' '.join(models.models)} default={models.default_model}")
    info = client.get_server_info()
    out(f"info version={word(bool(info.version))} instance={word(bool(info.instance_id))}")
    for feature in ("batch", "compaction", "resume", "sessions", "structured_output", "tools"):
        out(f"feature {feature} {word(feature in info.features)}")
    for field in (
        "max_request_bytes", "max_message_bytes", "max_messages", "max_session_bytes",
        "max_sessions", "max_inflight", "max_batch_items", "max_answer_bytes",
    ):  # fmt: skip
        out(f"limit {field} {getattr(info.limits, field)}")
    out(f"limit max_output_tokens {optional(info.limits, 'max_output_tokens')}")
    out(f"limit idle_timeout {info.limits.idle_timeout.seconds}s")
    out(f"limit completion_retention {info.limits.completion_retention.seconds}s")
    for engine in info.engines:
        sizes = f"tokens={optional(engine, 'window_tokens')} slots={optional(engine, 'slots')}"
        models = f"default={engine.default_model} models={' '.join(engine.models)}"
        out(f"engine {engine.name} ready={word(engine.ready)} {models} {sizes}")
    out(f"health {word(client.health())}")


def metrics(client: Any) -> None:
    out("# metrics")
    found = client.get_session_metrics()
    out(f"sessions total={found.total_sessions} active={found.active_sessions}")
    out(f"completions {found.session_completions} stateless={found.stateless_completions}")
    out(f"messages average={found.avg_messages_per_session:.2f}")
    for field in (
        "cache_hit_rate", "avg_session_latency", "avg_stateless_latency", "avg_latency_reduction",
        "avg_prefill_reduction",
    ):  # fmt: skip
        out(f"measured {field} {word(found.HasField(field))}")
