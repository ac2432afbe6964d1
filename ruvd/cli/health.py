"""`ruvd health` as the full command line knows it: its help, and what is wrong with its arguments.

What it does is `quick_health`'s, which mostly runs without this.
"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.quick_health import DEFAULT_SERVICE, DEFAULT_TIMEOUT_SECONDS, report
from ruvd.cli.terminal import Address, default_address


def health(
    *,
    address: Address = default_address,
    service: Annotated[str, Parameter(help='"readiness", "liveness" or "" for the server.')] = (
        DEFAULT_SERVICE
    ),
    timeout: Annotated[float, Parameter(help="Seconds to wait for the answer.")] = (
        DEFAULT_TIMEOUT_SECONDS
    ),
) -> int:
    """Print one line; exit 0 if the service is serving, 1 if it is not or cannot be reached."""
    return report(address, service, timeout)
