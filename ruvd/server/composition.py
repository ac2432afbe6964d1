"""The composition root: builds the parts that the settings ask for, and connects them.

Telemetry is imported only when it is on, so that a daemon does not load libraries that it does not
use. `ruvd.server.daemon` starts and stops the parts. The store and the engine are built by
`ruvd.server.store_composition` and `ruvd.server.engine_composition`.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.config.tenant_limits import limits_by_tenant
from ruvd.core import ids
from ruvd.core.completions.activity import Activity
from ruvd.core.completions.ahead_compaction import AheadCompaction
from ruvd.core.completions.batch import Batches
from ruvd.core.completions.compaction_budget import CompactionBudget
from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.compactor import CompactionPolicy, Compactor
from ruvd.core.completions.completion import CompletionPolicy
from ruvd.core.completions.prewarming import Prewarmer
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.completions.summary_writer import SummaryWriter
from ruvd.core.model import Compaction, ContextWindow, Rendering
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import Observer
from ruvd.core.ports.memory import Memory
from ruvd.core.ports.replicas import Replicas
from ruvd.core.ports.store import Store
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.turn_pages import TurnPages
from ruvd.core.statistics import Statistics
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.engines.routing.engine import RoutingEngine
from ruvd.rpc.health import Readiness
from ruvd.rpc.quota_gate import QuotaGate
from ruvd.rpc.server_info import ServerInfo
from ruvd.rpc.service import SessionService
from ruvd.rpc.validation import RequestLimits
from ruvd.server import logs
from ruvd.server.memory_budget import MemoryBudget
from ruvd.server.memory_limits import (
    daemon_limit_bytes,
    group_limit_bytes,
)
from ruvd.server.observers import Observers
from ruvd.telemetry import conventions, environment

if TYPE_CHECKING:
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")
# The tombstones of all tenants, in those of one.
_TENANTS_GONE = 10
_VERSION = version("ruvd")  # read from files, so not on the event loop


@dataclass(frozen=True, slots=True)
class Core:
    """The core, and the gRPC service in front of it."""

    sessions: SessionRegistry
    commands: SessionCommands
    completions: CompletionRegistry
    service: SessionService
    quota_gate: QuotaGate
    prewarmer: Prewarmer | None
    compactions: CompactionCalls
    ahead_compaction: AheadCompaction
    batches: Batches
    engine: Engine
    limits: RequestLimits
    policy: SessionPolicy
    activity: Activity
    turn_pages: TurnPages
    statistics: TenantStatistics
    clock: Clock


def build_core(
    settings: Settings,
    clock: Clock,
    store: Store,
    engine: Engine,
    observer: Observer,
    statistics: TenantStatistics,
    memory: Memory,
    replicas: Replicas | None = None,
) -> Core:
    """Builds the core over a store and an engine, with the limits of the settings."""
    limits_of = limits_by_tenant(settings.tenant_limits)
    policy = SessionPolicy(
        enabled=settings.sessions_enabled,
        idle_timeout_seconds=settings.idle_timeout_seconds,
        max_sessions=settings.max_sessions,
        max_queue=settings.max_queue,
        max_session_bytes=settings.max_session_bytes,
        context_window=ContextWindow(
            settings.keep_exchanges,
            settings.max_exchanges,
            settings.max_context_tokens,
            Rendering(settings.rendering),
            Compaction(settings.compaction),
            settings.keep_first,
            settings.compact_at,
        ),
        limits_of=limits_of,
        evicts_at_tenant_limit=settings.at_session_limit == "evict",
    )
    limits = RequestLimits(
        limits_of=limits_of,
        max_request_bytes=settings.max_request_bytes,
        max_message_bytes=settings.max_message_bytes,
        max_messages=settings.max_messages,
        max_grace_seconds=settings.completion_retention_seconds,
    )
    completion_policy = CompletionPolicy(
        max_inflight=settings.max_inflight,
        retention_seconds=settings.completion_retention_seconds,
        max_log_bytes=settings.max_log_bytes,
        max_logs_bytes=settings.max_logs_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        batch_share=settings.batch_share,
        replica=ids.short(replicas.me) if replicas and settings.peer_listen else "",
    )
    sessions = SessionRegistry(store, clock, observer, policy, replicas)
    commands = SessionCommands(sessions, store, clock, observer, policy)
    completions = CompletionRegistry(
        sessions, engine, clock, observer, completion_policy, limits_of, memory
    )
    if replicas:
        completions.quotas.share()
        replicas.share_usage(completions.quotas)
    is_remote = settings.engine == "openai"
    summary_tokens = settings.summary_max_tokens or (64 if settings.engine == "llama" else 256)
    compaction_policy = CompactionPolicy(
        summary_tokens, settings.compaction_model, settings.summary_max_tokens or 256
    )
    budget = CompactionBudget(
        clock, settings.compaction_session_tokens, settings.compaction_day_tokens
    )
    compactor = Compactor(sessions, engine, clock, observer, compaction_policy, limits_of)
    compactions = CompactionCalls(sessions, compactor, completions)
    batches = Batches(completions, clock, settings.batch_concurrency)
    info = ServerInfo(
        version=_VERSION,
        instance_id=replicas.me if replicas else ids.unguessable(),
        engine_name=settings.engine,
        engine=engine.for_model(""),
        named_engines=lambda: engine.named if isinstance(engine, RoutingEngine) else (),
        requests=limits,
        sessions=policy,
        completions=completion_policy,
        extra_features=_features(settings),
    )
    service = SessionService(
        sessions,
        commands,
        completions,
        batches,
        statistics,
        limits,
        policy,
        engine,
        memory,
        compactions,
        info,
    )
    prefix_cache = engine.prefix_cache if settings.evaluates_ahead else None
    writer = SummaryWriter(
        compactor,
        waits_for_idle=not is_remote,
        continues_answers=settings.engine == "llama",
    )
    ahead = AheadCompaction(
        sessions,
        compactor,
        completions,
        prefix_cache,
        compactions.last_options,
        observer,
        budget,
        writer,
    )
    prewarmer = None
    if engine.prefix_cache and settings.evaluates_ahead:
        prewarmer = Prewarmer(
            sessions,
            completions.engines,
            engine.prefix_cache,
            clock,
            observer,
            ahead.takes,
        )
    gate = QuotaGate(completions.quotas, observer)
    return Core(
        sessions,
        commands,
        completions,
        service,
        gate,
        prewarmer,
        compactions,
        ahead,
        batches,
        engine,
        limits,
        policy,
        Activity(sessions, completions, clock),
        TurnPages(sessions, store),
        statistics,
        clock,
    )


def _features(settings: Settings) -> Sequence[str]:
    """Returns the names of the features that the settings switch on."""
    features = {
        "durable_sessions": settings.is_postgres or settings.sqlite_path is not None,
        "forwarding": bool(settings.peer_listen),
        "shared_sessions": settings.is_postgres,
    }
    return [name for name, is_on in features.items() if is_on and settings.sessions_enabled]


def build_tenant_statistics(
    settings: Settings, statistics: Statistics, observers: Observers
) -> TenantStatistics:
    """Builds the sums of each tenant, which are counted only if callers have identities."""
    by_tenant = TenantStatistics(statistics)
    if settings.has_identity:
        observers.add(by_tenant)
    return by_tenant


def build_monitoring(settings: Settings, statistics: Statistics) -> "Monitoring | None":
    """Builds telemetry as the settings and the OTEL_* variables ask for it; None if they do not.

    A wrong OTEL_* variable is logged and turns telemetry off; an empty one counts as unset.
    """
    environment.unset_empty(os.environ)
    protocols = environment.protocols(os.environ)
    serves = bool(settings.metrics_listen)
    if serves and environment.disabled(os.environ):
        _log.warning("metrics are not served: OTEL_SDK_DISABLED is set")
        serves = False
    if not protocols and not serves:
        return None
    from ruvd.telemetry.exporters import Telemetry
    from ruvd.telemetry.rpc_spans import current_ids
    from ruvd.telemetry.setup import Monitoring

    try:
        telemetry = Telemetry(protocols, _VERSION, prometheus=serves)
    except ValueError as error:
        _log.warning(
            "telemetry is off: an OTEL_* variable is invalid", extra={"reason": str(error)}
        )
        return None
    logs.correlate_with(current_ids)
    chosen = conventions.chosen(os.environ)
    provider = conventions.provider(settings.engine, settings.affinity, settings.base_url)
    return Monitoring(telemetry, chosen, provider, statistics)


def build_memory_budget(settings: Settings, readiness: Readiness) -> MemoryBudget:
    """Builds the memory budget, which turns readiness off near the limit."""
    return MemoryBudget(
        daemon_limit_bytes(settings, group_limit_bytes()),
        settings.max_request_bytes,
        on_change=readiness.set_overloaded,
    )
