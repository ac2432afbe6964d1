"""The Python client's rules for resuming (clients/CONFORMANCE.md, "Resume"), without a daemon."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruvd_client.answers import GRACE_SECONDS, Answer, Request, resumable
from ruvd_client.protocol import RuvdError
from ruvd_client.v1 import session_service_pb2 as pb

CONNECTION_ERRORS = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
]


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def complete_request(**fields: object) -> pb.CompleteRequest:
    return resumable(pb.CompleteRequest(session_id="s", request_id="r", **fields))  # type: ignore[arg-type]


def start_answer(
    request: Request | None = None, timeout: float | None = None
) -> tuple[Answer, ManualClock]:
    """Returns an answer whose first call has been made, and its clock."""
    clock = ManualClock()
    answer = Answer(request or complete_request(), clock=clock, timeout=timeout)
    answer.next_call()
    return answer, clock


def started(completion_id: str = "c") -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=1, started=pb.Started(completion_id=completion_id))


def text(sequence: int, content: str) -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=sequence, delta=pb.Delta(text=content))


def finished(sequence: int, **message: object) -> pb.CompletionEvent:
    end = pb.Finished(message=pb.Message(**message))  # type: ignore[arg-type]
    return pb.CompletionEvent(sequence=sequence, finished=end)


def connection_error() -> RuvdError:
    return RuvdError(grpc.StatusCode.UNAVAILABLE, "", "connection reset")


def not_found() -> RuvdError:
    return RuvdError(grpc.StatusCode.NOT_FOUND, "COMPLETION_NOT_FOUND", "no such completion")


def text_of(answer: Answer, event: pb.CompletionEvent) -> str:
    answer.handle_event(event)
    return "".join(delta.text for delta in answer.deltas(event))


# --- the request -----------------------------------------------------------------------------


def test_a_request_gets_a_unique_id_and_ten_seconds_of_grace() -> None:
    first, second = (resumable(pb.CompleteRequest()) for _ in range(2))
    assert first.request_id
    assert first.request_id != second.request_id
    assert first.disconnect_grace.seconds == GRACE_SECONDS == 10


def test_the_callers_id_and_grace_are_kept() -> None:
    request = pb.CompleteRequest(request_id="mine")
    request.disconnect_grace.seconds = 0
    assert resumable(request).request_id == "mine"
    assert request.disconnect_grace.seconds == 0


# --- the next call ---------------------------------------------------------------------------


def test_before_started_the_same_request_is_made_again() -> None:
    answer, _ = start_answer()
    answer.handle_failure(connection_error())
    assert answer.next_call() is answer.request


def test_after_started_the_completion_is_resumed_after_the_last_event() -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    answer.handle_event(text(2, "a"))
    answer.handle_failure(connection_error())
    expected = pb.ResumeCompletionRequest(completion_id="c", after_sequence=2)
    assert answer.next_call() == expected


def test_a_resumed_completion_is_identified_as_by_the_caller() -> None:
    request = pb.ResumeCompletionRequest(session_id="s", request_id="r", after_sequence=4)
    answer, _ = start_answer(request)
    assert answer.last_sequence == 4
    answer.handle_event(text(5, "a"))
    answer.handle_failure(connection_error())
    expected = pb.ResumeCompletionRequest(session_id="s", request_id="r", after_sequence=5)
    assert answer.next_call() == expected
    assert request.after_sequence == 4


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_an_error_with_a_reason_is_final_whatever_its_code(code: grpc.StatusCode) -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    with pytest.raises(RuvdError, match="ENGINE_REJECTED"):
        answer.handle_failure(RuvdError(code, "ENGINE_REJECTED", "no"))
    assert answer.ended


@pytest.mark.parametrize("code", CONNECTION_ERRORS)
def test_the_codes_of_a_lost_connection_are_not_final(code: grpc.StatusCode) -> None:
    answer, _ = start_answer()
    assert answer.handle_failure(RuvdError(code, "", "from a proxy")).pause_seconds > 0
    assert not answer.ended


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c not in CONNECTION_ERRORS])
def test_any_other_status_is_final(code: grpc.StatusCode) -> None:
    answer, _ = start_answer()
    with pytest.raises(RuvdError, match="from a proxy"):
        answer.handle_failure(RuvdError(code, "", "from a proxy"))
    assert answer.ended


# --- a daemon that has lost the completion ---------------------------------------------------


def test_a_lost_answer_is_generated_again_if_nothing_was_delivered() -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    answer.handle_failure(connection_error())
    answer.next_call()
    answer.handle_failure(not_found())
    assert answer.next_call() is answer.request
    assert (answer.started, answer.last_sequence) == (None, 0)
    answer.handle_event(started("another"))
    assert text_of(answer, text(2, "new")) == "new"


@pytest.mark.parametrize(
    "delta",
    [
        pb.Delta(text="a"),
        pb.Delta(reasoning="a"),
        pb.Delta(tool_call=pb.ToolCallDelta(index=0, id="1", name="f")),
    ],
)
def test_a_lost_answer_is_not_generated_again_after_a_delta(delta: pb.Delta) -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    answer.handle_event(pb.CompletionEvent(sequence=2, delta=delta))
    answer.delivered = True
    answer.handle_failure(connection_error())
    answer.next_call()
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


def test_a_lost_answer_that_was_received_and_not_delivered_begins_again() -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    answer.handle_event(text(2, "old"))
    answer.handle_failure(connection_error())
    answer.next_call()
    answer.handle_failure(not_found())
    assert answer.next_call() is answer.request
    assert text_of(answer, finished(2, content="new")) == "new"


def test_a_lost_answer_begins_again_three_times_at_most() -> None:
    answer, _ = start_answer()

    def lose() -> None:
        answer.handle_event(started())
        answer.handle_failure(connection_error())
        answer.next_call()
        answer.handle_failure(not_found())
        answer.next_call()

    for _ in range(3):
        lose()
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        lose()


def test_not_found_is_final_unless_the_call_resumes() -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


def test_not_found_is_final_for_a_caller_that_resumes() -> None:
    answer, _ = start_answer(pb.ResumeCompletionRequest(completion_id="c"))
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


# --- pauses and limits -----------------------------------------------------------------------


def test_pauses_double_up_to_a_second_and_an_event_resets_them() -> None:
    answer, _ = start_answer()
    pauses = [answer.handle_failure(connection_error()).pause_seconds for _ in range(7)]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    answer.handle_event(started())
    assert answer.handle_failure(connection_error()).pause_seconds == 0.05


def test_an_answer_fails_after_ten_seconds_with_the_last_attempts_error() -> None:
    answer, clock = start_answer()
    start, last = clock.now, connection_error()
    with pytest.raises(RuvdError) as caught:
        while True:
            clock.now += answer.handle_failure(last).pause_seconds
            last = connection_error()
    assert caught.value is last
    assert clock.now - start == pytest.approx(10.0)


def test_an_event_restarts_the_ten_seconds() -> None:
    answer, clock = start_answer()
    for sequence in range(1, 6):
        answer.handle_failure(connection_error())
        clock.now += 9.0
        answer.handle_event(text(sequence, "a"))
    assert not answer.ended


def test_the_callers_deadline_ends_an_answer_with_deadline_exceeded() -> None:
    answer, clock = start_answer(timeout=0.5)
    assert answer.seconds_left() == 0.5
    slept = 0.0
    with pytest.raises(RuvdError) as caught:
        while True:
            pause = answer.handle_failure(connection_error()).pause_seconds
            slept += pause
            clock.now += pause
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""
    assert slept == pytest.approx(0.5)
    assert answer.seconds_left() == 0.0


# --- text of Finished that was not delivered before ------------------------------------------


@given(pieces=st.lists(st.text(min_size=1), max_size=6), cut=st.integers(0, 6))
def test_each_character_is_delivered_once_wherever_the_stream_broke(
    pieces: list[str], cut: int
) -> None:
    answer, _ = start_answer()
    answer.handle_event(started())
    delivered = [text_of(answer, text(n, piece)) for n, piece in enumerate(pieces[:cut], 2)]
    answer.handle_failure(connection_error())
    delivered.append(text_of(answer, finished(9, content="".join(pieces))))
    assert "".join(delivered) == "".join(pieces)
    assert answer.ended


@given(delivered=st.text(min_size=1), other=st.text())
def test_an_answer_that_contradicts_the_delivered_text_is_data_loss(
    delivered: str, other: str
) -> None:
    answer, _ = start_answer()
    answer.handle_event(text(1, delivered))
    event = finished(2, content=other)
    if other.startswith(delivered):
        assert text_of(answer, event) == other[len(delivered) :]
        return
    with pytest.raises(RuvdError) as caught:
        answer.handle_event(event)
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert answer.finished is None


def test_reasoning_and_tool_calls_are_completed_too() -> None:
    answer, _ = start_answer()
    answer.handle_event(pb.CompletionEvent(sequence=1, delta=pb.Delta(reasoning="be")))
    half = pb.ToolCallDelta(index=0, id="1", name="f", arguments='{"a"')
    answer.handle_event(pb.CompletionEvent(sequence=2, delta=pb.Delta(tool_call=half)))
    calls = [
        pb.ToolCall(id="1", name="f", arguments='{"a": 1}'),
        pb.ToolCall(id="2", name="g", arguments="{}"),
    ]
    event = finished(5, reasoning="because", tool_calls=calls)
    answer.handle_event(event)
    assert answer.deltas(event) == [
        pb.Delta(reasoning="cause"),
        pb.Delta(tool_call=pb.ToolCallDelta(index=0, arguments=": 1}")),
        pb.Delta(tool_call=pb.ToolCallDelta(index=1, id="2", name="g", arguments="{}")),
    ]


def test_a_caller_that_resumes_in_the_middle_gets_no_text_twice() -> None:
    answer, _ = start_answer(pb.ResumeCompletionRequest(completion_id="c", after_sequence=3))
    assert text_of(answer, text(4, " c")) == " c"
    assert text_of(answer, finished(5, content="a b c")) == ""


# --- leaving ---------------------------------------------------------------------------------


def test_the_cancel_request_has_the_request_id_before_started_and_the_completion_id_after() -> None:
    answer, _ = start_answer()
    assert answer.cancel_request() == pb.CancelCompletionRequest(session_id="s", request_id="r")
    answer.handle_event(started())
    assert answer.cancel_request() == pb.CancelCompletionRequest(completion_id="c")


def test_an_ended_answer_has_no_cancel_request() -> None:
    answer, _ = start_answer()
    answer.handle_event(finished(1, content=""))
    assert answer.cancel_request() is None
    failed, _ = start_answer()
    with pytest.raises(RuvdError):
        failed.handle_failure(RuvdError(grpc.StatusCode.ABORTED, "SESSION_BUSY", "busy"))
    assert failed.cancel_request() is None


def test_a_completion_that_continues_has_no_cancel_request() -> None:
    continuing, _ = start_answer(complete_request(on_disconnect=pb.ON_DISCONNECT_CONTINUE))
    assert continuing.cancel_request() is None


def test_a_resumed_completion_is_cancelled_by_the_ids_with_which_it_was_resumed() -> None:
    by_id, _ = start_answer(pb.ResumeCompletionRequest(completion_id="c", after_sequence=3))
    assert by_id.cancel_request() == pb.CancelCompletionRequest(completion_id="c")
    by_request, _ = start_answer(pb.ResumeCompletionRequest(session_id="s", request_id="r"))
    expected = pb.CancelCompletionRequest(session_id="s", request_id="r")
    assert by_request.cancel_request() == expected
    by_request.handle_event(started())
    assert by_request.cancel_request() == pb.CancelCompletionRequest(completion_id="c")
