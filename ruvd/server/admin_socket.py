"""The admin socket, which only the user who runs the daemon can open."""

import asyncio
import logging
from contextlib import AsyncExitStack

import grpc

from ruvd.config.addresses import check_listen
from ruvd.config.loader import Settings
from ruvd.server.grpc_servers import GrpcServers
from ruvd.server.unix_socket import AddressUnavailable, SocketClaim, socket_mode

_DIRECTORY_MODE, _SOCKET_MODE = 0o700, 0o600

_log = logging.getLogger("ruvd.daemon")


async def listen(
    factory: GrpcServers, settings: Settings, stack: AsyncExitStack
) -> list[grpc.aio.Server]:
    """Binds the admin socket that the settings name; returns its server, or nothing without one.

    The default socket may be taken, for example by another daemon with a store in memory. That is
    logged, and the daemon starts without one. Raises AddressUnavailable for a socket that
    admin_listen names.
    """
    path = settings.admin_socket
    if path is None:
        return []
    address, server = f"unix:{path}", factory.for_admin_socket()
    try:
        check_listen(address)
        claim = await asyncio.to_thread(SocketClaim, path, _DIRECTORY_MODE)
        stack.push_async_callback(asyncio.to_thread, claim.release)
        with socket_mode(_SOCKET_MODE):
            server.add_insecure_port(f"unix:{claim.path}")
    except (AddressUnavailable, RuntimeError, OSError, ValueError) as error:
        if not settings.admin_socket_is_default:
            raise AddressUnavailable(f"cannot listen at {address}: {error}") from None
        _log.warning(
            "no admin socket",
            extra={"reason": str(error), "remedy": "name another one with admin_listen"},
        )
        return []
    _log.info("serving administration", extra={"address": address})
    return [server]
