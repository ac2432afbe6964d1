"""The Python client's rules of resuming, without a daemon: clients/CONFORMANCE.md, "Resume"."""

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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def asked(**fields: object) -> pb.CompleteRequest:
    return resumable(pb.CompleteRequest(session_id="s", request_id="r", **fields))  # type: ignore[arg-type]


def begun(request: Request | None = None, **limits: float) -> tuple[Answer, Clock]:
    """An answer whose first call has been made."""
    clock = Clock()
    answer = Answer(request or asked(), clock=clock, **limits)
    answer.next_call()
    return answer, clock


def started(completion_id: str = "c") -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=1, started=pb.Started(completion_id=completion_id))


def text(sequence: int, said: str) -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=sequence, delta=pb.Delta(text=said))


def finished(sequence: int, **message: object) -> pb.CompletionEvent:
    end = pb.Finished(message=pb.Message(**message))  # type: ignore[arg-type]
    return pb.CompletionEvent(sequence=sequence, finished=end)


def break_() -> RuvdError:
    return RuvdError(grpc.StatusCode.UNAVAILABLE, "", "connection reset")


def not_found() -> RuvdError:
    return RuvdError(grpc.StatusCode.NOT_FOUND, "COMPLETION_NOT_FOUND", "no such completion")


def rest_of(answer: Answer, event: pb.CompletionEvent) -> str:
    answer.handle_event(event)
    return "".join(delta.text for delta in answer.deltas(event))


# --- the request -----------------------------------------------------------------------------


def test_a_request_gets_an_id_of_its_own_and_ten_seconds_of_grace() -> None:
    first, second = (resumable(pb.CompleteRequest()) for _ in range(2))
    assert first.request_id
    assert first.request_id != second.request_id
    assert first.disconnect_grace.seconds == GRACE_SECONDS == 10


def test_what_the_caller_has_set_stays() -> None:
    request = pb.CompleteRequest(request_id="mine")
    request.disconnect_grace.seconds = 0
    assert resumable(request).request_id == "mine"
    assert request.disconnect_grace.seconds == 0


# --- what is called next ---------------------------------------------------------------------


def test_before_started_the_same_request_is_made_again() -> None:
    answer, _ = begun()
    answer.handle_failure(break_())
    assert answer.next_call() is answer.request


def test_after_started_the_completion_is_resumed_after_the_last_event() -> None:
    answer, _ = begun()
    answer.handle_event(started())
    answer.handle_event(text(2, "a"))
    answer.handle_failure(break_())
    wanted = pb.ResumeCompletionRequest(completion_id="c", after_sequence=2)
    assert answer.next_call() == wanted


def test_a_resumed_completion_is_named_as_it_was() -> None:
    request = pb.ResumeCompletionRequest(session_id="s", request_id="r", after_sequence=4)
    answer, _ = begun(request)
    assert answer.last_sequence == 4
    answer.handle_event(text(5, "a"))
    answer.handle_failure(break_())
    wanted = pb.ResumeCompletionRequest(session_id="s", request_id="r", after_sequence=5)
    assert answer.next_call() == wanted
    assert request.after_sequence == 4


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_an_error_with_a_reason_is_final_whatever_its_code(code: grpc.StatusCode) -> None:
    answer, _ = begun()
    answer.handle_event(started())
    with pytest.raises(RuvdError, match="ENGINE_REJECTED"):
        answer.handle_failure(RuvdError(code, "ENGINE_REJECTED", "no"))
    assert answer.ended


@pytest.mark.parametrize("code", CONNECTION_ERRORS)
def test_what_a_lost_connection_shows_itself_as_is_a_break(code: grpc.StatusCode) -> None:
    answer, _ = begun()
    assert answer.handle_failure(RuvdError(code, "", "somebody in between")) > 0
    assert not answer.ended


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c not in CONNECTION_ERRORS])
def test_any_other_status_is_final(code: grpc.StatusCode) -> None:
    answer, _ = begun()
    with pytest.raises(RuvdError, match="somebody in between"):
        answer.handle_failure(RuvdError(code, "", "somebody in between"))
    assert answer.ended


# --- a daemon that has forgotten it ----------------------------------------------------------


def test_what_nobody_has_seen_anything_of_is_asked_for_anew() -> None:
    answer, _ = begun()
    answer.handle_event(started())
    answer.handle_failure(break_())
    answer.next_call()
    answer.handle_failure(not_found())
    assert answer.next_call() is answer.request
    assert (answer.started, answer.last_sequence) == (None, 0)
    answer.handle_event(started("another"))
    assert rest_of(answer, text(2, "new")) == "new"


@pytest.mark.parametrize(
    "delta",
    [
        pb.Delta(text="a"),
        pb.Delta(reasoning="a"),
        pb.Delta(tool_call=pb.ToolCallDelta(index=0, id="1", name="f")),
    ],
)
def test_nothing_is_generated_anew_after_a_delta(delta: pb.Delta) -> None:
    answer, _ = begun()
    answer.handle_event(started())
    answer.handle_event(pb.CompletionEvent(sequence=2, delta=delta))
    answer.handle_failure(break_())
    answer.next_call()
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


