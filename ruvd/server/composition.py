"""The composition root: builds the parts that the settings ask for, and connects them.

An adapter is imported only when it is chosen, so that a daemon does not load libraries that it does
not use. `ruvd.server.daemon` starts and stops the parts.
"""

import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.config.tenant_limits import limits_by_tenant
from ruvd.core.completions.batch import Batches
from ruvd.core.completions.completion import CompletionPolicy
from ruvd.core.completions.prewarming import Prewarmer
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.model import ContextWindow, Rendering
from ruvd.core.ports.background import StartTask
from ruvd.core.ports.clock import Clock, StoredClock
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import Observer
from ruvd.core.ports.memory import Memory
from ruvd.core.ports.secrets import SecretSource
from ruvd.core.ports.store import Store, StoreLocked, TombstoneLimits
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.rpc.health import Readiness
from ruvd.rpc.quota_gate import QuotaGate
from ruvd.rpc.service import SessionService
from ruvd.rpc.validation import RequestLimits
from ruvd.server import logs
from ruvd.server.memory_budget import MemoryBudget
from ruvd.server.memory_limits import (
    daemon_limit_bytes,
    engine_limit_bytes,
    group_limit_bytes,
    scratch_limit_bytes,
)
from ruvd.server.observers import Observers
from ruvd.telemetry import conventions, environment

if TYPE_CHECKING:
    from ruvd.sealing.keys import OperatorKeys
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")
# The tombstones of all tenants, in those of one.
_TENANTS_GONE = 10


@dataclass(frozen=True, slots=True)
class Core:
    """The core, and the gRPC service in front of it."""

    sessions: SessionRegistry
    commands: SessionCommands
    completions: CompletionRegistry
    service: SessionService
    quota_gate: QuotaGate
    prewarmer: Prewarmer | None


def build_core(
    settings: Settings,
    clock: Clock,
    store: Store,
    engine: Engine,
    observer: Observer,
    statistics: TenantStatistics,
    memory: Memory,
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
    )
    sessions = SessionRegistry(store, clock, observer, policy)
    commands = SessionCommands(sessions, store, clock, observer, policy)
    completions = CompletionRegistry(
        sessions, engine, clock, observer, completion_policy, limits_of, memory
    )
    batches = Batches(completions, clock, settings.batch_concurrency)
    service = SessionService(
        sessions, commands, completions, batches, statistics, limits, policy, engine, memory
    )
    prewarmer = None
    if engine.prefix_cache and settings.evaluates_ahead:
        prewarmer = Prewarmer(
            sessions, engine, engine.prefix_cache, completions.scheduler, clock, observer
        )
    gate = QuotaGate(completions.quotas, observer)
    return Core(sessions, commands, completions, service, gate, prewarmer)


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
        telemetry = Telemetry(protocols, version("ruvd"), prometheus=serves)
    except ValueError as error:
        _log.warning(
            "telemetry is off: an OTEL_* variable is invalid", extra={"reason": str(error)}
        )
        return None
    logs.correlate_with(current_ids)
    chosen = conventions.chosen(os.environ)
    provider = conventions.provider(settings.engine, settings.affinity, settings.base_url)
    return Monitoring(telemetry, chosen, provider, statistics)


def build_store(
    settings: Settings,
    clock: StoredClock,
    observer: Observer,
    start_task: StartTask,
    keys: "OperatorKeys | None",
) -> Store:
    """Builds the store that the settings name. The keys encrypt the content of a sqlite store."""
    if settings.is_postgres:
        return _build_postgres(settings, clock, observer, start_task)
    path = settings.sqlite_path
    if path is None:
        from ruvd.stores.memory import MemoryStore

        return MemoryStore(_tombstones(settings))
    from ruvd.stores.sqlite.store import SqliteStore

    sealing = None
    if keys is not None:
        from ruvd.stores.sqlite.sealed_rows import SealedRows

        sealing = SealedRows(keys)
    return SqliteStore(
        path,
        durability=settings.durability,
        clock=clock,
        observer=observer,
        sealing=sealing,
        tombstones=_tombstones(settings),
    )


def _tombstones(settings: Settings) -> TombstoneLimits:
    return TombstoneLimits(
        settings.gone_session_retention_seconds,
        settings.max_gone_sessions,
        _TENANTS_GONE * settings.max_gone_sessions,
    )


