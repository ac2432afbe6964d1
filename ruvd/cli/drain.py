"""`ruvd drain`: turns a daemon's readiness off, so that new calls go elsewhere, or on again.

It is for a preStop hook of Kubernetes and for people. It calls the daemon's admin socket, so it
works from every container and PID namespace that has the socket's file.
"""

from typing import Annotated

import grpc
from cyclopts import Parameter, validators
from google.protobuf.duration_pb2 import Duration
from ruvd_client import RuvdError

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.cli.administration import (
    AdminAddress,
    Administrator,
    administered,
    default_admin_address,
)
from ruvd.cli.console import fail, out, print_error

_USAGE = 2


def drain(
    *,
    undo: Annotated[
        bool, Parameter(negative=(), help="Take calls again, after an earlier drain.")
    ] = False,
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
            help="Seconds to wait for each answer of the daemon.",
            validator=validators.Number(gt=0, lte=86_400),
        ),
    ] = 5.0,
    address: AdminAddress = default_admin_address,
) -> int:
    """Runs `ruvd drain`; returns its exit code."""
    if undo and wait:
        print_error("--undo does not wait: leave --wait out")
        return _USAGE
    with administered(address) as (administrator, at):
        if undo:
            _undrain(administrator, at, timeout)
            return 0
        administrator.call("Drain", pb.DrainRequest(), timeout)
        out.print(f"{at} drains: readiness is off", markup=False)
        if wait:
            _wait(administrator, wait, timeout)
    return 0


def _undrain(administrator: Administrator, at: AdminAddress, timeout: float) -> None:
    status = administrator.call("Undrain", pb.UndrainRequest(), timeout).status
    why = "" if status.ready else ", and is ready once its store and its engine are up"
    out.print(f"{at} takes calls again{why}", markup=False)


def _wait(administrator: Administrator, seconds: float, timeout: float) -> None:
    """Returns when no completion runs, or when the daemon has ended, or ends the command."""
    limit = Duration()
    limit.FromNanoseconds(int(seconds * 1e9))
    try:
        request = pb.DrainRequest(wait_timeout=limit)
        status = administrator.call("Drain", request, seconds + timeout).status
    except RuvdError as error:
        if error.reason or error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        out.print("the daemon has ended", markup=False)
        return
    if status.running_completions:
        fail(f"completions still run after {seconds:g} s")
    out.print("no completion runs", markup=False)
