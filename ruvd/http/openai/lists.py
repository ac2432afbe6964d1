"""The parameters of lists."""

from ruvd.http.openai.calls import Call
from ruvd.http.refusals import Refused

_DEFAULT_LIMIT = 20
_MAX_DIGITS = 9


def read_limit(call: Call, most: int, default: int = _DEFAULT_LIMIT) -> int:
    """Returns how many entries a page of a list may have. Raises Refused."""
    text = call.query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:_MAX_DIGITS]) <= most):
        raise Refused(400, "invalid_request", f"must be 1 to {most}", "limit")
    return int(text[:_MAX_DIGITS])
