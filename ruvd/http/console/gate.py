"""The steps before a page: the caller is identified, and its look at content is recorded.

They are those of a call over gRPC: the same identities, permissions and audit log.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ruvd.http import identity, measurement, scopes
from ruvd.http.scopes import Scope
from ruvd.rpc import auditing
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.ports import CallAudit
from ruvd.v1 import session_service_pb2 as pb

Page: TypeAlias = Callable[[Request], Awaitable[Response]]

_SERVICE = "/ruvd.v1.SessionService/"


class Gate:
    """Makes routes to pages. `check_memory` raises Overloaded while memory is nearly used up."""

    def __init__(
        self,
        callers: Authenticator | None,
        audit: CallAudit | None,
        check_memory: Callable[[], None],
    ) -> None:
        self._callers = callers
        self._audit = audit
        self._check_memory = check_memory

    def route(self, path: str, rpc: str, page: Page) -> Route:
        """Returns the route to a page that needs the permission for an RPC."""

        async def checked(request: Request) -> Response:
            if ":path" not in path:  # which is every other path
                measurement.note_route(request.scope, path)
            await identity.admit(self._callers, f"{_SERVICE}{rpc}", request.scope)
            return await page(request)

        return Route(path, checked)

    def recorded(self, path: str, rpc: str, page: Page) -> Route:
        """Returns the same for a page with much content, which has a record in the audit log.

        It needs memory. The parts of pages that a browser fetches every second have no record.
        """
        inner = self.route(path, rpc, page).endpoint

        async def admitted(request: Request) -> Response:
            session_id = request.path_params.get("session_id", "")
            auditing.note_request(pb.GetSessionRequest(session_id=session_id))
            self._check_memory()
            response: Response = await inner(request)
            return response

        async def audited(request: Request) -> Response:
            if self._audit is None:
                return await admitted(request)

            async def handle(_request: Any, _call: Any) -> Response:
                return await admitted(request)

            name = f"/HTTP GET {path}"
            context: Any = _Call(request.scope)
            response: Response = await self._audit.outcome(name, handle)(None, context)
            return response

        return Route(path, audited)


class _Call:
    """A request as the audit log asks about it."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def peer(self) -> str:
        """Returns the client's address."""
        return scopes.peer(self._scope)

    def time_remaining(self) -> float | None:
        """Returns None, as HTTP has no deadline."""
        return None
