"""The daemon's health over grpc.health.v1.

grpcio's own servicer is not used for two reasons. A watcher that does not read blocks its `set`,
and with it the shutdown of the daemon. Of two watchers of a name the second is forgotten when the
first leaves. Here a state is a plain assignment, and every watcher follows at its own pace.

Each response has the daemon's version (`ruvd-version`) and the number of completions
(`ruvd-running`) in its metadata.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ruvd.core.errors import ShuttingDown
from ruvd.core.ports.events import EngineStateChanged, Event, StoreStateChanged
from ruvd.rpc.component_state import ComponentState
from ruvd.v1 import session_service_pb2

SERVICE = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context: TypeAlias = "ServicerContext[Any, Any]"


class Health(health_pb2_grpc.HealthServicer):
    """The servicer of grpc.health.v1.Health. `running` returns how many completions run or wait."""

    def __init__(self, version: str, running: Callable[[], int] = lambda: 0) -> None:
        self._version = version
        self.running = running
        self._states: dict[str, int] = {}
        self._changed = asyncio.Event()

    def set(self, name: str, state: int) -> None:
        """Changes the state of a service name, and wakes its watchers."""
        self._states[name] = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802  # gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns the state of a service name, or NOT_FOUND if the name is unknown."""
        await context.send_initial_metadata(self._metadata())
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(  # noqa: N802  # gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Writes the state of a service name now, and again whenever it has changed."""
        await context.send_initial_metadata(self._metadata())
        sent = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, UNKNOWN)
            if state != sent:
                await context.write(health_pb2.HealthCheckResponse(status=state))
            sent = state
            await changed.wait()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("ruvd-version", self._version), ("ruvd-running", str(self.running())))


class Readiness:
    """Derives the health states from the events of the engine and the store. An Observer."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self.engine = ComponentState()
        self.store = ComponentState()
        self.draining = False
        self.stopping = False
        self._overloaded = False
        self._gave_up = False

    def __call__(self, event: Event) -> None:
        """Follows the state of the engine and the store."""
        match event:
            case EngineStateChanged(up, detail, engine=""):  # a named one fails only its own turns
                self.engine = self.engine.after(up=bool(up), detail=detail, time=time.time())
            case StoreStateChanged(up, detail):
                self.store = self.store.after(up=up, detail=detail, time=time.time())
            case _:
                return
        self._publish()

    def drain(self) -> None:
        """Turns readiness off until `undrain`, so that other instances get the next calls."""
        self.draining = True
        self._publish()

    def undrain(self) -> None:
        """Lets readiness depend on the store and the engine again.

        Raises ShuttingDown after `stop`.
        """
        if self.stopping:
            raise ShuttingDown("the daemon is shutting down and cannot take calls again")
        self.draining = False
        self._publish()

    @property
    def ready(self) -> bool:
        """Whether calls should come to this daemon."""
        up = self.engine.up and self.store.up
        return up and not (self.draining or self.stopping or self._overloaded)

    def set_overloaded(self, overloaded: bool) -> None:  # noqa: FBT001  # it is an observer's
        """Turns readiness off while the daemon has no memory for more calls."""
        self._overloaded = overloaded
        self._publish()

    def give_up(self, task: str) -> None:
        """Turns liveness off for good, because a background task keeps failing."""
        self._gave_up = True
        self._health.set("liveness", NOT_SERVING)

    def serve(self) -> None:
        """Turns health and liveness on: the daemon listens."""
        for name in ("", SERVICE):
            self._health.set(name, SERVING)
        self._health.set("liveness", NOT_SERVING if self._gave_up else SERVING)
        self._publish()

    def stop(self) -> None:
        """Turns health and readiness off: new turns are refused. Liveness stays on."""
        for name in ("", SERVICE):
            self._health.set(name, NOT_SERVING)
        self.stopping = True
        self._publish()

    def _publish(self) -> None:
        self._health.set("readiness", SERVING if self.ready else NOT_SERVING)
