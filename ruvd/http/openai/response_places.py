"""The session in which a response is made.

A response that goes on from a previous one belongs into the session of that one. If it is the
session's last, and nothing runs there, the session goes on. Otherwise the conversation branches: a
fork that ends with the previous response goes on instead.
"""

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ruvd.core import ids, tenants
from ruvd.core.completions.completion import CompletionRef
from ruvd.core.sessions.commands import NewFork
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.response_object import completion_id
from ruvd.http.refusals import Refused
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import scoped_id, scoped_request_id

_CONVERSATION = "conv_"


@dataclass(frozen=True, slots=True)
class Place:
    """The session of a response by the id that its caller knows; `exists` if it must exist."""

    session_id: str
    exists: bool


def new_conversation_id(request_id: str = "") -> str:
    """Returns a random id, or always the same one for a request id of the caller's tenant.

    So a request that is repeated finds the session that its first attempt has made.
    """
    if not request_id:
        return _CONVERSATION + ids.unguessable()
    digest = hashlib.sha256(f"{caller.tenant()}\n{request_id}".encode()).digest()
    return _CONVERSATION + base64.urlsafe_b64encode(digest[:18]).decode()


class ResponsePlaces:
    """Finds the session of each response. At most one goes on in a session by its last one."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._going_on: set[str] = set()

    @asynccontextmanager
    async def after(self, previous: str, request_id: str) -> AsyncIterator[Place]:
        """Yields the session that goes on after a previous response, as long as it does.

        A repeat of a request belongs where the request id is known.
        """
        found = await self._parts.sessions.completed_in(scoped_id(completion_id(previous)))
        if found is None or found[1].finished is None:
            text = "there is no such response: it has not completed, or its session is gone"
            raise Refused(400, "previous_response_not_found", text, "previous_response_id")
        parent, count = found[0], found[1].finished.exchange_count
        if request_id and await self._is_repeat(parent, request_id):
            yield Place(tenants.own(parent), exists=True)
            return
        if parent not in self._going_on:
            # Before the look at the session, so that of two calls only one finds it unused.
            self._going_on.add(parent)
            try:
                state = await self._parts.sessions.get(parent)
                if state.session.exchange_count == count and not state.in_use:
                    yield Place(tenants.own(parent), exists=True)
                    return
            finally:
                self._going_on.discard(parent)
        new_id = tenants.scoped(caller.tenant(), new_conversation_id(request_id))
        fork = NewFork(parent, count, new_id, scoped_request_id(request_id))
        made = await self._parts.commands.fork(fork)
        yield Place(tenants.own(made.session.id), exists=True)

    async def _is_repeat(self, session_id: str, request_id: str) -> bool:
        """Whether the session has a completion of this request id, running or committed."""
        key = scoped_request_id(request_id)
        if self._parts.completions.knows(CompletionRef(session_id=session_id, request_id=key)):
            return True
        return await self._parts.sessions.idempotency_record(session_id, key) is not None
