"""The metadata of a call: the caller's own, and the trace that it is part of.

OpenTelemetry is not a dependency. A process that has not imported its API has no trace to go on
with, so that is what is looked at, and a call without it costs one look into a dict.
"""

from __future__ import annotations

import sys
from typing import TypeAlias

Metadata: TypeAlias = tuple[tuple[str, str], ...]


def with_trace(metadata: Metadata) -> Metadata:
    """The metadata and, where there is a trace, its `traceparent` by the process's propagators."""
    if "opentelemetry.context" not in sys.modules:
        return metadata
    from opentelemetry.propagate import inject  # noqa: PLC0415  # only where it is installed

    carrier: dict[str, str] = {}
    inject(carrier)
    # gRPC takes keys in lower case only.
    return (*metadata, *((key.lower(), value) for key, value in carrier.items()))
