"""The answer of GetServerInfo: the version, features, limits and engines of a daemon."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ruvd.core.completions.allowances import is_allowed
from ruvd.core.completions.completion import CompletionPolicy
from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import Engine
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.tenant_limits import TenantLimits
from ruvd.rpc import convert
from ruvd.rpc.requests import MAX_ITEMS
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

# An engine that does not list its models within this time is shown without them.
_MODELS_SECONDS = 2.0
_NAMED = "openai"  # the kind of every named engine
# Every daemon of this version has these; docs/operations.md describes them.
_FEATURES = ("batch", "resume", "structured_output", "tools")
_SESSION_FEATURES = ("compaction", "message_parts", "pinned_messages", "sessions")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The facts of one daemon that GetServerInfo returns.

    `engine_name` is the kind of the default engine. `named_engines` returns those of the settings'
    tables. `extra_features` are those that the settings switch on.
    """

    version: str
    instance_id: str
    engine_name: str
    engine: Engine
    requests: RequestLimits
    sessions: SessionPolicy
    completions: CompletionPolicy
    extra_features: Collection[str] = ()
    named_engines: Callable[[], Collection[Engine]] = tuple

    async def of(self, tenant: str) -> pb.GetServerInfoResponse:
        """Returns the answer for a tenant, within some seconds, whatever the engine does."""
        limits = self.requests.limits_of(tenant)
        features = {*_FEATURES, *self.extra_features}
        if self.sessions.enabled:
            features.update(_SESSION_FEATURES)
        engines = [self._engine(self.engine_name, self.engine, limits)]
        engines += [self._engine(_NAMED, each, limits) for each in self.named_engines()]
        return pb.GetServerInfoResponse(
            version=self.version,
            instance_id=self.instance_id,
            features=sorted(features),
            limits=self._limits(limits),
            engines=await asyncio.gather(*engines),
        )

    def _limits(self, own: TenantLimits) -> pb.ServerLimits:
        requests, sessions, completions = self.requests, self.sessions, self.completions
        return pb.ServerLimits(
            max_request_bytes=requests.max_request_bytes,
            max_message_bytes=requests.max_message_bytes,
            max_messages=requests.max_messages,
            max_session_bytes=sessions.max_session_bytes,
            max_sessions=_lower(sessions.max_sessions, own.max_sessions),
            max_inflight=_lower(completions.max_inflight, own.max_inflight),
            max_batch_items=MAX_ITEMS,
            max_answer_bytes=_lower(completions.max_answer_bytes, own.max_answer_bytes),
            max_output_tokens=own.max_output_tokens,
            idle_timeout=convert.duration(sessions.idle_timeout_seconds),
            completion_retention=convert.duration(completions.retention_seconds),
        )

    async def _engine(self, kind: str, engine: Engine, own: TenantLimits) -> pb.EngineInfo:
        try:
            async with asyncio.timeout(_MODELS_SECONDS):
                models = await engine.models() if engine.is_ready else ()
        except (RuvdError, TimeoutError):
            models = ()
        return pb.EngineInfo(
            name=kind,
            engine_name=engine.name,
            ready=engine.is_ready,
            default_model=engine.model,
            models=[each for each in models if is_allowed(each, own.models)],
            window_tokens=engine.window_tokens,
            slots=engine.slots,
        )


def _lower(limit: int, own: int | None) -> int:
    return limit if own is None else min(limit, own)
