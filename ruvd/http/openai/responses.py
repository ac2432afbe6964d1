"""`/v1/responses`: turns of sessions that the daemon keeps, with events that can be resumed."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from ruvd.core import tenants
from ruvd.core.completions.completion import CompletionRef
from ruvd.core.errors import CompletionCancelled, CompletionNotFound, RuvdError
from ruvd.core.model import CompletionEvent, Finished
from ruvd.http.openai import response_object
from ruvd.http.openai.calls import Call
from ruvd.http.openai.completion_call import SESSION_HEADER, Answer, answered, convert, read_headers
from ruvd.http.openai.errors import respond_to
from ruvd.http.openai.fields import Fields
from ruvd.http.openai.items import written
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.response_events import ResponseEvents
from ruvd.http.openai.response_object import KnownResponses, ResponseFacts, completion_id
from ruvd.http.openai.response_places import Place, ResponsePlaces, new_conversation_id
from ruvd.http.openai.response_requests import ResponseRequest, read_response
from ruvd.http.refusals import Refused
from ruvd.rpc import auditing
from ruvd.rpc.identity.caller import scoped_id
from ruvd.v1 import session_service_pb2 as pb

_MAX_DIGITS = 18


class Responses:
    """The operations of responses."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._places = ResponsePlaces(parts)
        self._known = KnownResponses()

    async def create(self, call: Call) -> None:
        """Makes a response."""
        fields = Fields()
        asked = read_response(fields, call.body)
        request = pb.CompleteRequest(
            system_prompt=asked.system_prompt, messages=asked.input.messages, options=asked.options
        )
        read_headers(fields, call, request)
        async with AsyncExitStack() as stack:
            if asked.previous and not fields.violations:
                place = await stack.enter_async_context(
                    self._places.after(asked.previous, request.request_id)
                )
            else:
                place = _place(asked, request.request_id)
            request.session_id, request.require_existing = place.session_id, place.exists
            if asked.background:
                request.on_disconnect = pb.ON_DISCONNECT_CONTINUE
            core_request = convert(fields, call, request, self._parts.limits, asked.rename)
            facts = ResponseFacts(
                time.time(), asked.options.model or self._parts.engine.model, place.session_id,
                asked.previous or None, asked.background, asked.store, asked.metadata, asked.echo,
            )  # fmt: skip
            headers = {SESSION_HEADER: place.session_id} if place.session_id else {}
            if asked.background and not asked.stream:
                if place.exists:  # otherwise nobody would hear of it before the response has failed
                    await self._parts.sessions.get(core_request.session_id)
                completion = self._parts.completions.start(core_request)
                await asyncio.sleep(0)  # it joins the session's queue
                given = response_object.response_id(tenants.own(completion.id))
                facts.watch(completion)
                self._known.add(completion.id, facts)
                queued = response_object.write(given, facts, "queued", [], None)
                await call.respond(queued, headers=headers)
                return
            answer = await stack.enter_async_context(
                answered(self._parts.completions, core_request)
            )
            if answer.started:
                facts.model = answer.started.model
            facts.watch(answer.completion)
            self._known.add(scoped_id(answer.id), facts)
            given = response_object.response_id(answer.id)
            if not asked.stream:
                await call.respond(_whole(given, facts, await answer.finished()), headers=headers)
                return
            await self._send(call, given, facts, _from_start(answer), headers=headers)

    async def retrieve(self, call: Call) -> None:
        """Returns a response, or its events after the last one that the client has."""
        given, query = call.path["response_id"], call.query
        ref = _ref(call)
        facts = await self._facts(ref.completion_id)
        if _read_flag(query, "stream"):
            after = _read_number(query, "starting_after")
            if not facts.is_running():
                await self._outcome(facts, ref)
            async with aclosing(self._parts.completions.resume(ref, 0)) as events:
                await self._send(call, given, facts, events, after=after)
            return
        if facts.is_running():
            status = response_object.write(given, facts, "in_progress", [], None)
            await call.respond(status)
            return
        await call.respond(await self._ended(given, facts, ref))

    async def cancel(self, call: Call) -> None:
        """Cancels a response that is being made."""
        given, ref = call.path["response_id"], _ref(call)
        facts = await self._facts(ref.completion_id)
        await self._parts.completions.cancel(ref, keep_partial=False)
        await call.respond(await self._ended(given, facts, ref))

    async def delete(self, call: Call) -> None:
        """Refuses to delete a response, which is a turn of its session."""
        ref = _ref(call)
        facts = await self._facts(ref.completion_id)
        if not facts.is_running():
            await self._outcome(facts, ref)
        text = "a response that is not stored is not deleted: it is forgotten by itself"
        if facts.conversation:
            text = (
                "a response is a turn of its conversation, which is deleted as a whole:"
                f" DELETE /v1/conversations/{facts.conversation}"
            )
        raise Refused(405, "not_supported", text, "response_id", allow="GET, HEAD")

    async def _ended(self, given: str, facts: ResponseFacts, ref: CompletionRef) -> dict[str, Any]:
        outcome = await self._outcome(facts, ref)
        if isinstance(outcome, Finished):
            return _whole(given, facts, outcome)
        response = response_object.write(given, facts, _status(outcome), [], None)
        return response | {"error": _error(outcome)}

    async def _outcome(self, facts: ResponseFacts, ref: CompletionRef) -> Finished | RuvdError:
        """Waits for the end of a response, and returns its answer or why it has failed.

        Raises CompletionNotFound. An answer goes with its conversation, while its events are kept
        for a while. Errors of the store are raised: they are none of the response.
        """
        finished: Finished | None = None
        is_kept = self._parts.completions.kept(ref) is not None
        try:
            async with aclosing(self._parts.completions.resume(ref, 0)) as events:
                async for event in events:
                    if isinstance(event.event, Finished):
                        finished = event.event
        except RuvdError as error:
            if not is_kept:
                raise
            return error
        if finished is None:
            raise CompletionNotFound("the response's answer is not kept any more")
        if facts.conversation and not await self._parts.sessions.completed_in(ref.completion_id):
            raise CompletionNotFound("the response's conversation has been deleted, or has expired")
        return finished

    async def _facts(self, scoped: str) -> ResponseFacts:
        """Returns what is known of a response beside its answer. Raises CompletionNotFound."""
        if facts := self._known.find(scoped):
            return facts
        found = await self._parts.sessions.completed_in(scoped)
        if found is None:
            if completion := self._parts.completions.kept(CompletionRef(completion_id=scoped)):
                conversation = tenants.own(completion.session_id)
                facts = ResponseFacts(model=self._parts.engine.model, conversation=conversation)
                facts.watch(completion)
                return facts
            raise CompletionNotFound("there is no such response, or it is not kept any more")
        session = (await self._parts.sessions.get(found[0])).session
        model = session.model or self._parts.engine.model
        return ResponseFacts(session.last_used_time, model, tenants.own(session.id))

    async def _send(
        self,
        call: Call,
        given: str,
        facts: ResponseFacts,
        events: AsyncIterator[CompletionEvent],
        *,
        after: int = -1,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends the events with numbers above `after`."""

        def write(
            status: str, output: list[dict[str, Any]], finished: Finished | None
        ) -> dict[str, Any]:
            return response_object.write(given, facts, status, output, finished)

        made = ResponseEvents(response_object.item_name(given), write)
        last = 0
        try:
            async for event in events:
                last = event.sequence
                if not call.has_begun:
                    await call.begin_stream(headers)
                for each in made.events(event):
                    if each["sequence_number"] > after:
                        await call.write(each, each["type"])
        except Exception as error:
            if call.has_begun or last:
                failure = made.failed(_error(error), last, _status(error))
                await call.write(failure, failure["type"])
            raise
        if not call.has_begun:
            await call.begin_stream(headers)
        await call.end_stream()


def _ref(call: Call) -> CompletionRef:
    request = pb.ResumeCompletionRequest(completion_id=completion_id(call.path["response_id"]))
    auditing.note_request(request)
    return CompletionRef(completion_id=scoped_id(request.completion_id))


def _place(asked: ResponseRequest, request_id: str) -> Place:
    if asked.conversation:
        return Place(asked.conversation, exists=True)
    return Place(new_conversation_id(request_id) if asked.store else "", exists=False)


async def _from_start(answer: Answer) -> AsyncIterator[CompletionEvent]:
    if answer.started:
        yield CompletionEvent(1, answer.started)
    async for event in answer.rest():
        yield event


def _whole(given: str, facts: ResponseFacts, finished: Finished) -> dict[str, Any]:
    output = written(finished.message, response_object.item_name(given))
    return response_object.write(given, facts, "", output, finished)


def _status(error: Exception) -> str:
    return "cancelled" if isinstance(error, CompletionCancelled) else "failed"


def _read_flag(query: Mapping[str, str], name: str) -> bool:
    word = query.get(name, "").lower()
    if word not in ("", "true", "1", "false", "0"):
        raise Refused(400, "invalid_request", "must be true or false", name)
    return word in ("true", "1")


def _read_number(query: Mapping[str, str], name: str) -> int:
    """Returns a number of the query, -1 for none."""
    text = query.get(name, "")
    if not text:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise Refused(400, "invalid_request", "must be a sequence_number", name)
    return int(text)


def _error(error: Exception) -> dict[str, Any]:
    told = respond_to(error).error
    return {"code": told["code"], "message": told["message"]}
