"""The metadata of calls: the caller's own, the trace context, and the session."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_SESSION_KEY = "x-ruvd-session-id"
_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class CallMetadata:
    """The metadata of every call but its token: the caller's own and the current trace context."""

    def __init__(self, custom: Sequence[tuple[str, str]]) -> None:
        self._custom = tuple(custom)
        self._has_session = any(key == _SESSION_KEY for key, _ in custom)

    def metadata(self) -> Metadata:
        """Returns the metadata of a call that starts now.

        OpenTelemetry is not a dependency. A process that has not imported its API has no current
        trace, so the import is what is checked; without it, a call costs one dict lookup.
        """
        custom = self._custom
        if "opentelemetry.context" not in sys.modules:
            return custom
        from opentelemetry.propagate import inject  # noqa: PLC0415  # only where it is installed

        carrier: dict[str, str] = {}
        inject(carrier)
        # gRPC accepts only lower-case keys.
        return (*custom, *((key.lower(), value) for key, value in carrier.items()))

    def with_session(self, metadata: Metadata, session_id: str) -> Metadata:
        """Returns the metadata of a call for a session, by which proxies choose a daemon."""
        if self._has_session or not _SESSION_ID.fullmatch(session_id):
            return metadata
        return (*metadata, (_SESSION_KEY, session_id))


def session_of(request: Any) -> str:
    """Returns the session that a unary call is for, or an empty str."""
    return str(getattr(request, "session_id", ""))
