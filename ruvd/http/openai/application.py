"""The ASGI application of OpenAI's API: its routes, each with the RPC whose permissions it has."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ruvd.core.ports.background import StartTask
from ruvd.http.openai.batches import FileBatches
from ruvd.http.openai.calls import Call
from ruvd.http.openai.chat import ChatCompletions
from ruvd.http.openai.conversations import Conversations
from ruvd.http.openai.endpoint import Endpoint, Gate
from ruvd.http.openai.file_calls import Files
from ruvd.http.openai.files import FileStore
from ruvd.http.openai.models import Models
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.responses import Responses
from ruvd.http.openai.unknown import refusal
from ruvd.http.scopes import ASGIApp

Handle: TypeAlias = Callable[[Call], Awaitable[None]]
_JSON = "application/json"


def build(parts: Parts, gate: Gate, start_task: StartTask) -> ASGIApp:
    """Returns the application, which starts the tasks of its batches with `start_task`."""
    chat, models = ChatCompletions(parts), Models(parts)
    responses, conversations = Responses(parts), Conversations(parts)
    one, items = "/v1/conversations/{conversation}", "/v1/conversations/{conversation}/items"
    store = FileStore()
    files, batches = Files(store), FileBatches(parts, store, start_task)
    response, file, batch = (
        "/v1/responses/{response_id}", "/v1/files/{file_id}", "/v1/batches/{batch_id}",
    )  # fmt: skip
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
        ("POST", "/v1/files", "BatchComplete", files.create),
        ("GET", "/v1/files", "BatchComplete", files.list),
        ("GET", file, "BatchComplete", files.retrieve),
        ("DELETE", file, "BatchComplete", files.delete),
        ("GET", f"{file}/content", "BatchComplete", files.content),
        ("POST", "/v1/batches", "BatchComplete", batches.create),
        ("GET", "/v1/batches", "BatchComplete", batches.list),
        ("GET", batch, "BatchComplete", batches.retrieve),
        ("POST", f"{batch}/cancel", "BatchComplete", batches.cancel),
    ]
    routes, offered = [], []
    for method, path, rpc, handle in table:
        name = f"{method} {path.replace(':path', '')}"
        endpoint = Endpoint(gate, name, rpc, handle, takes=_takes(method, path))
        routes.append(Route(path, endpoint, methods=[method]))
        if handle not in (responses.delete, conversations.delete_item):  # they only refuse
            offered.append(routes[-1])
    handlers: dict[Any, Any] = {HTTPException: refusal(offered)}
    return Starlette(routes=routes, exception_handlers=handlers)


def _takes(method: str, path: str) -> str:
    if path == "/v1/files" and method == "POST":
        return "multipart/form-data"
    return _JSON if method == "POST" and not path.endswith("/cancel") else ""
