"""The check of who calls over HTTP, by the same credentials as over gRPC."""

from collections.abc import Callable

from ruvd.core.errors import RuvdError
from ruvd.http import scopes
from ruvd.http.scopes import ASGIApp, Receive, Scope, Send
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.authenticator import Authenticator


async def admit(callers: Authenticator | None, method: str, scope: Scope) -> None:
    """Makes the caller the current one, if the daemon asks for identities.

    `method` is the RPC whose permissions the request needs, `/ruvd.v1.SessionService/Complete`.
    Raises Unauthenticated, IdentityUnavailable and PermissionDenied.
    """
    caller.current.set(None)
    if callers is None:
        return
    await callers.admit(method, scopes.headers(scope))
    if callers.certificates is not None:
        callers.admit_call(method, scopes.auth_context(scope))


class IdentityMiddleware:
    """Lets a request through to an application if its caller may make it.

    `method_of` returns the RPC whose permissions a request needs. `refuse` returns the application
    that answers with an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        callers: Authenticator | None,
        method_of: Callable[[Scope], str],
        refuse: Callable[[RuvdError], ASGIApp],
    ) -> None:
        self._app = app
        self._callers = callers
        self._method_of = method_of
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks the caller, and handles the request."""
        try:
            await admit(self._callers, self._method_of(scope), scope)
        except RuvdError as error:
            await self._refuse(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
