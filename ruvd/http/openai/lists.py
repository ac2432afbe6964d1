"""The parameters of lists, and their pages."""

from collections.abc import Sequence
from typing import Any, Protocol

from ruvd.http.openai.calls import Call
from ruvd.http.refusals import Refused

_DEFAULT_LIMIT = 20
_MAX_DIGITS = 9


class Listed(Protocol):
    """An entry of a list."""

    @property
    def id(self) -> str:
        """The id, by which the next page goes on."""

    def written(self) -> dict[str, Any]:
        """Returns the entry as OpenAI's API writes it."""


def page(call: Call, newest_first: Sequence[Listed], most: int, unknown: str) -> dict[str, Any]:
    """Returns the page of a list that a call asks for.

    Raises Refused, with the code `unknown` if the entry after which the page begins is not there.
    The first page again would let a client that goes through all of them go round in circles.
    """
    limit, after = read_limit(call, most), call.query.get("after", "")
    entries = newest_first if read_order(call) == "desc" else newest_first[::-1]
    ids = [each.id for each in entries]
    if after and after not in ids:
        raise Refused(404, unknown, "there is no such entry; list from the beginning", "after")
    start = ids.index(after) + 1 if after else 0
    found = entries[start : start + limit]
    written = [each.written() for each in found]
    return written_page(written, has_more=start + limit < len(entries))


def written_page(entries: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Returns a page of a list as OpenAI's API writes it."""
    return {
        "object": "list",
        "data": [*entries],
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": has_more,
    }


def read_order(call: Call) -> str:
    """Returns `asc` or `desc`. Raises Refused."""
    order = call.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Refused(400, "invalid_request", "must be asc or desc", "order")
    return order


def read_limit(call: Call, most: int, default: int = _DEFAULT_LIMIT) -> int:
    """Returns how many entries a page of a list may have. Raises Refused."""
    text = call.query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:_MAX_DIGITS]) <= most):
        raise Refused(400, "invalid_request", f"must be 1 to {most}", "limit")
    return int(text[:_MAX_DIGITS])
