"""The refusal of operations that there are none, which says what to use instead."""

import re
from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ruvd.http.openai.errors import respond_to
from ruvd.http.refusals import Refused

_SUPPORTED = "docs/openai-api.md has the operations that are supported"
_BASE_URL = "the base URL of a client ends with /v1, once"
_OTHERS = (
    "audio", "containers", "embeddings", "evals", "fine_tuning", "images", "moderations",
    "realtime", "vector_stores", "videos",
)  # fmt: skip
# Operations of OpenAI's by the beginnings of their paths, and what to use instead.
_INSTEAD = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"/v1/v1(/|$)", _BASE_URL),
        (r"/(chat|responses|conversations|models|files|batches)(/|$)", _BASE_URL),
        (r"/v1/completions$", "use /v1/chat/completions"),
        (r"/v1/chat/completions", "use /v1/responses for answers that are kept"),
        (r"/v1/responses/input_tokens$", "the usage of each response has the number of tokens"),
        (r"/v1/responses/compact$", "the daemon keeps the context window (compaction)"),
        (r"/v1/responses/[^/]+/input_items$", "its conversation has them, under /items"),
        (r"/v1/conversations$", "ListSessions over gRPC lists them"),
        (r"/v1/(assistants|threads)(/|$)", "use /v1/conversations and /v1/responses"),
        (r"/v1/uploads(/|$)", "use /v1/files"),
        (
            rf"/v1/({'|'.join(_OTHERS)})(/|$)",
            "only text is generated here; send this to the server that has the model",
        ),
    )
]


def refusal(offered: Sequence[Route]) -> Callable[[Request, HTTPException], Awaitable[Response]]:
    """Returns the handler of requests that no route takes. `offered` are those that do more."""

    async def refuse(request: Request, _: HTTPException) -> Response:
        found = [each for each in offered if each.matches(request.scope)[0] is not Match.NONE]
        allow = ", ".join(sorted({method for each in found for method in each.methods or ()}))
        path: str = request.scope["path"]
        instead = next((text for pattern, text in _INSTEAD if pattern.match(path)), _SUPPORTED)
        if allow:
            text = f"{request.method} is not supported here, only {allow}: {instead}"
            error = Refused(405, "method_not_allowed", text, "path", allow=allow)
        else:
            text = f"there is no such operation: {instead}"
            error = Refused(404, "unknown_url", text, "path")
        response = respond_to(error)
        return Response(response.body, response.status, response.headers, "application/json")

    return refuse
