"""`ruvd health`: the probe for containers and scripts, over grpc.health.v1."""

from __future__ import annotations

from typing import Annotated, Any

import grpc
from cyclopts import Parameter
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ruvd_client import RuvdError
from ruvd_client.protocol import CHANNEL_OPTIONS, error_from

from ruvd.cli.terminal import Address, default_address, explain, out


def health(
    *,
    address: Address = default_address,
    service: Annotated[str, Parameter(help='"readiness", "liveness" or "" for the server.')] = (
        "readiness"
    ),
    timeout: Annotated[float, Parameter(help="Seconds to wait for the answer.")] = 2.0,
) -> int:
    """Print one line; exit 0 if the service is serving, 1 if it is not or cannot be reached."""
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types leave the methods out
        try:
            response = stub.Check(request, timeout=timeout)
        except grpc.RpcError as error:
            out.print(_failure(error_from(error), address, service), markup=False)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    out.print(f"{service or 'server'}: {status}", markup=False)
    return 0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1


def _failure(error: RuvdError, address: str, service: str) -> str:
    if error.code is grpc.StatusCode.NOT_FOUND:
        return f"{service}: no such service at {address}"
    return explain(error, address)
