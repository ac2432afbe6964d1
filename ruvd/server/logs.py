"""Logging: one line an event, human on a terminal and JSON otherwise; no message content.

Modules log through the standard library; structlog gives the lines for people their form.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import structlog

from ruvd.core.ports.events import (
    CompletionEnded,
    EngineStateChanged,
    Event,
    SessionCreated,
    SessionGone,
    StoreStateChanged,
)

_log = logging.getLogger("ruvd")
_STANDARD_FIELDS = logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys() | {"message"}
_configured = logging.INFO
_correlation: Callable[[], Mapping[str, str]] = dict


def configure(level: str, form: Literal["auto", "human", "json"]) -> None:
    """Send all logging to stderr, from `level` on."""
    # No line has them: to find them takes half of its time.
    logging._srcfile = None  # noqa: SLF001  # the switch that logging's documentation names
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    handler: logging.Handler = _JsonLines()
    if human:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_human(colors=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(level.upper())
    global _configured  # noqa: PLW0603  # as the root logger is, which this configures
    _configured = _log.level


def _human(*, colors: bool) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            _correlate,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                # The default shows local variables, and they hold what users said.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
    )


class _JsonLines(logging.Handler):
    """Lines as JSON objects on stderr, written as bytes. There is one for each completion, and this
    takes a quarter of the time that structlog's chain of processors and a text stream do."""

    def __init__(self) -> None:
        super().__init__()
        self._out = sys.stderr.buffer
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; what goes wrong is told where logging tells it."""
        try:
            self._out.write(self._line(record))
            self._out.flush()
        except Exception:  # noqa: BLE001  # as logging's own handlers have it
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_correlation(),
        }
        fields = record.__dict__.items()
        line |= {name: value for name, value in fields if name not in _STANDARD_FIELDS}
        if record.exc_info:
            line["exception"] = self._formatter.formatException(record.exc_info)
        return _encode(line) + b"\n"


def _encode(line: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(line, enc_hook=repr)
    except (ValueError, OverflowError):  # a name that is no UTF-8, a number beyond 64 bits
        return json.dumps(line, default=_plain).encode()


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def correlate_with(source: Callable[[], Mapping[str, str]]) -> None:
    """Put what `source` says, the ids of a trace and a span, into every line from now on."""
    global _correlation  # noqa: PLW0603
    _correlation = source


def toggle_debug() -> None:
    """Switch between DEBUG and the level that was configured, and say so at any level."""
    level = _configured if _log.level == logging.DEBUG else logging.DEBUG
    _log.setLevel(min(level, logging.INFO))
    _log.info("log level", extra={"log_level": logging.getLevelName(level).lower()})
    _log.setLevel(level)


def _correlate(
    _logger: Any, _method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    line.update(_correlation())
    return line


def observe(event: Event) -> None:
    """Log what happened. An Observer."""
    match event:
        case CompletionEnded():
            usage, timings = event.usage, event.timings
            first = timings.time_to_first_token_seconds
            fields = {
                "completion_id": event.completion_id,
                "session_id": event.session_id,
                "model": event.model,
                "reason": event.reason,
                "prompt_tokens": usage and usage.prompt_tokens,
                "cached_tokens": usage and usage.cached_tokens,
                "completion_tokens": usage and usage.completion_tokens,
                "queue_ms": _ms(timings.queue_seconds),
                "first_token_ms": None if first is None else _ms(first),
                "total_ms": _ms(timings.total_seconds),
                "context_trimmed": event.context_trimmed,
            }
            _log.info("completion failed" if event.failed else "completion", extra=fields)
        case EngineStateChanged(up, detail):
            _log.log(
                logging.INFO if up else logging.WARNING,
                "engine up" if up else "engine down",
                extra={"detail": detail},
            )
        case StoreStateChanged(up, detail):
            _log.log(
                logging.INFO if up else logging.ERROR,
                "store up" if up else "store down",
                extra={"detail": detail},
            )
        case SessionCreated(session_id):
            _log.debug("session created", extra={"session_id": session_id})
        case SessionGone(session_id, reason):
            _log.debug("session gone", extra={"session_id": session_id, "reason": reason})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
