"""The console's application: which page is at which path, and who may see it.

It is read-only. Every page asks for the permission that the same read needs over gRPC.
"""

import asyncio
import logging
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ruvd.core.completions.activity import Activity
from ruvd.core.errors import (
    DataCorrupted,
    IdentityUnavailable,
    Overloaded,
    PermissionDenied,
    RuvdError,
    SessionNotFound,
    SessionsDisabled,
    StoreUnavailable,
    Unauthenticated,
)
from ruvd.http.console import views
from ruvd.http.console.credentials import with_passwords
from ruvd.http.console.files import static_files
from ruvd.http.console.gate import Gate, Page
from ruvd.http.console.protection import protected
from ruvd.http.console.rendering import Pages
from ruvd.http.console.sources import Sources
from ruvd.http.scopes import ASGIApp
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import scoped_id

_log = logging.getLogger("ruvd.console")
_SESSIONS_OF_PAGE = 1000
_EXCHANGES_OF_PAGE = 20
# Pages that are rendered at once; others wait.
_RENDERINGS = 2
_STATUSES: dict[type[Exception], tuple[int, str]] = {
    Unauthenticated: (401, "No identity"),
    PermissionDenied: (403, "Not allowed"),
    SessionNotFound: (404, "No such session"),
    SessionsDisabled: (404, "No sessions"),
    DataCorrupted: (500, "Damaged data"),
    StoreUnavailable: (503, "The store is down"),
    IdentityUnavailable: (503, "Identities cannot be checked"),
    Overloaded: (503, "Overloaded"),
}


class Console:
    """The pages."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._sources = sources
        self._pages = pages
        self._renderings = asyncio.Semaphore(_RENDERINGS)

    def routes(self, gate: Gate) -> list[Route]:
        """Returns the paths, each with the RPC whose permission it needs."""
        return [
            gate.recorded("/", "ListSessions", self._list),
            gate.recorded("/sessions/{session_id}", "GetSession", self._show),
            gate.route("/sessions/{session_id}/live", "GetSession", self._show_live),
            gate.route("/live", "ListSessions", self._live("live.html")),
            gate.route("/live/rows", "ListSessions", self._live("live_rows.html")),
            gate.route("/health", "GetServerInfo", self._health("health.html")),
            gate.route("/health/facts", "GetServerInfo", self._health("health_facts.html")),
            *(gate.route(path, "GetServerInfo", file) for path, file in static_files().items()),
            gate.route("/{other:path}", "GetServerInfo", self._missing),
        ]

    async def error(self, _request: Request, error: Exception) -> Response:
        """Returns the page of an error. A bug is logged, and the page tells no detail of it."""
        for kind in type(error).__mro__:
            if kind in _STATUSES:
                status, title = _STATUSES[kind]
                return await self._error_page(status, title, str(error))
        if isinstance(error, RuvdError):
            return await self._error_page(400, "Not possible", str(error))
        _log.error("a page of the console failed", exc_info=error)
        return await self._error_page(500, "A fault of ruvd", "The daemon's log has the details.")

    async def _missing(self, _request: Request) -> Response:
        return await self._error_page(404, "No such page", "There is nothing at this address.")

    async def _list(self, request: Request) -> Response:
        after = _number(request, "after") or 0
        states, cursor = await self._sources.sessions.list(
            after=after, limit=_SESSIONS_OF_PAGE, labels={}, tenant=caller.tenant()
        )
        by_use = sorted(states, key=lambda each: each.session.last_used_time, reverse=True)
        values = {"states": by_use, "next": cursor, "after": after, "here": "sessions"}
        return await self._response("sessions.html", values)

    async def _show(self, request: Request) -> Response:
        session_id = scoped_id(request.path_params["session_id"])
        first = _number(request, "first")
        page = await self._sources.turns.page(session_id, first, _EXCHANGES_OF_PAGE)
        values = {
            "page": page,
            "size": _EXCHANGES_OF_PAGE,
            "longest": views.longest_seconds(page),
            "rows": views.running_in(self._sources.activity, session_id),
            "grown": False,
            "here": "sessions",
        }
        return await self._response("session.html", values)

    async def _show_live(self, request: Request) -> Response:
        session_id = scoped_id(request.path_params["session_id"])
        state = await self._sources.sessions.get(session_id)
        shown = _number(request, "exchanges") or 0
        values = {
            "rows": views.running_in(self._sources.activity, session_id),
            "grown": state.session.exchange_count > shown,
        }
        return await self._response("session_live.html", values)

    def _live(self, template: str) -> Page:
        async def page(_request: Request) -> Response:
            activity = self._sources.activity
            rows = views.running(activity)
            values = {"rows": rows, **_activity(activity), "here": "live"}
            return await self._response(template, values)

        return page

    def _health(self, template: str) -> Page:
        async def page(_request: Request) -> Response:
            sources, identity = self._sources, caller.current.get()
            tenant = identity.tenant if identity else None
            try:
                counts = await sources.sessions.counts(tenant)
            except StoreUnavailable:  # observed; the page says so
                counts = None
            all_sums = sources.statistics.all
            values = {
                "process": sources.process,
                "model": sources.engine.model,
                "counts": counts,
                "sums": all_sums if tenant is None else sources.statistics.of(tenant),
                "all": all_sums,
                **_activity(sources.activity),
                "here": "health",
            }
            return await self._response(template, values)

        return page

    async def _error_page(self, status: int, title: str, text: str) -> Response:
        values = {"title": title, "text": text, "here": ""}
        return await self._response("error.html", values, status)

    async def _response(self, template: str, values: dict[str, Any], status: int = 200) -> Response:
        identity, clock = caller.current.get(), self._sources.clock
        shift = clock.wall_shift()
        common = {
            "now": clock.now() + shift,
            "shift": shift,
            "operator": views.is_operator(),
            "has_identity": identity is not None,
            "sees_content": caller.sees_content(),
            "who": f"{identity.name}, {identity.role.value} of {identity.tenant}"
            if identity
            else "",
        }
        async with self._renderings:
            text = await asyncio.to_thread(self._pages.render, template, common | values)
        return HTMLResponse(text, status)


def _activity(activity: Activity) -> dict[str, Any]:
    return {"total": activity.total, "waiting": activity.waiting}


def _number(request: Request, name: str) -> int | None:
    """Returns a number of the query, None if there is none that can be used."""
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def build(sources: Sources, gate: Gate) -> ASGIApp:
    """Builds the application. Reads files."""
    console = Console(sources, Pages())
    application = Starlette(
        routes=console.routes(gate),
        exception_handlers={RuvdError: console.error, 500: console.error},
    )
    return with_passwords(protected(application))
