"""The templates of the pages, and how they write times, figures and ids.

All text is escaped. The templates are compiled when the console is built, so that no page reads a
file.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ruvd.core.model import Finished, Usage
from ruvd.core.tenants import own
from ruvd.http.console import views

_FOLDER = Path(__file__).parent
STATIC = _FOLDER / "static"
_UNKNOWN = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Pages:
    """Renders templates by their names. Reads files when it is made, and only then."""

    def __init__(self) -> None:
        environment = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            auto_reload=False,
        )
        environment.filters.update(
            ago=ago,
            cached=cached,
            clipped=views.clipped,
            count=count,
            evaluated=evaluated,
            labels=views.labels,
            lasting=lasting,
            mebibytes=mebibytes,
            own=own,
            rate=rate,
            seconds=seconds,
            segments=views.segments,
            texts=views.texts,
            time=time,
            until=until,
        )
        names = environment.list_templates()
        self._templates = {name: environment.get_template(name) for name in names}

    def render(self, name: str, values: dict[str, Any]) -> str:
        """Returns a page. Takes some milliseconds for each hundred rows, so call it in a thread."""
        return self._templates[name].render(values)


def count(number: int) -> str:
    """Writes a number with separators."""
    return f"{number:,}"


def seconds(value: float) -> str:
    """Writes a duration."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def mebibytes(size_bytes: int) -> str:
    """Writes a size in mebibytes."""
    return f"{size_bytes / (1 << 20):,.0f}"


def time(moment: float) -> str:
    """Writes a time of the wall clock, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(moment: float, now: float) -> str:
    """Writes how long a time is past."""
    return f"{_span(max(0.0, now - moment))} ago"


def lasting(since: float, now: float) -> str:
    """Writes how long something has held."""
    return f"for {_span(max(0.0, now - since))}"


def until(moment: float, now: float) -> str:
    """Writes how long a time is ahead."""
    return f"in {_span(moment - now)}" if moment > now else "expired"


def cached(usage: Usage) -> str:
    """Writes the cached tokens and their share; a dash if the engine does not report them."""
    if usage.cached_tokens is None:
        return _UNKNOWN
    if not usage.prompt_tokens:
        return count(usage.cached_tokens)
    return f"{usage.cached_tokens:,} ({usage.cached_tokens / usage.prompt_tokens:.0%})"


def evaluated(usage: Usage) -> str:
    """Writes the tokens of prompts that were not cached; a dash if that is not known."""
    if usage.cached_tokens is None:
        return _UNKNOWN
    return count(usage.prompt_tokens - usage.cached_tokens)


def rate(finished: Finished) -> str:
    """Writes the tokens a second after the first one, if there are any."""
    timings = finished.timings
    first, total = timings.time_to_first_token_seconds, timings.total_seconds
    if finished.usage is None or first is None or total <= first:
        return ""
    after_first = finished.usage.completion_tokens - 1
    return f", {after_first / (total - first):.1f} a second" if after_first > 0 else ""


def _span(span: float) -> str:
    if span < _MINUTE:
        return f"{span:.0f} s"
    if span < _HOUR:
        return f"{span / _MINUTE:.0f} min"
    if span < _DAY:
        return f"{span / _HOUR:.1f} h"
    return f"{span / _DAY:.1f} days"
