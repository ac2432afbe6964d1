"""The set-up of logging: one line for each event, readable on a terminal and JSON otherwise.

All modules log through the standard library. Log lines hold no message content.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

_log = logging.getLogger("ruvd")
_STANDARD_FIELDS = logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys() | {"message"}
_COLORS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33"}  # errors are red
_correlation: Callable[[], Mapping[str, str]] = dict
# The name of grpcio's error of a message that is sent to a caller who has gone; it is private.
_CALL_HAS_GONE = "ExecuteBatchError"


def configure(level: str, form: Literal["auto", "human", "json"]) -> None:
    """Sends all log output to stderr. `level` is the lowest level of our own lines."""
    # No line has these fields, and collecting them takes half of the time of a line.
    logging._srcfile = None  # noqa: SLF001  # the switch that logging's documentation names
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler: logging.Handler = _JsonHandler()
    if form == "human" or (form == "auto" and sys.stderr.isatty()):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ConsoleFormatter(colors=sys.stderr.isatty()))
    handler.addFilter(_is_no_lost_caller)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(level.upper())


def _is_no_lost_caller(record: logging.LogRecord) -> bool:
    """Drops grpcio's tracebacks for responses to callers who have gone: any caller can cause them
    by the thousand."""
    return not (record.exc_info and getattr(record.exc_info[0], "__name__", "") == _CALL_HAS_GONE)


def correlate_with(source: Callable[[], Mapping[str, str]]) -> None:
    """Adds the fields that `source` returns, such as trace ids, to every line from now on."""
    global _correlation  # noqa: PLW0603
    _correlation = source


class _ConsoleFormatter(logging.Formatter):
    """Lines for people: time, level, message, logger and fields. Tracebacks have no variables,
    because those may hold message content."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level = f"{record.levelname.lower():<8}"
        if self._colors:
            level = f"\x1b[{_COLORS.get(record.levelno, '31')}m{level}\x1b[0m"
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        line = f"{time} {level} {record.getMessage()} [{record.name}]{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonHandler(logging.Handler):
    """Writes lines as JSON objects to stderr, as bytes.

    There is one line for each completion. This takes a quarter of the time of a chain of
    structlog's processors and a text stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self._out = sys.stderr.buffer
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line. A failure is reported in the way of the standard library."""
        try:
            self._out.write(self._line(record))
            self._out.flush()
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self._formatter.formatException(record.exc_info)
        return _encode(line) + b"\n"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Returns the trace ids and the `extra` fields of a record."""
    fields: dict[str, object] = {**_correlation()}
    attributes = record.__dict__.items()
    fields |= {name: value for name, value in attributes if name not in _STANDARD_FIELDS}
    return fields


def _word(value: object) -> str:
    """Returns a value as one word, quoted if it has spaces or control characters."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)


def _encode(line: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(line, enc_hook=repr)
    except (ValueError, OverflowError):  # a string that is no UTF-8, a number beyond 64 bits
        return json.dumps(line, default=_text).encode()


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)