def _build_postgres(
    settings: Settings, clock: StoredClock, observer: Observer, start_task: StartTask
) -> Store:
    try:
        from ruvd.stores.postgres.store import PostgresStore
    except ImportError as error:
        raise StoreLocked(
            f"the store {settings.store} needs the package psycopg ({error}): install"
            " 'ruvd[postgres]'"
        ) from None
    path = settings.store_password_file
    return PostgresStore(
        settings.store,
        clock=clock,
        observer=observer,
        password=(lambda: path.read_text().strip()) if path else (lambda: ""),
        connections=settings.store_connections,
        timeout_seconds=settings.store_timeout_seconds,
        lease_seconds=settings.store_lease_seconds,
        prepare=settings.store_prepares,
        start_task=start_task,
        tombstones=_tombstones(settings),
    )


def store_is_newer(settings: Settings) -> bool:
    """Tells whether a newer ruvd wrote the store's file, which no retry can change."""
    path = settings.sqlite_path
    if path is None:
        return False
    from ruvd.stores.sqlite.read_only import is_newer

    return is_newer(path)


def build_engine(
    settings: Settings,
    observer: Observer,
    start_task: StartTask,
    secrets: list[SecretSource],
    keys: "OperatorKeys | None",
) -> Engine:
    """Builds the engine that the settings name, with the check of structured answers.

    Adds its files with secrets to `secrets`. The keys encrypt saved KV states.
    """
    engine = _build_engine(settings, observer, start_task, secrets, keys)
    if settings.engine == "echo":
        return engine
    from ruvd.engines.validated.engine import ValidatedEngine

    return ValidatedEngine(engine)


def _build_engine(
    settings: Settings,
    observer: Observer,
    start_task: StartTask,
    secrets: list[SecretSource],
    keys: "OperatorKeys | None",
) -> Engine:
    if settings.engine == "echo":
        from ruvd.engines.echo.engine import EchoEngine

        return EchoEngine(
            delay_seconds=settings.echo_delay_seconds,
            nonce=settings.echo_nonce,
            faults=settings.echo_faults,
            observer=observer,
        )
    if settings.engine == "openai":
        from ruvd.engines.openai.engine import OpenAIEngine

        engine = OpenAIEngine(
            observer=observer,
            base_urls=settings.base_url,
            model=settings.model,
            api_key=settings.api_key.get_secret_value(),
            api_key_file=settings.api_key_file,
            affinity=settings.affinity,
            affinity_header=settings.affinity_header,
            cache_salt=settings.cache_salt.get_secret_value(),
            send_back=settings.send_back,
            ca_file=settings.ca_file,
            client_cert_file=settings.client_cert_file,
            client_key_file=settings.client_key_file,
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
            total_seconds=settings.total_seconds,
            max_parallel=settings.max_parallel,
            retries=settings.retries,
            max_retry_after_seconds=settings.max_retry_after_seconds,
            health_check_seconds=settings.health_check_seconds,
            start_task=start_task,
        )
        secrets.append(engine.api_key)
        return engine
    from ruvd.engines.llama.engine import LlamaEngine

    scratch = None
    if keys is not None:
        from ruvd.engines.llama.scratch import Scratch

        scratch = Scratch(settings.kv_scratch_dir, keys)
    return LlamaEngine(
        observer=observer,
        model_path=settings.llama_model,
        server_path=settings.llama_server,
        server_args=settings.llama_server_args,
        context_tokens=settings.llama_context_tokens,
        answer_tokens=settings.llama_answer_tokens,
        slots=settings.llama_slots,
        threads=settings.llama_threads,
        batch_tokens=settings.llama_batch_tokens,
        max_memory_bytes=engine_limit_bytes(settings, group_limit_bytes()),
        start_seconds=settings.engine_start_seconds,
        hang_seconds=settings.engine_hang_seconds,
        states_path=settings.states_path,
        states_path_is_default=settings.kv_cache_dir is None,
        states_bytes=settings.kv_cache_bytes,
        scratch=scratch,
        scratch_bytes=scratch_limit_bytes(settings, group_limit_bytes()),
        evaluate_ahead=settings.evaluates_ahead,
        start_task=start_task,
    )


def build_memory_budget(settings: Settings, readiness: Readiness) -> MemoryBudget:
    """Builds the memory budget, which turns readiness off near the limit."""
    return MemoryBudget(
        daemon_limit_bytes(settings, group_limit_bytes()),
        settings.max_request_bytes,
        on_change=readiness.set_overloaded,
    )
