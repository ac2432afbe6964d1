"""The Python client's rules for several addresses (clients/CONFORMANCE.md), without a daemon."""

from __future__ import annotations

import grpc
import pytest
from ruvd_client import Client, ErrorReason, Tls
from ruvd_client.addresses import Address, count_attempts, parse_addresses
from ruvd_client.answers import Answer, resumable
from ruvd_client.batch_calls import BatchCalls
from ruvd_client.channels import Channels
from ruvd_client.failover import Retry, Step, UnaryAttempts
from ruvd_client.protocol import RuvdError
from ruvd_client.v1 import session_service_pb2 as pb

NOW = Retry(Step.FAIL_OVER, 0.0)


def lost() -> RuvdError:
    return RuvdError(grpc.StatusCode.UNAVAILABLE, "", "connection refused")


def shutting_down() -> RuvdError:
    return RuvdError(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the daemon is shutting down")


def not_found() -> RuvdError:
    return RuvdError(grpc.StatusCode.NOT_FOUND, "COMPLETION_NOT_FOUND", "no such completion")


def event(sequence: int, **fields: object) -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=sequence, **fields)  # type: ignore[arg-type]


# --- the list --------------------------------------------------------------------------------


def test_a_list_has_the_forms_of_single_addresses_with_spaces_around_them() -> None:
    text = (
        "a:7000, 127.0.0.1:7001,[::1]:1 ,unix:/run/r.sock,unix:///r.sock,unix:r.sock,dns:///b:65535"
    )
    assert [address.target for address in parse_addresses(text)] == [
        "a:7000",
        "127.0.0.1:7001",
        "[::1]:1",
        "unix:/run/r.sock",
        "unix:///r.sock",
        "unix:r.sock",
        "dns:///b:65535",
    ]


@pytest.mark.parametrize(
    "wrong",
    ["", "b", "b:", ":7000", "b:0", "b:65536", "b:x", "http://b:7000", "unix:", "unix://", "::1"],
)
def test_a_wrong_entry_is_named_with_its_position(wrong: str) -> None:
    with pytest.raises(ValueError, match="entry 2 of the addresses") as caught:
        Client(f"a:7000,{wrong},c:7000")
    assert f"is {wrong!r}, which" in str(caught.value)


def test_an_address_without_a_comma_is_not_checked() -> None:
    assert parse_addresses("xds:///anything at all") == (Address("xds:///anything at all"),)


@pytest.mark.parametrize(
    ("text", "attempts"),
    [
        ("127.0.0.1:1", 1),
        ("[::1]:1", 1),
        ("ipv4:127.0.0.1:1", 1),
        ("unix:/r.sock", 1),
        ("unix-abstract:r", 1),
        ("localhost:1", 2),
        ("dns:///daemons.example:1", 2),
        ("127.0.0.1:1,127.0.0.1:2", 2),
        ("a:1,b:1,unix:/r.sock", 3),
    ],
)
def test_a_round_has_an_attempt_for_each_entry_and_a_name_may_be_several(
    text: str, attempts: int
) -> None:
    assert count_attempts(parse_addresses(text)) == attempts


def test_a_token_needs_tls_if_one_of_the_addresses_is_not_local() -> None:
    with pytest.raises(ValueError, match=r"a token is not sent to example\.org:1 without TLS"):
        Client("unix:/r.sock,localhost:1,example.org:1", token="secret")
    with Client("unix:/r.sock,localhost:1,127.0.0.1:2", token="secret"):
        pass
    with Client("unix:/r.sock,example.org:1", token="secret", tls=Tls()):
        pass


# --- the channels ----------------------------------------------------------------------------


class Unconnected:
    """A gRPC channel that makes no calls."""

    def _method(self, *_: object, **__: object) -> None: ...

    unary_unary = unary_stream = _method


def channels(text: str) -> Channels:
    return Channels(parse_addresses(text), lambda _: Unconnected())


def test_clients_begin_at_a_random_address_and_go_round() -> None:
    starts = set()
    for _ in range(200):
        each = channels("a:1,b:1,c:1")
        first = each.current()
        starts.add(first.address.target)
        second = each.after(first, Step.FAIL_OVER)
        third = each.after(second, Step.FAIL_OVER)
        assert each.current() is third
        assert {first, second, third} == set(each.all())
        assert each.after(third, Step.FAIL_OVER) is first
    assert starts == {"a:1", "b:1", "c:1"}


