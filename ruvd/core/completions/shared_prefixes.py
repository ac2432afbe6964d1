"""Groups the requests of a batch whose prompts begin alike. Pure.

Requests that share a long beginning (a system prompt, a document) are best run together: the
engine evaluates it once, and the other requests start from it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict

from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.sessions import idempotency
from ruvd.core.text import common_beginning

# About 250 tokens: to evaluate a shorter beginning is faster than to share it.
_MIN_SHARED_CHARACTERS = 1000


def beginning(request: CompletionRequest) -> str:
    """Returns the text of a request's prompt, in the order in which it is evaluated."""
    options = request.options
    tools = [asdict(tool) for tool in options.tools]
    digest = idempotency.digest("tools", tools).hex() if tools else ""
    head = f"{request.tenant}\0{options.model}\0{digest}\0"
    parts = [head, f"system\0{request.system_prompt}\0" if request.system_prompt else ""]
    parts += [f"{message.role.value}\0{message.content}\0" for message in request.messages]
    return "".join(parts)


def group(texts: Mapping[int, str]) -> dict[int, str]:
    """Returns a key of the shared beginning for each index whose text shares one with another.

    Sorted texts share the most with their neighbours. A group ends where the next text would
    leave the group less than half of its shared beginning.
    """
    keys: dict[int, str] = {}
    order = sorted(texts, key=lambda index: texts[index])
    members: list[int] = order[:1]
    shared = 0
    for index in order[1:]:
        common = common_beginning(texts[members[-1]], texts[index])
        if common >= _MIN_SHARED_CHARACTERS and (len(members) == 1 or common * 2 >= shared):
            shared = min(common, shared) if len(members) > 1 else common
            members.append(index)
            continue
        keys |= _keyed(members, texts, shared)
        members, shared = [index], 0
    return keys | _keyed(members, texts, shared)


def _keyed(members: list[int], texts: Mapping[int, str], shared: int) -> dict[int, str]:
    if len(members) < 2:  # a group of one shares nothing
        return {}
    text = texts[members[0]][:shared]
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return dict.fromkeys(members, key)
