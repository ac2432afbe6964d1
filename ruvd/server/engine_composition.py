"""Builds the engine that the settings name.

An engine is imported only when it is chosen, so that a daemon does not load libraries that it does
not use.
"""

from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.config.openai_settings import OpenAISettings
from ruvd.core.ports.background import StartTask
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import Observer
from ruvd.core.ports.secrets import SecretSource
from ruvd.server.memory_limits import engine_limit_bytes, group_limit_bytes, scratch_limit_bytes

if TYPE_CHECKING:
    from ruvd.engines.openai.engine import OpenAIEngine
    from ruvd.sealing.keys import OperatorKeys


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


def build_openai_engine(
    settings: OpenAISettings, observer: Observer, start_task: StartTask, table: str = ""
) -> "OpenAIEngine":
    """Builds an engine that calls OpenAI-compatible servers.

    `table` is the path of its settings in the file, empty for those of the default engine.
    """
    from ruvd.engines.openai.engine import OpenAIEngine

    return OpenAIEngine(
        observer=observer,
        base_urls=settings.base_url,
        model=settings.model,
        api_key=settings.api_key.get_secret_value(),
        api_key_file=settings.api_key_file,
        api_key_setting=f"{table}.api_key_file" if table else "api_key_file",
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
        breaker_failures=settings.breaker_failures,
        breaker_seconds=settings.breaker_seconds,
        health_check_seconds=settings.health_check_seconds,
        start_task=start_task,
    )


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
        engine = build_openai_engine(settings, observer, start_task)
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
