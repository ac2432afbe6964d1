"""`ruvd health` in the full command line: its help, and the errors of its arguments.

`quick_health` runs the check, mostly without this module.
"""

from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.address import Address, default_address
from ruvd.cli.quick_health import DEFAULT_SERVICE, DEFAULT_TIMEOUT_SECONDS, report


def health(
    *,
    address: Address = default_address,
    service: Annotated[
        str, Parameter(help='Service: "readiness", "liveness", or "" for the server.')
    ] = (DEFAULT_SERVICE),
    timeout: Annotated[float, Parameter(help="Seconds to wait for the answer.")] = (
        DEFAULT_TIMEOUT_SECONDS
    ),
) -> int:
    """Runs `ruvd health`; returns its exit code."""
    return report(str(address), service, timeout, address.probe_tls)
