"""The style sheet, the script and the icon, which are read once."""

from starlette.requests import Request
from starlette.responses import Response

from ruvd.http.console.gate import Page
from ruvd.http.console.rendering import STATIC

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def static_files() -> dict[str, Page]:
    """Returns the files by their paths. Reads them."""
    return {
        f"/static/{path.name}": _page(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(STATIC.iterdir())
        if path.suffix in _TYPES
    }


def _page(content: bytes, media_type: str) -> Page:
    async def file(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return file
