"""All settings of the daemon: names, defaults, descriptions and rules.

`ruvd.config.loader` reads their values. The settings of addresses and callers are in `listening`,
those of engines in `engine_settings`, those of the audit log in `audit_settings`, those of other
replicas in `peer_settings`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, Self

import platformdirs
from pydantic import PrivateAttr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ruvd.config.audit_settings import AuditSettings
from ruvd.config.engine_settings import EngineSettings
from ruvd.config.fields import OptionalPath, setting
from ruvd.config.listening import ListeningSettings
from ruvd.config.named_engines import NamedEngineSettings
from ruvd.config.peer_settings import PeerSettings
from ruvd.config.store_settings import StoreSettings

ENV_PREFIX = "RUVD_"
_POSTGRES = ("postgresql://", "postgres://")

_sessions = partial(setting, "Sessions")
_window = partial(setting, "Context window")
_limits = partial(setting, "Limits")
_lifecycle = partial(setting, "Lifecycle")


class Settings(EngineSettings, ListeningSettings, StoreSettings, PeerSettings, AuditSettings):
    """The settings of the daemon. `ruvd.config.loader.load` makes them."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False
    )

    _engines: Mapping[str, NamedEngineSettings] = PrivateAttr(default_factory=dict)

    store: str = setting(
        "Store",
        "sqlite",
        "Store of the sessions: sqlite (in the user's state directory), sqlite:PATH, memory, or "
        "postgresql://USER@HOST/DATABASE, which several daemons may share.",
    )
    durability: Literal["normal", "full"] = setting(
        "Store",
        "normal",
        "What a committed turn survives: a killed daemon (normal) or also a power cut (full).",
    )

    encryption_key_file: OptionalPath = setting(
        "Store",
        None,
        "File with the keys that encrypt stored conversations and KV states, which "
        "`ruvd key create` makes. It is read again when it changes. Unset: no encryption.",
    )
    backup_dir: OptionalPath = setting(
        "Store",
        None,
        "Directory of the backups that `ruvd admin backup` makes. Unset: STORE-backups beside the "
        "store's file.",
    )

    sessions_enabled: bool = _sessions(
        default=True, description="Keep sessions; if not, every completion is stateless."
    )
    idle_timeout_seconds: float = _sessions(
        1800.0, "Seconds of inactivity after which a session expires.", gt=0, le=10 * 366 * 86_400
    )
    max_sessions: int = _sessions(
        100,
        "Sessions kept. Beyond, the least recently used one of the new one's tenant is evicted.",
        ge=1,
    )
    gone_session_retention_seconds: float = _sessions(
        7 * 86_400.0,
        "Seconds for which callers are told that a session was evicted or has expired. 0: an id "
        "without a session always begins a new one.",
        ge=0,
    )
    max_gone_sessions: int = _sessions(
        10_000,
        "Evicted and expired sessions of a tenant that are remembered, the latest; and ten times "
        "as many of all tenants.",
        ge=1,
    )
    sweep_interval_seconds: float = _sessions(
        300.0, "Seconds between deletions of expired sessions.", gt=0
    )

    keep_exchanges: int = _window(3, "Exchanges that a trim of the context window leaves.", ge=0)
    max_exchanges: int = _window(
        10, "Most exchanges sent; one more causes a trim. 0: whole history.", ge=0
    )
    max_context_tokens: int | None = _window(
        None,
        "Tokens of a turn beyond which the window is trimmed. Unset: the engine's limit.",
        ge=1,
    )
    rendering: Literal["messages", "transcript"] = _window(
        "messages", "Form of the window: role messages, or one system message with a transcript."
    )
    compaction: Literal["none", "summary"] = _window(
        "none",
        "What becomes of exchanges that leave the window: nothing, or a summary of them that the "
        "engine writes between turns is sent in their place.",
    )
    keep_first: int = _window(
        0, "Exchanges at the beginning of a history that are always sent.", ge=0, le=32
    )
    compact_at: float = _window(
        0.6,
        "Share of max_exchanges or max_context_tokens, whichever is reached first, at which a "
        "summary is made.",
        gt=0,
        le=1,
    )
    summary_max_tokens: int | None = _window(
        None, "Longest summary, in tokens. Unset: 64 on the embedded engine, otherwise 256.", ge=16
    )
    compaction_model: str = _window(
        "",
        "Model that writes summaries, such as a cheaper one. Its cache does not have the prompt of "
        "the session's model. Empty: the session's model.",
    )
    compaction_session_tokens: int = _window(
        100_000,
        "Tokens of one session's summaries, prompts included and cached ones not, for which a "
        "server elsewhere is asked in a day; beyond, the session is trimmed.",
        ge=0,
    )
    compaction_day_tokens: int = _window(
        1_000_000, "The same for the summaries of all sessions.", ge=0
    )

    max_memory_bytes: int | None = _limits(
        None,
        "Memory of the daemon, in bytes; near it calls are refused. Unset: five sixths of what the "
        "embedded engine's process leaves of the control group's limit, or 512 MiB without one.",
        ge=128 << 20,
    )
    max_request_bytes: int = _limits(4 << 20, "Largest request, in bytes.", ge=1024, le=1 << 28)
    max_message_bytes: int = _limits(1 << 20, "Largest message, in bytes.", ge=1)
    max_messages: int = _limits(1000, "Most messages in a request.", ge=1)
    max_session_bytes: int = _limits(
        16 << 20, "Largest session history, in bytes; checked before each turn.", ge=1
    )

    max_answer_bytes: int = _limits(
        8 << 20,
        "Largest answer with its reasoning and tool calls, in bytes. A longer text ends there with "
        "the finish reason LENGTH; with tool calls the completion fails with ENGINE_REJECTED. An "
        "answer of more than 2 MiB also ends so if there is no memory for the rest.",
        ge=1024,
        le=16 << 20,
    )

    max_inflight: int = _limits(1000, "Most completions that run or wait; more are refused.", ge=1)
    max_connection_calls: int | None = _limits(
        None,
        "Most calls that run at once on one connection; its client lets further calls wait, "
        "cancellations among them. Unset: no limit.",
        ge=1,
    )
    max_queue: int = _limits(100, "Most callers that wait for one session.", ge=0)
    completion_retention_seconds: float = _limits(
        600.0, "Seconds for which an ended completion can be resumed.", ge=0
    )
    max_log_bytes: int = _limits(
        1 << 20, "Bytes of events kept of one completion, to resume it.", ge=4096
    )
    max_logs_bytes: int = _limits(
        16 << 20, "Bytes of events kept of ended completions, to resume them.", ge=4096
    )

    batch_share: float = setting(
        "Batches", 0.5, "Share of the engine's slots for batches, at least one slot.", gt=0, le=1
    )
    batch_concurrency: int = setting(
        "Batches", 32, "Items of a batch that run at once, unless the call says otherwise.", ge=1
    )

    drain_seconds: float = _lifecycle(25.0, "Seconds for running turns to end after SIGTERM.", ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = _lifecycle(
        "info", "Lowest level that is logged."
    )
    log_format: Literal["auto", "human", "json"] = _lifecycle(
        "auto", "Format of log lines. auto: human on a terminal, JSON otherwise."
    )

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        if value.startswith(_POSTGRES):
            if ":" in value.partition("://")[2].rpartition("@")[0] or "password=" in value:
                raise ValueError(
                    "must not have the password, as settings are printed: use store_password_file,"
                    " PGPASSWORD or PGPASSFILE"
                )
        elif value not in ("sqlite", "memory") and not value.startswith("sqlite:"):
            raise ValueError(
                "must be sqlite, sqlite:PATH, memory or postgresql://USER@HOST/DATABASE"
            )
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.max_exchanges and self.keep_exchanges > self.max_exchanges:
            raise ValueError("keep_exchanges must be at most max_exchanges")
        if self.encryption_key_file and self.is_postgres:
            raise ValueError(
                "encryption_key_file is for sqlite stores; PostgreSQL's disk may be encrypted"
            )
        if self.peer_listen and not self.is_postgres:
            raise ValueError("peer_listen needs a postgresql store, which replicas share")
        return self

    @property
    def engines(self) -> Mapping[str, NamedEngineSettings]:
        """The engines that the file names beside the one of the setting `engine`."""
        return self._engines

    def with_engines(self, engines: Mapping[str, NamedEngineSettings]) -> Self:
        """Returns the settings with these named engines."""
        settings = self.model_copy()
        settings._engines = engines  # noqa: SLF001  # of its own class
        return settings

    @property
    def is_postgres(self) -> bool:
        """Whether the store is in PostgreSQL."""
        return self.store.startswith(_POSTGRES)

    @property
    def sqlite_path(self) -> Path | None:
        """The database file, or None for another store."""
        if self.store == "memory" or self.is_postgres:
            return None
        path = self.store.removeprefix("sqlite").removeprefix(":")
        return Path(path) if path else platformdirs.user_state_path("ruvd") / "sessions.db"

    @property
    def states_path(self) -> Path | None:
        """The directory of saved KV states, or None if they are not saved."""
        if self.kv_cache_dir is None and self.sqlite_path is not None:
            return self.sqlite_path.with_name(f"{self.sqlite_path.name}-kv")
        return self.kv_cache_dir

    @property
    def backups_path(self) -> Path | None:
        """The directory of backups, or None if the store has no file."""
        path = self.sqlite_path
        if path is None:
            return None
        return self.backup_dir or path.with_name(f"{path.name}-backups")

    @property
    def admin_socket(self) -> Path | None:
        """The path of the admin socket, or None if there is to be none.

        Two daemons have different default sockets if they have different stores, because one that
        shares its socket's path with another would be administered by mistake.
        """
        if self.admin_listen in ("", "none"):
            return None
        if not self.admin_socket_is_default:
            return Path(self.admin_listen.removeprefix("unix:"))
        path = self.sqlite_path
        if path is None:
            return platformdirs.user_state_path("ruvd") / "admin.sock"
        return path.with_name(f"{path.name}-admin.sock")

    @property
    def admin_socket_is_default(self) -> bool:
        """Whether no path of the admin socket is set."""
        return self.admin_listen == "auto"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Uses arguments only: `load` reads the other sources, to know each setting's source."""
        return (init_settings,)
