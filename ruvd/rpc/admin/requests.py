"""Validation and conversion of the requests of AdminService.

Every function raises InvalidRequest, naming every wrong field.
"""

import re
from typing import Any, NamedTuple

from google.protobuf.message import Message

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.rpc import pages
from ruvd.rpc.validation import Checker, RequestLimits

_MAX_SECONDS = 86_400
_MAX_PAGE = 1000
_DEFAULT_PAGE = 100
_MAX_TOKEN = 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_RULE = (
    "must be a file name and not a path: up to 128 letters, digits, dots, hyphens and underscores,"
    " beginning with a letter or a digit"
)
# SQLite and the copying use these names beside a file.
_RESERVED = (".part", "-wal", "-shm", "-journal", ".lock")

LEVELS: dict[pb.LogLevel.ValueType, str] = {
    pb.LOG_LEVEL_DEBUG: "debug",
    pb.LOG_LEVEL_INFO: "info",
    pb.LOG_LEVEL_WARNING: "warning",
    pb.LOG_LEVEL_ERROR: "error",
}


class LogLevelChange(NamedTuple):
    """A level, None for that of the setting, and the seconds for which it holds."""

    level: str | None
    seconds: float | None


class Page(NamedTuple):
    """A page of tenants: those that follow `after`."""

    after: str
    limit: int


def nothing(request: Message, limits: RequestLimits) -> None:
    """Checks a request without fields."""
    Checker(request, limits).raise_if_wrong()


def drain(request: pb.DrainRequest, limits: RequestLimits) -> float | None:
    """Returns the seconds to wait, or None."""
    check = Checker(request, limits)
    seconds = _seconds(check, request, "wait_timeout")
    check.raise_if_wrong()
    return seconds


def set_log_level(request: pb.SetLogLevelRequest, limits: RequestLimits) -> LogLevelChange:
    """Converts SetLogLevel."""
    check = Checker(request, limits)
    is_reset = request.level == pb.LOG_LEVEL_UNSPECIFIED
    check.check(is_reset or request.level in LEVELS, "level", "is not a known value")
    seconds = _seconds(check, request, "duration")
    if seconds is not None:
        check.check(not is_reset, "duration", "needs a level")
        check.check(seconds != 0, "duration", "must not be 0")
    check.raise_if_wrong()
    return LogLevelChange(None if is_reset else LEVELS[request.level], seconds)


def backup(request: pb.BackupRequest, limits: RequestLimits) -> str:
    """Returns the name of the file, empty for one with the time."""
    check = Checker(request, limits)
    name = request.name
    if name:
        check.check(_FILE_NAME.fullmatch(name) is not None, "name", _NAME_RULE)
        reserved = ", ".join(_RESERVED)
        check.check(not name.endswith(_RESERVED), "name", f"must not end with {reserved}")
    check.raise_if_wrong()
    return name


def list_tenants(request: pb.ListTenantsRequest, limits: RequestLimits) -> Page:
    """Converts ListTenants."""
    check = Checker(request, limits)
    size = request.page_size
    check.check(0 <= size <= _MAX_PAGE, "page_size", f"must be 0 to {_MAX_PAGE}")
    after = _after(request.page_token)
    check.check(after is not None, "page_token", "is not a next_page_token of this daemon")
    check.raise_if_wrong()
    return Page(after or "", size or _DEFAULT_PAGE)


def list_completions(request: pb.ListCompletionsRequest, limits: RequestLimits) -> int:
    """Returns the most completions to return."""
    check = Checker(request, limits)
    size = request.page_size
    check.check(0 <= size <= _MAX_PAGE, "page_size", f"must be 0 to {_MAX_PAGE}")
    check.raise_if_wrong()
    return size or _DEFAULT_PAGE


def _seconds(check: Checker, request: Any, field: str) -> float | None:
    """Returns the seconds of a duration, None if it is unset."""
    if not request.HasField(field):
        return None
    seconds = float(getattr(request, field).ToNanoseconds()) / 1e9
    check.check(0 <= seconds <= _MAX_SECONDS, field, f"must be 0 to {_MAX_SECONDS} s")
    return seconds


def _after(token: str) -> str | None:
    if not token:
        return ""
    try:
        return pages.read_token(token) or None if len(token) <= _MAX_TOKEN else None
    except ValueError:
        return None
