"""The connection of the commands that administer a daemon, and the address that they use.

Without an address they use the admin socket of the settings, which are read as `ruvd serve` reads
them. So a command that runs beside the daemon, with its variables, needs no flags.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import grpc
from cyclopts import Parameter
from ruvd_client import RuvdError
from ruvd_client.protocol import CHANNEL_OPTIONS, error_from

from ruvd.admin.v1 import admin_service_pb2_grpc as pb_grpc
from ruvd.cli.address import Address
from ruvd.cli.console import fail
from ruvd.cli.terminal import CALL_TIMEOUT_SECONDS, explain
from ruvd.config.loader import SettingsInvalid, load


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class AdminAddress(Address):
    """The address of a daemon's administration, and the credentials for it."""

    address: Annotated[
        str,
        Parameter(
            name="--admin-address",
            env_var="RUVD_ADMIN_ADDRESS",
            help="Admin socket of the daemon, unix:PATH, or an address of its API if you have a "
            "credential with the role admin. Default: the admin socket of the settings.",
            negative=(),
            show_default=False,
        ),
    ] = ""


default_admin_address = AdminAddress()


class Administrator:
    """Calls a daemon's AdminService. Every call raises RuvdError."""

    def __init__(self, channel: grpc.Channel, token: Callable[[], str] | None) -> None:
        self._stub = pb_grpc.AdminServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token()}"),) if token else ()

    def call(self, name: str, request: Any, timeout: float = CALL_TIMEOUT_SECONDS) -> Any:
        """Returns the response of a unary RPC."""
        try:
            return getattr(self._stub, name)(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from(error) from error

    def stream(self, name: str, request: Any) -> Iterator[Any]:
        """Yields the responses of a streaming RPC."""
        try:
            yield from getattr(self._stub, name)(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from(error) from error


@contextmanager
def administered(given: AdminAddress) -> Iterator[tuple[Administrator, AdminAddress]]:
    """Yields the connection and its address. A RuvdError that leaves the block ends the command."""
    try:
        address = given if given.address else replace(given, address=socket_of_settings())
        channel = channel_to(address)
        # The socket of the settings needs no token, so it gets none.
        administrator = Administrator(channel, address.token if given.address else None)
    except OSError as error:
        fail(f"cannot read {error.filename}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
    with channel:
        try:
            yield administrator, address
        except RuvdError as error:
            fail(explain_refusal(error, address))


def channel_to(address: Address) -> grpc.Channel:
    """Returns a channel to an address. Raises OSError if a file for TLS cannot be read."""
    tls = address.tls
    if tls is None:
        return grpc.insecure_channel(str(address), options=CHANNEL_OPTIONS)
    options = (*CHANNEL_OPTIONS, *tls.options())
    return grpc.secure_channel(str(address), tls.credentials(), options=options)


def socket_of_settings() -> str:
    """Returns the address of the admin socket. Raises ValueError if the settings name none."""
    try:
        socket = load({})[0].admin_socket
    except SettingsInvalid as error:
        raise ValueError(
            f"the settings do not tell the admin socket: {error}; use --admin-address"
        ) from None
    if socket is None:
        raise ValueError(
            "the settings say that there is no admin socket (admin_listen): use --admin-address"
        )
    return f"unix:{socket}"


def explain_refusal(error: RuvdError, address: Address) -> str:
    """Returns the error of a call of the service as one line, which says what to do."""
    if error.reason or error.code is not grpc.StatusCode.UNAVAILABLE or address.tls:
        return explain(error, address)
    path = Path(str(address).removeprefix("unix:"))
    if path.is_socket() and not os.access(path, os.W_OK):
        return f"{address} belongs to another user: run this as that user or as root"
    return (
        f"no daemon at {address}: if it runs with other settings than this command sees, name its"
        " admin socket with --admin-address or RUVD_ADMIN_ADDRESS"
    )
