"""Items of a batch that another replica answers become outcomes like those of this one."""

from __future__ import annotations

from typing import Any

import pytest

from ruvd.core.completions.batch import BatchOutcome
from ruvd.core.errors import EngineRateLimited, Overloaded, RuvdError, SessionNotFound
from ruvd.core.model import (
    CompletionEvent,
    Delta,
    Finished,
    FinishReason,
    Message,
    Role,
    Started,
    Timings,
    ToolCall,
    Usage,
)
from ruvd.core.ports.replicas import SessionElsewhere
from ruvd.rpc import answers, convert, message_parts, status
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.peers import marks
from ruvd.rpc.peers.batch_items import BatchItems
from ruvd.rpc.peers.routing import Call, Routing
from ruvd.rpc.status import ForwardedStatus
from ruvd.v1 import session_service_pb2 as pb

CALLS = (ToolCall("1", "look", "{}", '{"a": 1}'), ToolCall("2", "see", "[]"))
ANSWERS = [
    Finished(FinishReason.STOP, Message(Role.ASSISTANT, ""), None, Timings(0, None, 0, None), 0),
    Finished(
        FinishReason.TOOL_CALLS,
        Message(Role.ASSISTANT, "hä", CALLS, reasoning="r", engine_data='{"b": 2}'),
        Usage(3, 0, 5),
        Timings(0.25, 0.5, 86_400.125, 0.0),
        7,
        "tools",
    ),
    Finished(
        FinishReason.LENGTH, Message(Role.ASSISTANT, "x"), Usage(3), Timings(0, 1, 2, None), 2**40
    ),
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_the_same_after_a_call_to_another_replica(answer: Finished) -> None:
    event = pb.CompletionEvent()
    convert.event(CompletionEvent(1, answer), event)
    assert answers.finished(pb.Finished.FromString(event.finished.SerializeToString())) == answer


def events(completion_id: str, answer: Finished) -> list[pb.CompletionEvent]:
    """Returns the events of a completion as `Complete` sends them."""
    sent: list[pb.CompletionEvent] = []
    started = Started(completion_id, "s", False, "m", 1, False)  # noqa: FBT003
    told: list[Started | Delta | Finished] = [started, Delta("x"), Delta("y"), answer]
    for number, each in enumerate(told):
        event = CompletionEvent(number + 1, each)
        sent += message_parts.before(event)
        sent.append(pb.CompletionEvent())
        convert.event(event, sent[-1])
    return sent


async def write(call: Call, sent: list[pb.CompletionEvent]) -> None:
    for each in sent:
        await call.receiver.write(pb.CompleteResponse(event=each).SerializeToString())


async def run(route: Any, on_text: Any = lambda: None) -> BatchOutcome:
    """Runs the second item of a batch, whose session is elsewhere."""
    first, second = pb.CompleteRequest(), pb.CompleteRequest(session_id="s", request_id="r")
    context: Any = None
    items = BatchItems(route, pb.BatchCompleteRequest(items=[first, second]), context)

    async def here(*, may_move: bool) -> BatchOutcome:
        assert not may_move  # outside of the router
        raise SessionElsewhere("s", completion_id="cmpl-elsewhere")

    return await items.run(1, here, on_text)


async def test_an_outcome_has_the_answer_of_the_attempt_that_succeeded() -> None:
    large = Finished(
        FinishReason.STOP,
        Message(Role.ASSISTANT, "x" * 4_000_000),
        None,
        Timings(0, None, 0, None),
        1,
    )
    texts = []

    async def route(call: Call, state: Routing) -> None:
        assert call.is_batch_item
        assert state.may_repeat
        assert call.data() == pb.CompleteRequest(session_id="s", request_id="r").SerializeToString()
        await write(call, events("cmpl-lost", large)[:5])  # the connection breaks amid the parts
        await write(call, events("cmpl-kept", large))

    outcome = await run(route, lambda: texts.append(""))
    assert outcome == BatchOutcome(1, "cmpl-kept", "s", "m", large)
    assert len(texts) == 4


async def test_a_replayed_answer_without_events_has_the_id_of_its_completion() -> None:
    async def route(call: Call, state: Routing) -> None:
        with pytest.raises(SessionElsewhere):
            await call.handle(call.request, call.receiver)
        await write(call, events("", ANSWERS[1])[-1:])

    assert await run(route) == BatchOutcome(1, "cmpl-elsewhere", "s", "", ANSWERS[1])


def refused(error: RuvdError) -> Any:
    """Returns a route to a replica that answers with an error."""
    code, rich = status.to_status(error)

    async def route(call: Call, state: Routing) -> None:
        raise ForwardedStatus(code, rich.message, status.trailing(error, rich))

    return route


@pytest.mark.parametrize("kind", [Overloaded, EngineRateLimited])
async def test_what_was_refused_because_of_load_is_tried_again_by_the_batch(
    kind: type[RuvdError],
) -> None:
    with pytest.raises(kind, match="full") as caught:
        await run(refused(kind("full", retry_after_seconds=2.5)))
    assert caught.value.retry_after_seconds == 2.5


async def test_an_error_of_the_other_replica_is_that_of_the_item() -> None:
    error = SessionNotFound("there is no session")
    outcome = await run(refused(error))
    assert outcome.error is not None
    assert status.to_status(outcome.error) == status.to_status(error)
    assert (outcome.index, outcome.session_id, outcome.finished) == (1, "s", None)


@pytest.mark.parametrize("identity", [None, Identity("ann/")])
@pytest.mark.parametrize("is_batch_item", [False, True])
def test_a_mark_says_whether_a_call_is_an_item_of_a_batch(
    identity: Identity | None, *, is_batch_item: bool
) -> None:
    mark = marks.mark("me", identity, is_batch_item=is_batch_item)
    assert marks.read(mark) == marks.Mark("me", identity, is_batch_item)
