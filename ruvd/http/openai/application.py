"""The ASGI application of OpenAI's API: its routes, each with the RPC whose permissions it has."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ruvd.http.openai.calls import Call
from ruvd.http.openai.chat import ChatCompletions
from ruvd.http.openai.conversations import Conversations
from ruvd.http.openai.endpoint import Endpoint, Gate
from ruvd.http.openai.errors import respond_to
from ruvd.http.openai.models import Models
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.responses import Responses
from ruvd.http.refusals import Refused
from ruvd.http.scopes import ASGIApp

Handle: TypeAlias = Callable[[Call], Awaitable[None]]
_JSON = "application/json"
_TEXTS = {
    404: "there is no such operation: docs/openai-api.md has those that are supported",
    405: "the operation has another method",
}


def build(parts: Parts, gate: Gate) -> ASGIApp:
    """Returns the application."""
    chat, models = ChatCompletions(parts), Models(parts)
    responses, conversations = Responses(parts), Conversations(parts)
    one, items = "/v1/conversations/{conversation}", "/v1/conversations/{conversation}/items"
    response = "/v1/responses/{response_id}"
    table: list[tuple[str, str, str, Handle]] = [
        ("POST", "/v1/chat/completions", "Complete", chat.create),
        ("GET", "/v1/models", "ListModels", models.list),
        ("GET", "/v1/models/{model:path}", "ListModels", models.retrieve),
        ("POST", "/v1/responses", "Complete", responses.create),
        ("GET", response, "ResumeCompletion", responses.retrieve),
        ("DELETE", response, "ResumeCompletion", responses.delete),
        ("POST", f"{response}/cancel", "CancelCompletion", responses.cancel),
        ("POST", "/v1/conversations", "CreateSession", conversations.create),
        ("GET", one, "GetSession", conversations.retrieve),
        ("POST", one, "UpdateSession", conversations.update),
        ("DELETE", one, "EndSession", conversations.delete),
        ("GET", items, "GetSession", conversations.list_items),
        ("POST", items, "AppendMessages", conversations.create_items),
        ("GET", f"{items}/{{item_id}}", "GetSession", conversations.retrieve_item),
        ("DELETE", f"{items}/{{item_id}}", "UpdateSession", conversations.delete_item),
    ]
    routes = [
        Route(path, Endpoint(gate, rpc, handle, takes=_takes(method, path)), methods=[method])
        for method, path, rpc, handle in table
    ]
    handlers: dict[Any, Any] = {HTTPException: _unknown}
    return Starlette(routes=routes, exception_handlers=handlers)


def _takes(method: str, path: str) -> str:
    return _JSON if method == "POST" and not path.endswith("/cancel") else ""


async def _unknown(_: Request, error: HTTPException) -> Response:
    text = _TEXTS.get(error.status_code, error.detail)
    code = "unknown_url" if error.status_code == 404 else "method_not_allowed"
    response = respond_to(Refused(error.status_code, code, text, "path"))
    headers = {**response.headers, **(error.headers or {})}
    return Response(response.body, response.status, headers, _JSON)
