"""`ruvd drain`: turns a daemon's readiness off, so that new calls go elsewhere.

It is for a preStop hook of Kubernetes and for people. It finds the daemon's process by its address
and sends it SIGUSR1. An RPC instead would let every client turn readiness off.
"""

import time
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter, validators

from ruvd.cli import daemon_process, health_check
from ruvd.cli.address import Address, default_address
from ruvd.cli.quick_health import explain
from ruvd.cli.terminal import fail, out

_POLL_SECONDS = 0.1
_SERVICE = "readiness"


def drain(
    *,
    address: Address = default_address,
    pid: Annotated[
        int | None,
        Parameter(help="Process id of the daemon, if its address does not tell it."),
    ] = None,
    wait: Annotated[
        float,
        Parameter(
            help="Seconds to wait, once readiness is off, until no completion runs or waits.",
            validator=validators.Number(gte=0, lte=86_400),
        ),
    ] = 0.0,
    timeout: Annotated[
        float,
        Parameter(
            help="Seconds to wait for the daemon's answers, and for readiness to be off.",
            validator=validators.Number(gt=0, lte=86_400),
        ),
    ] = 5.0,
) -> int:
    """Runs `ruvd drain`; returns its exit code."""
    try:
        _check(address, timeout)
        pid = pid or _listening_pid(address, timeout)
        daemon_process.send_drain(pid)
    except (daemon_process.ProcessUnavailable, ValueError) as error:
        fail(f"{address}: {error}")
    except health_check.HealthCheckFailed as failure:
        fail(explain(failure, str(address), _SERVICE))
    if not _poll(lambda answer: answer.state != "SERVING", address, timeout, timeout):
        fail(f"process {pid} got SIGUSR1, but is still ready after {timeout:g} s")
    out.print(f"process {pid} drains: readiness is off", markup=False)
    if not wait:
        return 0
    if not _poll(lambda answer: _running(answer) == "0", address, timeout, wait):
        fail(f"completions still run after {wait:g} s")
    out.print("no completion runs", markup=False)
    return 0


def _check(address: Address, timeout: float) -> health_check.Answer:
    answer = health_check.check(str(address), _SERVICE, timeout, address.probe_tls)
    if "ruvd-version" not in answer.metadata:
        raise daemon_process.ProcessUnavailable(
            "the listener is not a ruvd, or too old to be drained"
        )
    return answer


def _listening_pid(address: Address, timeout: float) -> int:
    with health_check.connect(str(address), timeout) as connection:
        return daemon_process.listening_pid(connection)


def _running(answer: health_check.Answer) -> str:
    return answer.metadata.get("ruvd-running", "")


def _poll(
    reached: Callable[[health_check.Answer], bool], address: Address, timeout: float, seconds: float
) -> bool:
    """Asks until `reached` holds or the daemon has ended; returns False after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if reached(_check(address, timeout)):
                return True
        except (health_check.HealthCheckFailed, daemon_process.ProcessUnavailable) as failure:
            if getattr(failure, "code", "") == "UNAVAILABLE":
                return True  # the daemon has ended, and its completions with it
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
