"""The contracts between the interceptor of RPCs and the parts that it asks about each call."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from grpc.aio import ServicerContext

Context: TypeAlias = "ServicerContext[Any, Any]"
# The handler of a streaming RPC writes its messages to the context and returns None.
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class Receiver(Protocol):
    """The receiver of the answer to a call that is forwarded, mostly the call's own context."""

    def time_remaining(self) -> float | None:
        """Returns the seconds until the deadline, or None without one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns the metadata with which the call came."""

    async def write(self, message: Any) -> None:
        """Takes a message of a stream."""


class Outcome(Protocol):
    """The outcome of one RPC: `code` is the name of its gRPC status."""

    code: str


class RpcMeasurements(Protocol):
    """Measures every RPC; `records` says whether it records spans, which have the peer."""

    @property
    def records(self) -> bool:
        """Whether spans are recorded."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str
    ) -> AbstractContextManager[Outcome]:
        """Measure the RPC `method` (`/package.Service/Method`) while the context lasts."""

    def trace_headers(self) -> Mapping[str, str]:
        """Returns the headers by which a call to another replica continues the current trace."""


class Receiving(Protocol):
    """A request that is being received."""

    def end(self) -> None:
        """Says that the request has been received, or never will be."""


class Admission(Protocol):
    """Decides whether there is memory for a call."""

    async def receive(self, tenant: str = "") -> Receiving:
        """Waits until a request may be received; an empty `tenant` is unknown.

        Raises Overloaded if there is no memory, and QuotaExceeded if other requests of the tenant
        come too slowly.
        """

    def receiving(self, tenant: str) -> int:
        """Returns the number of requests of a tenant that are being received."""

    def reserve(self, request_bytes: int) -> AbstractContextManager[Callable[[], None]]:
        """Holds the memory of a large request, and gives what releases it earlier.

        Raises Overloaded if there is too little.
        """


class CallerCheck(Protocol):
    """Decides who calls and whether that caller may.

    `admit` is called before the request is received. `admit_call` follows, before the request is
    handled, if certificates say who calls, because gRPC gives them only then. Both raise RuvdError.
    """

    @property
    def certificates(self) -> object | None:
        """Whether certificates may say who calls: not None if so."""

    async def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Checks a call by its metadata."""

    def admit_call(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Checks a call by its connection's certificate, too."""


class CallAudit(Protocol):
    """Records who called what, and how each call ended."""

    def outcome(self, method: str, handle: Handler) -> Handler:
        """Wraps a handler that raises the call's error."""

    def messages(self, handle: Handler) -> Handler:
        """Wraps a handler of parsed requests."""


class CallRouter(Protocol):
    """Forwards calls to the replica that has their session or completion."""

    def routes(self, method: str) -> bool:
        """Whether calls of the method may be forwarded."""

    def located(self, method: str, handle: Handler) -> Handler:
        """Wraps a handler of parsed requests: it finds the replica that a request is for."""

    def routed(self, method: str, handle: Handler, *, streams: bool) -> Handler:
        """Wraps a handler of bytes: a call that is for another replica is forwarded as it is."""
