"""`PROGRAM calls` of clients/CONFORMANCE.md: every call of the service with all of its fields."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from conformance_output import attempt, batched, out, shown
from ruvd_client import (
    Compaction,
    ContextWindow,
    Message,
    Rendering,
    ResponseFormat,
    Role,
    Session,
    SessionView,
    Tool,
    ToolChoiceMode,
    Usage,
    request,
    tool_result,
)
from ruvd_client.v1 import session_service_pb2 as pb

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


def create(client: Any) -> None:
    out("# create")
    new = {
        "session_id": "alpha",
        "system_prompt": "Be brief.",
        "messages": [
            Message(role=Role.ROLE_USER, content="one", pinned=True),
            Message(role=Role.ROLE_ASSISTANT, content="uno"),
            Message(role=Role.ROLE_USER, content="two"),
            Message(role=Role.ROLE_ASSISTANT, content="dos"),
        ],
        "labels": {"user": "ada", "team": "a"},
        "context_window": window(1, 4),
        "idle_timeout_seconds": 600,
        "model": "echo",
        "request_id": "create-1",
        "compaction_instruction": "Keep numbers.",
        "summary": "uno came first",
        "summary_exchange_count": 1,
    }
    describe(client.create_session(**new))
    out(shown(client.create_session(**new)))
    attempt(lambda: client.create_session(**{**new, "labels": {}}))
    attempt(lambda: client.create_session(session_id="alpha"))
    made = client.create_session()
    out(f"made {word(bool(made.id))}")
    client.end_session(made.id)


def get(client: Any) -> None:
    out("# get")
    show_messages(client.get_session("alpha", SessionView.SESSION_VIEW_FULL))
    out(f"messages {len(client.get_session('alpha').messages)}")
    attempt(lambda: client.get_session("nobody"))


def list_pages(client: Any) -> None:
    out("# list")
    for number in range(1, 106):
        client.create_session(session_id=f"p{number}", labels={"page": "yes"})
    for labels in ({"page": "yes"}, {"team": "a", "user": "ada"}, {"team": "none"}):
        found = [session.id for session in client.list_sessions(labels)]
        out(f"listed {len(found)} {' '.join([*found[:1], *found[-1:]])}".rstrip())


def update(client: Any) -> None:
    out("# update")
    describe(
        client.update_session(
            "alpha",
            labels={"team": "b"},
            idle_timeout_seconds=300,
            context_window=window(2, 6),
            compaction_instruction="Keep names.",
        )
    )
    fields = ["idle_timeout", "compaction_instruction"]
    describe(client.update_session("alpha", update_mask=fields))
    attempt(lambda: client.update_session("nobody", labels={"a": "b"}))


def append(client: Any) -> None:
    out("# append")
    for text in ("three", "three", "other"):
        attempt(lambda: out(shown(client.append_messages("alpha", text, request_id="append-1"))))  # noqa: B023
    message = Message(role=Role.ROLE_ASSISTANT, content="tres")
    summary = {"summary": "uno, then dos", "summary_exchange_count": 2}
    describe(client.append_messages("alpha", [message], **summary))
    attempt(lambda: client.append_messages("nobody", "hi"))


def fork(client: Any) -> None:
    out("# fork")
    new = {"exchange_count": 1, "new_session_id": "alpha-fork", "request_id": "fork-1"}
    describe(client.fork_session("alpha", **new))
    out(shown(client.fork_session("alpha", **new)))
    attempt(lambda: client.fork_session("alpha", new_session_id="alpha"))
    attempt(lambda: client.fork_session("alpha", exchange_count=99))
    attempt(lambda: client.fork_session("nobody"))


def compact(client: Any) -> None:
    out("# compact")
    history = [
        Message(role=role, content=f"{word} {number}")
        for number in (1, 2, 3)
        for role, word in ((Role.ROLE_USER, "question"), (Role.ROLE_ASSISTANT, "answer"))
    ]
    small = ContextWindow(keep_exchanges=1, max_exchanges=10)
    client.create_session(session_id="beta", messages=history, context_window=small)
    for dry_run in (True, False):
        done = client.compact_session("beta", dry_run=dry_run)
        count, kept, before = done.summarized_exchanges, done.kept_exchanges, done.bytes_before
        after = word(done.HasField("bytes_after"))
        out(f"compaction exchanges={count} kept={kept} before={before} after={after}")
        summary = word(bool(done.session.summary))
        out(f"summary {summary} of={done.session.summary_exchange_count}")
        out(f"compactions {done.session.compactions} usage={word(done.HasField('usage'))}")
    out(f"again exchanges={client.compact_session('beta').summarized_exchanges}")
    attempt(lambda: client.compact_session("nobody"))


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


def window(keep: int, maximum: int) -> ContextWindow:
    return ContextWindow(
        keep_exchanges=keep,
        max_exchanges=maximum,
        max_tokens=100,
        rendering=Rendering.RENDERING_MESSAGES,
        compaction=Compaction.COMPACTION_NONE,
        keep_first=1,
        compact_at=0.5,
    )


def print_answer(answer: Any) -> None:
    """Waits for the whole answer and prints it, or its error."""
    attempt(partial(_print_answer, answer))


def _print_answer(answer: Any) -> None:
    message = answer.message()
    finished = answer.finished
    out(f"answer {reason_of(finished)} [{message.content}] exchanges={finished.exchange_count}")
    print_calls(message.tool_calls)
    out(usage_line(finished.usage))


def print_calls(calls: Iterable[pb.ToolCall]) -> None:
    for call in calls:
        out(f"call {call.id} {call.name} {call.arguments}")


def show_messages(session: Session) -> None:
    for message in session.messages:
        role = Role.Name(message.role).removeprefix("ROLE_")
        notes = " pinned" if message.pinned else ""
        notes += f" of={message.tool_call_id}" if message.tool_call_id else ""
        out(f"message {role} [{message.content}]{notes}")
        print_calls(message.tool_calls)


def describe(session: Session) -> None:
    """Prints all fields of a session but its messages."""
    out(shown(session))
    out(f"prompt [{session.system_prompt}]")
    out(f"labels {' '.join(f'{key}={session.labels[key]}' for key in sorted(session.labels))}")
    sent = session.context_window
    counts = (optional(sent, f"{name}_exchanges") for name in ("keep", "max"))
    out("window keep={} max={} ".format(*counts) + f"tokens={optional(sent, 'max_tokens')}")
    rendering = Rendering.Name(sent.rendering).removeprefix("RENDERING_")
    out(f"rendering {rendering} first={optional(sent, 'keep_first')}")
    compaction = Compaction.Name(sent.compaction).removeprefix("COMPACTION_")
    out(f"compaction {compaction} at={optional(sent, 'compact_at')}")
    out(f"instruction [{session.compaction_instruction}]")
    out(f"summary [{session.summary}] of={session.summary_exchange_count}")
    out(f"compactions {session.compactions}")
    parent = session.parent_id or "-"
    out(f"settings idle={session.idle_timeout.seconds}s model={session.model} parent={parent}")
    out(usage_line(session.usage))
    for field in ("create_time", "last_used_time", "expire_time"):
        out(f"{field} {word(session.HasField(field))}")


def usage_line(usage: Usage) -> str:
    cached = optional(usage, "cached_tokens")
    return f"usage prompt={usage.prompt_tokens} cached={cached} answer={usage.completion_tokens}"


def print_summary(summary: Any) -> None:
    usage = summary.usage
    counts = f"succeeded={summary.succeeded} failed={summary.failed}"
    out(f"summary {counts} prompt={usage.prompt_tokens} answer={usage.completion_tokens}")


def optional(message: Any, field: str) -> object:
    """Returns the field's value, `-` if it is not set."""
    return getattr(message, field) if message.HasField(field) else "-"


def reason_of(finished: pb.Finished) -> str:
    return pb.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_")


def word(value: bool) -> str:  # noqa: FBT001 -- the value to print
    return "yes" if value else "no"