def test_two_calls_that_fail_at_one_address_move_the_client_once() -> None:
    each = channels("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3")
    first = each.current()
    second = each.after(first, Step.FAIL_OVER)
    assert each.after(first, Step.FAIL_OVER) is second
    assert each.current() is second


def test_a_question_to_another_address_does_not_move_the_client() -> None:
    each = channels("a:1,b:1")
    first = each.current()
    assert each.after(first, Step.ASK) is not first
    assert each.after(first, Step.STAY) is first
    assert each.current() is first
    assert not each.take_unused()


def test_a_daemon_that_stops_behind_a_name_is_left_by_a_new_channel() -> None:
    each = channels("daemons.example:1")
    first = each.current()
    assert each.after(first, Step.FAIL_OVER) is first
    second = each.after(first, Step.LEAVE)
    assert second is not first
    assert each.after(first, Step.LEAVE) is second  # another call that failed there
    assert each.current() is second
    first.retired_at -= 60.0
    with each.calling(first):
        assert each.take_unused() == []
    assert each.take_unused() == [first]
    assert each.take_unused() == []


# --- unary calls -----------------------------------------------------------------------------


def test_a_read_is_repeated_at_once_and_pauses_after_each_of_four_rounds() -> None:
    attempts = UnaryAttempts(pb.GetSessionRequest(session_id="s"), None, 2)
    retries = [attempts.handle_failure(lost()) for _ in range(7)]
    pauses = [retry.pause_seconds for retry in retries]
    assert pauses == [0.0, 0.1, 0.0, 0.2, 0.0, 0.4, 0.0]
    with pytest.raises(RuvdError, match="connection refused"):
        attempts.handle_failure(lost())


def test_a_write_is_repeated_like_a_read() -> None:
    attempts = UnaryAttempts(pb.UpdateSessionRequest(session_id="s"), None, 3)
    assert [attempts.handle_failure(lost()) for _ in range(2)] == [NOW, NOW]
    assert attempts.handle_failure(lost()) == Retry(Step.FAIL_OVER, 0.1)
    for _ in range(8):
        attempts.handle_failure(lost())
    with pytest.raises(RuvdError, match="connection refused"):
        attempts.handle_failure(lost())


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (lost(), Step.FAIL_OVER),
        (shutting_down(), Step.LEAVE),
        (RuvdError(grpc.StatusCode.ABORTED, "OWNERSHIP_LOST", ""), Step.LEAVE),
        (not_found(), Step.ASK),
        (RuvdError(grpc.StatusCode.ABORTED, "SESSION_BUSY", ""), None),
        (RuvdError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", ""), None),
        (RuvdError(grpc.StatusCode.INTERNAL, "", ""), None),
    ],
)
def test_what_fails_over(error: RuvdError, step: Step | None) -> None:
    attempts = UnaryAttempts(pb.CancelCompletionRequest(completion_id="c"), None, 2)
    if step is None:
        with pytest.raises(RuvdError):
            attempts.handle_failure(error)
    else:
        assert attempts.handle_failure(error) == Retry(step, 0.0)


