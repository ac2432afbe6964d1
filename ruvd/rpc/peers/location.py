"""Finds the replica that a request is for, where its memory counts, before it is handled here.

Turns are not looked up: the store says that a session is elsewhere when a turn begins, so a call
that is at the right replica costs nothing more.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ruvd.core import ids
from ruvd.core.completions.completion import CompletionRef
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.replicas import Replica, Replicas
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenants import own
from ruvd.rpc.identity.caller import scoped_id, scoped_request_id
from ruvd.rpc.peers.directory import Directory

SERVICE = "/ruvd.v1.SessionService/"


class Location:
    """Says which replica has the session or the completion of a request."""

    def __init__(
        self,
        replicas: Replicas,
        directory: Directory,
        sessions: SessionRegistry,
        completions: CompletionRegistry,
    ) -> None:
        self._replicas = replicas
        self._directory = directory
        self._sessions = sessions
        self._completions = completions
        self._of: Mapping[str, Callable[[Any], Awaitable[Replica | None]]] = {
            f"{SERVICE}CompactSession": self._of_session,
            f"{SERVICE}GetSession": self._of_session,
            f"{SERVICE}EndSession": self._of_session,
            f"{SERVICE}ResumeCompletion": self._of_completion,
            f"{SERVICE}CancelCompletion": self._of_completion,
        }

    async def find(self, method: str, request: Any) -> Replica | None:
        """Returns the other replica that the request is for, or None if it is handled here."""
        find = self._of.get(method)
        if find is None:
            return None
        try:
            return await find(request)
        except StoreUnavailable:
            return None  # the handler says so, if it needs the store

    async def of_completion(self, completion_id: str) -> Replica | None:
        """Returns the other living replica that made a completion, or None."""
        name = ids.replica_of(own(completion_id))
        if not name or name == ids.short(self._replicas.me):
            return None
        return await self._directory.find(name)

    async def _of_session(self, request: Any) -> Replica | None:
        session_id = scoped_id(request.session_id)
        if not session_id or self._sessions.turn_queue.running(session_id):
            return None
        return await self._replicas.owner(session_id)

    async def _of_completion(self, request: Any) -> Replica | None:
        if request.completion_id:
            return await self.of_completion(request.completion_id)
        session_id = scoped_id(request.session_id)
        request_id = scoped_request_id(request.request_id)
        ref = CompletionRef(session_id=session_id, request_id=request_id)
        if not session_id or self._completions.knows(ref):
            return None
        if owner := await self._replicas.owner(session_id):
            return owner
        record = await self._sessions.idempotency_record(session_id, request_id)
        return await self.of_completion(record.completion_id) if record else None
