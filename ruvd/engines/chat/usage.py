"""The token counts and timings of an answer. They are statistics: a wrong one is unknown.

Servers send counts as numbers, floats or texts, and some send nonsense. Nothing here fails.
"""

import math
from collections.abc import Mapping
from typing import Any

from ruvd.core.model import Usage

# More is no count of tokens. Sums of such counts stay below 2^63, the limit of stores and clients.
_MAX_TOKENS = 10**12
_MAX_PREFILL_SECONDS = 86_400.0
_NOTHING: Mapping[str, Any] = {}


def usage_counts(usage: Mapping[str, Any], timings: Mapping[str, Any] | None) -> Usage | None:
    """Returns the counts, or None if the prompt's are not known.

    The fields are OpenAI's, one of DeepSeek's, one of Moonshot's and one of llama.cpp's timings.
    """
    prompt = _tokens(usage.get("prompt_tokens"))
    if prompt is None:
        return None
    details = usage.get("prompt_tokens_details")
    counts = map(
        _tokens,
        (
            details.get("cached_tokens") if isinstance(details, dict) else None,
            (timings or _NOTHING).get("cache_n"),
            usage.get("prompt_cache_hit_tokens"),
            usage.get("cached_tokens"),
        ),
    )
    cached = next((count for count in counts if count is not None and count <= prompt), None)
    return Usage(prompt, cached, _tokens(usage.get("completion_tokens")) or 0)


def prefill_seconds(timings: Mapping[str, Any] | None) -> float | None:
    """Returns the time of the prompt's evaluation by llama.cpp's timings, None if unknown."""
    number = _number((timings or _NOTHING).get("prompt_ms"))
    seconds = None if number is None else number / 1000
    return None if seconds is None or not 0 <= seconds <= _MAX_PREFILL_SECONDS else seconds


def _tokens(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not 0 <= number <= _MAX_TOKENS else int(number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