def test_a_read_fails_over_for_every_unavailable_as_its_retry_policy_says() -> None:
    attempts = UnaryAttempts(pb.ListModelsRequest(), None, 2)
    error = RuvdError(grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE", "")
    assert attempts.handle_failure(error) == NOW


def test_a_completion_that_no_daemon_has_is_not_found_even_if_one_cannot_be_reached() -> None:
    attempts = UnaryAttempts(pb.CancelCompletionRequest(completion_id="c"), None, 2)
    attempts.handle_failure(not_found())
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        attempts.handle_failure(lost())


@pytest.mark.parametrize(
    "request_type", [pb.CreateSessionRequest, pb.AppendMessagesRequest, pb.ForkSessionRequest]
)
def test_calls_that_would_happen_twice_get_a_request_id(request_type: type) -> None:
    first, second, mine = request_type(), request_type(), request_type(request_id="mine")
    for each in (first, second, mine):
        UnaryAttempts(each, None, 2)
    assert first.request_id
    assert first.request_id != second.request_id
    assert mine.request_id == "mine"


def test_a_session_may_have_ended_by_a_call_whose_connection_was_lost() -> None:
    request = pb.EndSessionRequest(session_id="s")
    attempts = UnaryAttempts(request, None, 3)
    attempts.handle_failure(shutting_down())
    assert not request.allow_missing
    attempts.handle_failure(lost())
    assert request.allow_missing


def test_the_timeout_covers_all_attempts_and_is_by_default_that_of_the_service_config() -> None:
    times = iter([1_000.0, 1_000.0, 1_001.0] * 2)
    for timeout, expected in ((None, 10.0), (3.0, 3.0)):
        attempts = UnaryAttempts(pb.ListModelsRequest(), timeout, 2, clock=lambda: next(times))
        assert attempts.seconds_left() == expected
        assert attempts.seconds_left() == expected - 1
    assert UnaryAttempts(pb.ForkSessionRequest(), None, 2).seconds_left() is None


# --- completions -----------------------------------------------------------------------------


def start(attempts_per_round: int = 2, **fields: str) -> Answer:
    request = resumable(pb.CompleteRequest(session_id="s", **fields))  # type: ignore[arg-type]
    answer = Answer(request, attempts_per_round=attempts_per_round)
    answer.next_call()
    return answer


def fail(answer: Answer, error: RuvdError) -> Retry:
    retry = answer.handle_failure(error)
    answer.next_call()
    return retry


def deliver(answer: Answer) -> None:
    answer.handle_event(event(1, started=pb.Started(completion_id="c", session_id="s")))
    answer.handle_event(event(2, delta=pb.Delta(text="a")))
    answer.delivered = True


def test_a_completion_asks_each_address_before_it_pauses() -> None:
    answer = start(3)
    retries = [fail(answer, lost()) for _ in range(6)]
    assert {retry.step for retry in retries} == {Step.FAIL_OVER}
    assert [retry.pause_seconds for retry in retries] == [0.0, 0.0, 0.05, 0.0, 0.0, 0.1]


def test_a_broken_stream_is_resumed_at_its_own_address_first() -> None:
    answer = start()
    deliver(answer)
    assert fail(answer, lost()) == Retry(Step.STAY, 0.0)
    assert fail(answer, lost()) == NOW


def test_delivered_text_is_not_followed_by_that_of_another_generation() -> None:
    """The daemon was killed: its address is refused, and the other daemon does not know it."""
    answer = start()
    deliver(answer)
    fail(answer, lost())
    fail(answer, lost())
    with pytest.raises(RuvdError, match="COMPLETION_NOT_FOUND"):
        answer.handle_failure(not_found())


def test_every_address_is_asked_for_a_completion_of_which_text_was_delivered() -> None:
    answer = start(3)
    deliver(answer)
    fail(answer, lost())
    assert fail(answer, not_found()) == Retry(Step.ASK, 0.0)
    assert fail(answer, not_found()) == Retry(Step.ASK, 0.0)
    answer.handle_event(event(3, delta=pb.Delta(text="b")))
    assert not answer.ended


def test_a_daemon_that_stops_is_left_silently_before_text_and_with_its_error_after() -> None:
    answer = start()
    assert fail(answer, shutting_down()) == Retry(Step.LEAVE, 0.0)
    answer.handle_event(event(1, started=pb.Started(completion_id="c")))
    assert fail(answer, shutting_down()) == Retry(Step.LEAVE, 0.0)
    assert (answer.started, answer.last_sequence) == (None, 0)
    deliver(answer)
    with pytest.raises(RuvdError, match="SHUTTING_DOWN"):
        answer.handle_failure(shutting_down())


def test_with_one_address_a_daemon_that_stops_is_final() -> None:
    answer = start(1)
    with pytest.raises(RuvdError, match="SHUTTING_DOWN"):
        answer.handle_failure(shutting_down())


# --- batches ---------------------------------------------------------------------------------


def test_a_batch_goes_round_once_and_fails_if_no_daemon_was_reached() -> None:
    calls = BatchCalls(0, None, 1000, 60.0, 2)
    calls.add("one")
    calls.flush()
    call = calls.next_call()
    assert call is not None
    assert calls.handle_failure(call, lost()) is None
    assert calls.finish(call, lost()) == NOW
    again = calls.next_call()
    assert again is not None
    assert again.request == call.request
    with pytest.raises(RuvdError, match="connection refused"):
        calls.handle_failure(again, lost())


# --- reasons ---------------------------------------------------------------------------------


def test_every_reason_of_the_daemon_is_a_constant() -> None:
    sent = {name.removeprefix("ERROR_REASON_") for name, _ in pb.ErrorReason.items()}
    assert set(ErrorReason) == sent - {"UNSPECIFIED"} | {"REQUEST_TOO_LARGE"}
    assert all(reason == reason.name for reason in ErrorReason)
