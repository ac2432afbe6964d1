"""Completions as calls begin them: ruvd's own headers, validation, and the events of the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from ruvd.core import tenants
from ruvd.core.completions.completion import Completion, CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import FieldViolation, InvalidRequest, PermissionDenied
from ruvd.core.model import CompletionEvent, Finished, Started
from ruvd.http.openai.calls import Call, Rename
from ruvd.http.openai.fields import Fields
from ruvd.rpc import auditing, requests, reservation
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

SESSION_HEADER = "x-ruvd-session-id"
_IF_BUSY = {
    "queue": pb.IF_BUSY_QUEUE,
    "reject": pb.IF_BUSY_REJECT,
    "interrupt": pb.IF_BUSY_INTERRUPT,
}
_ON_DISCONNECT = {"cancel": pb.ON_DISCONNECT_CANCEL, "continue": pb.ON_DISCONNECT_CONTINUE}


def read_headers(fields: Fields, call: Call, request: pb.CompleteRequest) -> None:
    """Reads the headers by which a call says more than OpenAI's API has fields for."""
    request.request_id = fields.text(call.header("idempotency-key"), "Idempotency-Key")
    if word := call.header("x-ruvd-if-busy"):
        name = fields.choice(word.lower(), "X-Ruvd-If-Busy", _IF_BUSY)
        request.if_busy = _IF_BUSY[name or "queue"]
    if word := call.header("x-ruvd-on-disconnect"):
        name = fields.choice(word.lower(), "X-Ruvd-On-Disconnect", _ON_DISCONNECT)
        request.on_disconnect = _ON_DISCONNECT[name or "cancel"]


def convert(
    fields: Fields, call: Call, request: pb.CompleteRequest, limits: RequestLimits, rename: Rename
) -> CompletionRequest:
    """Returns the completion that a call asks for, by the rules of the RPC.

    Raises InvalidRequest with every wrong field, and PermissionDenied.
    """
    auditing.note_request(request)
    converted = checked(fields, request, limits, rename)
    call.rename = rename  # for the errors that come later
    return converted


def checked(
    fields: Fields, request: pb.CompleteRequest, limits: RequestLimits, rename: Rename
) -> CompletionRequest:
    """Returns the completion. Raises errors whose fields are named as in the request."""
    try:
        converted = requests.complete(request, limits)
    except InvalidRequest as error:
        fields.merge(FieldViolation(rename(v.field), v.description) for v in error.violations)
        fields.raise_if_wrong()
        raise
    except PermissionDenied as error:
        fields.raise_if_wrong()
        denied = [FieldViolation(rename(v.field), v.description) for v in error.violations]
        raise PermissionDenied(denied or str(error)) from None
    fields.raise_if_wrong()
    return converted


@dataclass(slots=True)
class Answer:
    """The answer of a completion from its first event on, which `first` is."""

    completion: Completion
    events: AsyncIterator[CompletionEvent]
    first: CompletionEvent | None
    started: Started | None

    @property
    def id(self) -> str:
        """The completion's id as its tenant knows it."""
        return tenants.own(self.completion.replayed or self.completion.id)

    async def rest(self) -> AsyncIterator[CompletionEvent]:
        """Yields the events after Started."""
        if self.first:
            yield self.first
        async for event in self.events:
            yield event

    async def finished(self) -> Finished:
        """Waits for the end of the answer."""
        found: Finished | None = None
        async for event in self.rest():
            if isinstance(event.event, Finished):
                found = event.event
        if found is None:
            raise RuntimeError("a completion has ended without an error and without Finished")
        return found


@asynccontextmanager
async def answered(
    completions: CompletionRegistry, request: CompletionRequest
) -> AsyncIterator[Answer]:
    """Begins a completion, and waits until the first event of its answer.

    What fails until then is an error of the call, whose response has not begun. The completion is
    left when the context ends.
    """
    completion = completions.start(request)
    async with aclosing(completion.events()) as events:
        answer = Answer(completion, events, None, None)
        async for event in events:
            if isinstance(event.event, Started):
                answer.started = event.event
                continue
            answer.first = event
            break
        reservation.give_back()
        yield answer
