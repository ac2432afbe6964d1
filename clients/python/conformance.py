"""The conformance program of clients/CONFORMANCE.md for the Python client.

`conformance.py [--asyncio] scenario|calls|restart|failover|identity WAY` uses the blocking client
or, with `--asyncio`, the asyncio client, to which a wrapper gives the same interface.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from conformance_blocking import Blocking
from conformance_calls import calls
from conformance_identity import identity
from conformance_output import attempt, batched, out, print_error, show, shown
from ruvd_client import (
    Client,
    Completion,
    IfBusy,
    OnDisconnect,
    RuvdError,
    request,
)
from ruvd_client.protocol import DEFAULT_ADDRESS
from ruvd_client.v1 import session_service_pb2 as pb

WORDS = " ".join(f"w{number}" for number in range(1, 201))
REASONS = [name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.keys()[1:]]


Connect = Callable[..., Any]


def complete(client: Any, text: str, **arguments: Any) -> None:
    def run() -> None:
        answer = client.complete(text, **arguments)
        for piece in answer:
            out(f"text [{piece}]")
        finished = answer.finished
        reason = pb.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_")
        count = finished.exchange_count
        out(f"finished {reason} sequence={answer.last_sequence} exchanges={count}")

    attempt(run)


def show_events(events: Iterable[pb.CompletionEvent]) -> None:
    for event in events:
        kind = event.WhichOneof("event")
        line = f"event {event.sequence} {kind}"
        if kind == "delta":
            line += f" [{event.delta.text}]"
        elif kind == "finished":
            reason = pb.FinishReason.Name(event.finished.finish_reason)
            content = event.finished.message.content
            line += f" {reason.removeprefix('FINISH_REASON_')} [{content}]"
        out(line)


def get(client: Any, session_id: str) -> None:
    attempt(lambda: show(client.get_session(session_id)))


def wait_until_idle(client: Any, session_id: str) -> bool:
    """Waits up to a minute and returns whether the session has no running completion."""
    deadline = time.monotonic() + 60
    while client.get_session(session_id).running_completion_id:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def scenario(connect: Connect) -> None:
    client = connect(os.environ["RUVD_ADDRESS"])

    out("# sessions")
    show(client.create_session(session_id="alpha", system_prompt="Be brief.", labels={"team": "a"}))
    complete(client, "one two three", session_id="alpha")
    complete(client, "four", session_id="alpha")
    show(client.get_session("alpha", pb.SESSION_VIEW_FULL))
    for session in client.list_sessions():
        out(f"listed {session.id}")
    client.end_session("alpha")
    out("ended")
    get(client, "alpha")
    attempt(lambda: client.end_session("alpha"))

    out("# stream")
    show_events(client.complete("alpha beta gamma").events())

    out("# unicode")
    for text in ("Grüße aus Köln", "世界 👩‍🚀 ok", "नमस्ते दुनिया", "e\u0301 A\u030a"):
        complete(client, text)

    out("# request id")
    for text in ("once only", "once only", "other"):
        complete(client, text, session_id="beta", request_id="r-1")
    get(client, "beta")

    out("# cut after the third event")
    cut_client = connect(os.environ["RUVD_CUT_THIRD"])
    show_events(cut_client.complete("a b c d e f", session_id="gamma").events())
    get(client, "gamma")

    out("# cut always")
    complete(connect(os.environ["RUVD_CUT_ALWAYS"]), "a b c d e f g h", session_id="delta")
    get(client, "delta")

    out("# cut before the first event")
    complete(connect(os.environ["RUVD_CUT_FIRST"]), "x y z", session_id="epsilon")
    get(client, "epsilon")

    out("# cancel")
    client.create_session(session_id="zeta")
    with client.complete(WORDS, session_id="zeta") as answer:
        for _ in range(3):
            out(f"text [{next(answer)}]")
    out("cancelled" if wait_until_idle(client, "zeta") else "still running")
    get(client, "zeta")

    out("# busy")
    client.create_session(session_id="eta")
    first = client.complete(WORDS, session_id="eta")
    next(first)
    complete(client, "no", session_id="eta", if_busy=IfBusy.IF_BUSY_REJECT)
    complete(client, "mine", session_id="eta", if_busy=IfBusy.IF_BUSY_INTERRUPT)
    attempt(lambda: drain(first))
    get(client, "eta")

    out("# errors")
    for reason in REASONS:
        out(f"fault {reason}")
        complete(client, f"!fault {reason}")

    out("# error after text")
    complete(client, "!fault ENGINE_UNAVAILABLE one two", session_id="theta")
    get(client, "theta")

    out("# wrong fields")
    complete(client, "hi", session_id="no spaces", temperature=3.0)

    out("# too large")
    complete(client, "x" * (5 << 20))

    out("# fork")
    complete(client, "first", session_id="iota")
    complete(client, "second", session_id="iota")
    show(client.fork_session("iota", exchange_count=1, new_session_id="iota-fork"))
    complete(client, "third", session_id="iota-fork")
    get(client, "iota")
    get(client, "iota-fork")

    out("# long history")
    history = [pb.Message(role=pb.ROLE_USER, content=f"m{number}") for number in range(1, 1001)]
    client.create_session(session_id="mu", messages=history)
    complete(client, "end", session_id="mu")
    session = client.get_session("mu", pb.SESSION_VIEW_FULL)
    messages = [message.content for message in session.messages]
    del session.messages[:]
    show(session)
    out(f"history {len(messages)} [{messages[0]}] [{messages[-1]}]")

    out("# batch")
    items = [
        request("b0"),
        request("!fault ENGINE_REJECTED"),
        request("b2", session_id="kappa"),
        request("b3", session_id="kappa"),
    ]
    batch = client.batch(items)
    batched(batch)
    out(f"summary succeeded={batch.summary.succeeded} failed={batch.summary.failed}")
    get(client, "kappa")

    out("# deadline")
    client.create_session(session_id="lambda")
    try:
        drain(client.complete(WORDS, session_id="lambda", timeout=0.4))
    except RuvdError as failure:
        print_error(failure, with_reason=False)
    out("over" if wait_until_idle(client, "lambda") else "still running")
    get(client, "lambda")

    out("# models")
    models = client.list_models()
    for name in models.models:
        out(f"model {name}")
    out(f"default {models.default_model}")

    out("# nobody there")
    nobody = connect(os.environ["RUVD_NOBODY"])
    attempt(nobody.list_models)
    attempt(lambda: drain(nobody.complete("hi", timeout=0.5)))


def drain(answer: Completion) -> None:
    for _ in answer:
        pass


def restart(connect: Connect) -> None:
    client = connect(os.environ.get("RUVD_ADDRESS", DEFAULT_ADDRESS), reconnect_seconds=60.0)
    text = " ".join(f"w{number}" for number in range(1, 41))
    answer = client.complete(
        text, session_id="omega", on_disconnect=OnDisconnect.ON_DISCONNECT_CONTINUE
    )
    pieces: list[str] = []

    def read() -> None:
        for piece in answer:
            if not pieces:
                out("ready")
            pieces.append(piece)

    if attempt(read):
        out(f"text [{''.join(pieces)}]")
    get(client, "omega")


def failover(connect: Connect) -> None:
    try:
        client = connect()
    except (OSError, ValueError) as error:
        out(f"refused {error}")
        return
    for line in sys.stdin:
        name, session_id, rest = (*line.strip().split(" ", 2), "", "")[:3]
        if name == "batch":
            rest = line.partition(" ")[2]
        attempt(partial(failover_call, client, name, session_id.removeprefix("-"), rest))


def failover_call(client: Any, name: str, session_id: str, text: str) -> None:
    request_id, _, message = text.partition(" ")
    turn = {"session_id": session_id, "request_id": request_id}
    calls: dict[str, Callable[[], str]] = {
        "complete": lambda: streamed(client.complete(message, **turn)),
        "collect": lambda: f"collected [{client.complete(message, **turn).text()}]",
        "batch": lambda: batched(client.batch(text.split())),
        "create": lambda: f"created {client.create_session(session_id=session_id).id}",
        "append": lambda: f"appended messages={appended(client, session_id, text)}",
        "update": lambda: client.update_session(session_id, labels={"value": text}) and "updated",
        "fork": lambda: f"forked exchanges={forked(client, session_id, text)}",
        "get": lambda: shown(client.get_session(session_id)),
        "end": lambda: client.end_session(session_id) or "ended",
        "models": lambda: client.list_models() and "models ok",
        "cancel": lambda: client.cancel_completion(**turn) or "cancelled",
    }
    if line := calls[name]():
        out(line)


def streamed(answer: Any) -> str:
    for piece in answer:
        out(f"text [{piece}]")
    reason = pb.FinishReason.Name(answer.finished.finish_reason).removeprefix("FINISH_REASON_")
    return f"finished {reason} exchanges={answer.finished.exchange_count}"


def appended(client: Any, session_id: str, text: str) -> int:
    return int(client.append_messages(session_id, text).message_count)


def forked(client: Any, session_id: str, new_session_id: str) -> int:
    return int(client.fork_session(session_id, new_session_id=new_session_id).exchange_count)


def main(arguments: list[str]) -> int:
    connect: Connect = Blocking if "--asyncio" in arguments else Client
    match arguments[-2:]:
        case ["identity", way]:
            identity(connect, way)
        case _:
            programs = {
                "scenario": scenario,
                "calls": calls,
                "restart": restart,
                "failover": failover,
            }
            programs[arguments[-1]](connect)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