def test_not_found_of_the_first_call_is_final() -> None:
    answer, _ = begun()
    answer.handle_event(started())
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


def test_not_found_is_final_for_who_only_resumes() -> None:
    answer, _ = begun(pb.ResumeCompletionRequest(completion_id="c"))
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


# --- pauses and limits -----------------------------------------------------------------------


def test_pauses_double_up_to_a_second_and_an_event_starts_them_anew() -> None:
    answer, _ = begun()
    pauses = [answer.handle_failure(break_()) for _ in range(7)]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    answer.handle_event(started())
    assert answer.handle_failure(break_()) == 0.05


def test_it_gives_up_ten_seconds_after_the_break_with_the_error_of_the_last_try() -> None:
    answer, clock = begun()
    began, last = clock.now, break_()
    with pytest.raises(RuvdError) as caught:
        while True:
            clock.now += answer.handle_failure(last)
            last = break_()
    assert caught.value is last
    assert clock.now - began == pytest.approx(10.0)


def test_the_ten_seconds_begin_anew_with_an_event() -> None:
    answer, clock = begun()
    for sequence in range(1, 6):
        answer.handle_failure(break_())
        clock.now += 9.0
        answer.handle_event(text(sequence, "a"))
    assert not answer.ended


def test_the_callers_deadline_ends_it_with_deadline_exceeded() -> None:
    answer, clock = begun(timeout=0.5)
    assert answer.seconds_left() == 0.5
    slept = 0.0
    with pytest.raises(RuvdError) as caught:
        while True:
            pause = answer.handle_failure(break_())
            slept += pause
            clock.now += pause
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""
    assert slept == pytest.approx(0.5)
    assert answer.seconds_left() == 0.0


# --- what Finished has beyond what was delivered ---------------------------------------------


@given(pieces=st.lists(st.text(min_size=1), max_size=6), cut=st.integers(0, 6))
def test_each_character_is_delivered_once_wherever_it_was_cut(pieces: list[str], cut: int) -> None:
    answer, _ = begun()
    answer.handle_event(started())
    said = [rest_of(answer, text(n, piece)) for n, piece in enumerate(pieces[:cut], 2)]
    answer.handle_failure(break_())
    said.append(rest_of(answer, finished(9, content="".join(pieces))))
    assert "".join(said) == "".join(pieces)
    assert answer.ended


@given(delivered=st.text(min_size=1), other=st.text())
def test_text_that_is_not_the_beginning_of_the_answer_is_data_loss(
    delivered: str, other: str
) -> None:
    answer, _ = begun()
    answer.handle_event(text(1, delivered))
    event = finished(2, content=other)
    if other.startswith(delivered):
        assert rest_of(answer, event) == other[len(delivered) :]
        return
    with pytest.raises(RuvdError) as caught:
        answer.handle_event(event)
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert answer.finished is None


def test_reasoning_and_tool_calls_are_completed_too() -> None:
    answer, _ = begun()
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


def test_who_reads_on_from_the_middle_gets_no_text_twice() -> None:
    answer, _ = begun(pb.ResumeCompletionRequest(completion_id="c", after_sequence=3))
    assert rest_of(answer, text(4, " c")) == " c"
    assert rest_of(answer, finished(5, content="a b c")) == ""


# --- leaving ---------------------------------------------------------------------------------


def test_a_caller_who_leaves_cancels_by_request_id_and_then_by_the_completions() -> None:
    answer, _ = begun()
    assert answer.cancel_request() == pb.CancelCompletionRequest(session_id="s", request_id="r")
    answer.handle_event(started())
    assert answer.cancel_request() == pb.CancelCompletionRequest(completion_id="c")


def test_what_has_ended_needs_no_cancel() -> None:
    answer, _ = begun()
    answer.handle_event(finished(1, content=""))
    assert answer.cancel_request() is None
    failed, _ = begun()
    with pytest.raises(RuvdError):
        failed.handle_failure(RuvdError(grpc.StatusCode.ABORTED, "SESSION_BUSY", "busy"))
    assert failed.cancel_request() is None


def test_what_goes_on_without_a_reader_is_not_cancelled() -> None:
    going_on, _ = begun(asked(on_disconnect=pb.ON_DISCONNECT_CONTINUE))
    assert going_on.cancel_request() is None


def test_a_resumed_completion_is_cancelled_by_the_name_it_was_resumed_by() -> None:
    by_id, _ = begun(pb.ResumeCompletionRequest(completion_id="c", after_sequence=3))
    assert by_id.cancel_request() == pb.CancelCompletionRequest(completion_id="c")
    by_request, _ = begun(pb.ResumeCompletionRequest(session_id="s", request_id="r"))
    wanted = pb.CancelCompletionRequest(session_id="s", request_id="r")
    assert by_request.cancel_request() == wanted
    by_request.handle_event(started())
    assert by_request.cancel_request() == pb.CancelCompletionRequest(completion_id="c")
